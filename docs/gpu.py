"""Everything worth measuring on a GPU in a quarter of an hour: `python docs/gpu.py OUT [ARCHIVE] [--seconds 420] [--dry]`

Without ARCHIVE comes what needs no images: the tests for CUDA, and both nets by cifar_fast and by a plain loop, eager, as CUDA graphs, and
compiled. With it come the trainings, the most telling first. Each step has its own log in OUT and its own limit, so that one that fails or
hangs costs no other more than that; for which too little time is left is left out. `--dry` tries all of it on a CPU, in small.
Then `python docs/tables.py --machine TEXT OUT/best OUT/s003 …` adds the trainings to the results."""
import os,subprocess,sys,time
from argparse import ArgumentParser
from pathlib import Path

root = Path(__file__).resolve().parent.parent
script = [sys.executable,'-c','import sys; from cifar_fast.cli import main; sys.argv = sys.argv[1:]; sys.exit(main())']
small = '--data shapes10 --size 16 --epochs 1 --progressive_resizing ()'.split()

def machine(out, dry):
    "Steps that need no images: name, seconds at most, command"
    yield 'tests', 120, [sys.executable,'-m','pytest','-q','-p','no:cacheprovider','-k','cuda','tests/test_speed.py','tests/test_device.py',
                         'tests/test_bench.py']
    names = [f'{o}{k}' for k in ('','_graph','_compile_graph','_compile')[:1 if dry else 4] for o in ('device','loop')]
    for recipe in ('assignment','speedrun'):
        yield f'bench-{recipe}', 150, [*script,'cifar_fast_bench','--recipe',recipe,'--quick','--limit','45','--contenders',*names,
                                       '--out',f'{out}/bench-{recipe}']

def trainings(out, data, dry):
    "Steps that do"
    def step(name, seconds, *args, kind='train', how=('--graph',)):
        given = [*small,'--bs','64'] if dry else ['--data',data,*how]
        return name, seconds, [*script,f'cifar_fast_{kind}','--recipe',name.partition('-')[0],'--out',f'{out}/{name}',*given,*args]
    def train(name, seconds, n=1, **kwargs):
        return step(name, seconds, '--quiet','--no_report',*(['--seeds',str(2 if dry else n)] if n>1 else []), **kwargs)
    both = '--compile','--graph'
    yield step('speedrun-timed', 90, '--runs','2' if dry else '40', kind='bench')
    yield train('assignment', 60, how=both)
    yield train('best', 150, 5, how=both)
    yield train('speedrun', 60, 5)
    yield train('fast', 60, 3)
    yield train('s003', 150, 5, how=both)
    yield train('dilated_best', 120, 5)
    for name in ('s000','s004','s001'): yield train(name, 60)
    yield step('speedrun-compiled', 90, '--runs','2' if dry else '40', kind='bench', how=both)
    yield train('s002', 150)

if __name__=='__main__':
    p = ArgumentParser(description='Measure what is worth it on a GPU, within a time')
    p.add_argument('out', type=Path)
    p.add_argument('archive', nargs='?', help='CIFAR-10 as an archive or folder: train on it, instead of what needs no images')
    p.add_argument('--seconds', type=float, default=420, help='for all steps together')
    p.add_argument('--dry', action='store_true', help='on a CPU, in small')
    a = p.parse_args()
    end,path = time.monotonic()+a.seconds,os.pathsep.join(filter(None, [str(root),os.environ.get('PYTHONPATH')]))
    a.out.mkdir(parents=True, exist_ok=True)
    out = a.out.resolve()
    steps = trainings(out, str(Path(a.archive).resolve()), a.dry) if a.archive else machine(out, a.dry)
    for name,limit,command in steps:
        start,left = time.monotonic(),end-time.monotonic()
        if left<limit/2:
            print(f'== {name}: left out, {left:.0f} s are left', flush=True)
            continue
        log = out/f'{name}.log'
        with open(log, 'w') as f:
            how = dict(stdout=f, stderr=f, cwd=root, env=dict(os.environ, PYTHONPATH=path), timeout=min(limit, left))
            try: ended = f'exit code {subprocess.run(command, **how).returncode}'
            except subprocess.TimeoutExpired: ended = 'stopped at its limit'
        last = log.read_text(errors='replace').splitlines()[-14:]
        print(f'== {name}: {ended}, {time.monotonic()-start:.0f} s', *last, sep='\n', flush=True)
