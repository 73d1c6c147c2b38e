"Several processes on one net, over gloo; they are forks of this one, with the environment that torchrun would give them"
import os,shutil,signal,socket,subprocess,sys,time,traceback
from pathlib import Path
import pytest
pytest.importorskip('accelerate', reason="pip install 'cifar_fast[processes]'")
import numpy as np,torch
from torch import nn
from fastai.basics import Callback,cast,ifnone
from conftest import draw_folder
from cifar_fast import processes
from cifar_fast.cli import main
from cifar_fast.data import load_images
from cifar_fast.interpret import Predictions
from cifar_fast.models import nets
from cifar_fast.recipes import recipes
from cifar_fast.runs import Run,load_tensors,run_results
from cifar_fast.train import recipe_learner,resume_run,train_recipe

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork here')

def plain(n_classes):
    "A net without BatchNorm"
    return nn.Sequential(nn.Conv2d(3,8,3,stride=2,padding=1), nn.ReLU(), nn.Conv2d(8,16,3,stride=2,padding=1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16,n_classes))
nets['plain'] = plain

fixed = recipes['demo'].replace(model='plain', model_args={}, policy='none', lr=.05, size=16)

class Group:
    "`n` forks of this process, which train together; what each said, and how it ended"
    def __init__(self, n, f, where):
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            port = s.getsockname()[1]
        self.where,self.pids = Path(where),[]
        self.where.mkdir(exist_ok=True)
        for rank in range(n):
            pid = os.fork()
            if pid: self.pids.append(pid)
            else: self.run(f, rank, dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), WORLD_SIZE=str(n), LOCAL_RANK=str(rank)))
        self.codes = {}
    def run(self, f, rank, env):
        code = 1
        try:
            os.environ.update(RANK=str(rank), **(env if env['WORLD_SIZE']!='1' else {}))
            for i,name in ((1,'out'),(2,'err')): os.dup2(os.open(self.where/f'{name}{rank}', os.O_WRONLY|os.O_CREAT|os.O_TRUNC, 0o600), i)
            sys.stdout,sys.stderr = os.fdopen(1, 'w', closefd=False),os.fdopen(2, 'w', closefd=False)
            code = f() or 0
        except BaseException: traceback.print_exc()
        finally:
            for o in (sys.stdout,sys.stderr): o.flush()
            os._exit(code)
    def kill(self, rank, sig): os.kill(self.pids[rank], sig)
    def wait(self, seconds=60, ranks=None):
        "The exit codes of all, or of `ranks`; those that signals ended are negative"
        end = time.time()+seconds
        todo = [o for o in ifnone(ranks, range(len(self.pids))) if o not in self.codes]
        while todo and time.time()<end:
            for o in todo:
                pid,status = os.waitpid(self.pids[o], os.WNOHANG)
                if pid: self.codes[o] = os.waitstatus_to_exitcode(status)
            todo = [o for o in todo if o not in self.codes]
            time.sleep(.01)
        for o in todo: os.kill(self.pids[o], signal.SIGKILL)
        assert not todo, f'{todo} did not end'
        return [self.codes[o] for o in sorted(self.codes)]
    def said(self, kind='err'): return [(self.where/f'{kind}{o}').read_text() for o in range(len(self.pids))]
    def lines(self): return [o for s in self.said() for o in s.splitlines() if o]

def together(n, f, where):
    "Run `f` in `n` processes, all of which must end well"
    g = Group(n, f, where)
    assert g.wait(120)==[0]*n, g.said()
    return g

def script(*args):
    def f():
        sys.argv = ['cifar_fast_train', *map(str, args)]
        return main()
    return f

def weights(out): return load_tensors(Path(out)/'model.safetensors', 'weights')
def distance(a, b): return max(float((x-y).abs().max()) for x,y in zip(weights(a).values(), weights(b).values()))
def rows(path): return Run(path.parent).read_table(path.name)

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Images of three classes: 72 to train on, 25×3-2 to test"
    path = draw_folder(tmp_path_factory.mktemp('images')/'colors', n_test=25)
    for o in (path/'test'/'ant').glob('[01].png'): o.unlink()
    return path

@pytest.mark.parametrize('pipeline,n,bs,epochs', [('device',2,18,5), ('item',2,18,5), ('device',3,17,5), ('item',3,17,5)])
def test_equals_one_process(folder, tmp_path, pipeline, n, bs, epochs):
    "The weights after 20 steps, the losses of all steps and of the held-out images are those of one process"
    r = fixed.replace(data=str(folder), bs=bs, epochs=epochs)
    for k,where in ((1,'one'),(n,'more')):
        together(k, lambda out=tmp_path/where: train_recipe(r, out, quiet=True, pipeline=pipeline, precision='fp32') and 0,
                 tmp_path/f'{where}-said')
    assert distance(tmp_path/'one', tmp_path/'more')<1e-6
    for name,count in (('steps.csv',20),('history.csv',epochs)):
        a,b = (rows(tmp_path/o/name) for o in ('one','more'))
        assert len(a)==len(b)==count
        for x,y in zip(a, b):
            for k in x.keys()-{'train_s','test_s'}: assert x[k]==pytest.approx(y[k], rel=1e-5), (name,k)
    config = Run(tmp_path/'more').config
    assert config['device'].startswith(f'{n} processes, each') and 'processes' not in Run(tmp_path/'one').config['device']

def test_counted_once(folder, tmp_path):
    "What two processes count is what one counts by itself afterwards, although their shares are not equal"
    def train():
        r = fixed.replace(data=str(folder), bs=7, epochs=2, model='resnet9', model_args=dict(width=4), policy='assignment', ema=.5)
        return train_recipe(r, tmp_path/'run', quiet=True) and 0
    g = together(2, train, tmp_path/'said')
    run,ims = Run(tmp_path/'run'),load_images(folder, 16)
    preds,last = Predictions.load(run/'predictions.safetensors', ims.vocab, ims.test_x),rows(run/'history.csv')[-1]
    assert len(preds.targs)==73 and last['test_accuracy']*73==pytest.approx(round(last['test_accuracy']*73), abs=1e-4)
    assert last['test_accuracy']==pytest.approx(preds.accuracy) and last['test_loss']==pytest.approx(float(preds.losses.mean()), rel=1e-4)
    assert g.said('out')[1]==g.said('err')[1]==''

def test_part_and_meet_again(tmp_path):
    "Also where the first is slow to leave, so that the other is back while what was said at the last meeting still stands"
    def meet():
        rank,destroy = int(os.environ['RANK']),torch.distributed.destroy_process_group
        torch.distributed.destroy_process_group = lambda: (time.sleep(.5*(rank==0)), destroy())
        for i in range(3):
            with processes.joined('cpu'): assert processes.gathered((i,rank))==[(i,0),(i,1)]
    together(2, meet, tmp_path/'said')

def test_own_augmentation(folder, tmp_path):
    "Of one picture, 64 times, two processes draw other crops and flips, and others in the next epoch; dropout, too; a seed repeats them"
    ims = load_images(folder, 16)
    ims.train_x = np.repeat(ims.train_x[:1], len(ims.train_x), 0)
    def first_batches(pipeline):
        with processes.joined('cpu'):
            r = fixed.replace(data=str(folder), bs=32, policy='assignment')
            learn,seen = recipe_learner(r, ims, seed=3, pipeline=pipeline, device='cpu'),[]
            class Keep(Callback):
                def before_batch(self):
                    if self.training: seen.append((cast(self.x, torch.Tensor).clone(), torch.rand(3)))
            with learn.no_bar(), learn.no_logging(), learn.together(tmp_path, 3): learn.fit(2, cbs=Keep())
        return seen
    def save(): torch.save([first_batches(o) for o in ('device','item')], tmp_path/f"seen{os.environ['RANK']}.pt")
    again = []
    for i in range(2):
        together(2, save, tmp_path/f'said{i}')
        again.append([torch.load(tmp_path/f'seen{o}.pt') for o in range(2)])
    for pipeline in (0,1):
        a,b = (again[0][rank][pipeline] for rank in range(2))
        assert len(a)==len(b)==4 and all(len(x)==16 for x,_ in a+b)
        xs = a+b
        for i,(x,r) in enumerate(xs):
            for y,s in xs[:i]: assert not torch.equal(x, y) and not torch.equal(r, s)
        for (x,r),(y,s) in zip(xs, again[1][0][pipeline]+again[1][1][pipeline]): assert torch.equal(x, y) and torch.equal(r, s)

def test_only_the_first_writes(folder, tmp_path):
    def train():
        if os.environ['RANK']=='1': os.replace = os.mkdir = os.unlink = lambda *args, **kwargs: 1/0
        sys.argv = ['cifar_fast_train','--data',str(folder),'--recipe','demo','--model','plain','--size','16','--bs','24','--epochs','1',
                    '--out',str(tmp_path/'run'),'--no_report']
        return main()
    load_images(folder, 16)
    g = together(2, train, tmp_path/'said')
    assert 'test accuracy' in g.said('out')[0] and g.said('out')[1]==g.said()[1]==''
    assert {o.name for o in (tmp_path/'run').iterdir()} >= {'config.json','history.csv','steps.csv','model.safetensors','results.json'}

# Stopped and killed

long = ['--recipe','demo','--model','plain','--policy','none','--size','16','--bs','18','--epochs','20','--precision','fp32','--no_report',
        '--quiet']  # in bf16 another order of adding shows

@pytest.fixture(scope='module')
def whole(folder, tmp_path_factory):
    "What one undisturbed process gives"
    d = tmp_path_factory.mktemp('whole')
    together(1, script(*long,'--data',folder,'--out',d/'run'), d/'said')
    return d/'run'

def begun(g, out, epochs=3):
    "Wait until so many epochs are done"
    while not (out/'history.csv').exists() or len((out/'history.csv').read_text().splitlines())<=epochs:
        assert not os.waitpid(g.pids[0], os.WNOHANG)[0], g.said()
        time.sleep(.002)

@pytest.mark.parametrize('n,rank,sig,resumed', [(2,1,'KILL',2), (3,0,'KILL',1), (2,1,'TERM',3), (2,0,'TERM',1)])
def test_one_is_ended(folder, whole, tmp_path, n, rank, sig, resumed):
    "Whoever is ended, the others end, one line says how to go on, and any number of processes does"
    out = tmp_path/'run'
    g = Group(n, script(*long,'--data',folder,'--out',out), tmp_path/'said')
    begun(g, out)
    g.kill(rank, getattr(signal, f'SIG{sig}'))
    codes = g.wait(20)
    assert not (out/'results.json').exists(), 'it had finished before it was stopped'
    assert codes[rank]==(-signal.SIGKILL if sig=='KILL' else 128+signal.SIGTERM) and {*codes[:rank],*codes[rank+1:]}=={2}
    assert len(g.lines())==1 and f'cifar_fast_train --resume {out}' in g.lines()[0], g.said()
    together(resumed, lambda: resume_run(out, quiet=True) and 0, tmp_path/'again')
    assert not [o for o in out.iterdir() if o.name.startswith('.')]
    assert distance(whole, out)<1e-5 and len(rows(out/'history.csv'))==20

def test_ctrl_c(folder, tmp_path):
    "Ctrl-C comes to all at once"
    out = tmp_path/'run'
    g = Group(2, script(*long,'--data',folder,'--out',out), tmp_path/'said')
    begun(g, out)
    for o in (1,0): g.kill(o, signal.SIGINT)
    assert set(g.wait(20))<={130,2}
    assert len(g.lines())==1 and f'cifar_fast_train --resume {out}' in g.lines()[0], g.said()

def test_one_hangs(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, 'peer_timeout', 2)
    out = tmp_path/'run'
    g = Group(2, script(*long,'--data',folder,'--out',out), tmp_path/'said')
    begun(g, out)
    g.kill(1, signal.SIGSTOP)
    try: assert g.wait(20, [0])==[2]
    finally: g.kill(1, signal.SIGKILL)
    assert g.wait(20)==[2,-9] and len(g.lines())==1 and f'--resume {out}' in g.lines()[0], g.said()

def test_resumes_exactly(folder, tmp_path):
    "With augmentation and BatchNorm: two processes that are stopped and resumed come to the very weights of two that were not"
    r = fixed.replace(data=str(folder), bs=24, epochs=4, model='resnet9', model_args=dict(width=4), policy='assignment', ema=.9)
    def train(out, end=None):
        class End(Callback):
            order = 90
            def after_epoch(self):
                if self.epoch+1==end: os._exit(3 if dist.get_rank() else 4)
        from cifar_fast import train as room
        from torch import distributed as dist
        if end: room.recipe_cbs = lambda *args, was=room.recipe_cbs: [*was(*args), End()]
        return train_recipe(r, out, quiet=True) and 0
    together(2, lambda: train(tmp_path/'whole'), tmp_path/'a')
    g = Group(2, lambda: train(tmp_path/'run', 2), tmp_path/'b')
    assert g.wait()==[4,3]
    together(2, lambda: resume_run(tmp_path/'run', quiet=True) and 0, tmp_path/'c')
    assert distance(tmp_path/'whole', tmp_path/'run')==0

def test_diverges(folder, tmp_path):
    "A loss that is no number ends all, with the line that one process has"
    g = Group(2, script(*long,'--lr','1e30','--data',folder,'--out',tmp_path/'run'), tmp_path/'said')
    assert g.wait()==[2,2] and len(g.lines())==1 and 'the loss became' in g.lines()[0], g.said()
    assert not (tmp_path/'run').exists()

# Bad input

@pytest.mark.parametrize('args,said', [
    (['--bs','1'], 'bs is 1: choose at least 2, an image for each process'), (['--seeds','2'], 'several processes train one run'),
    (['--sweep','lr=.1,.2'], 'several processes train one run'), (['--graph'], 'cannot train with --graph'),
    (['--compile'], 'cannot train with --compile'), (['--device','cuda:1'], 'device is cuda:1: choose cpu or cuda'),
    (['--recipe','demp'], "unknown recipe 'demp'"), (['--out','/dev/null'], 'is a file')])
def test_bad_input(folder, tmp_path, args, said):
    given = [o for o in long if o not in ('--bs','18')] if '--bs' in args else long
    if '--recipe' in args: given = long[2:]
    out = [] if '--out' in args else ['--out',tmp_path/'run']
    g = Group(2, script(*given,*args,'--data',folder,*out), tmp_path/'said')
    assert g.wait()==[2,2] and len(g.lines())==1 and said in g.lines()[0], g.said()
    assert not (tmp_path/'run').exists()

def of(rank): return int(os.environ['RANK'])==rank

def test_different_data(folder, tmp_path):
    other = draw_folder(tmp_path/'other', n_test=25, seed=1)
    g = Group(2, lambda: script(*long,'--data',other if of(1) else folder,'--out',tmp_path/'run')(), tmp_path/'said')
    assert g.wait()==[2,2] and len(g.lines())==1 and 'the processes have different data' in g.lines()[0], g.said()
    assert not (tmp_path/'run').exists()

def test_one_has_no_data(folder, tmp_path):
    "What only the second was told, the first tells"
    g = Group(2, lambda: script(*long,'--data',tmp_path/'nothing' if of(1) else folder,'--out',tmp_path/'run')(), tmp_path/'said')
    assert g.wait()==[2,2] and len(g.lines())==1 and str(tmp_path/'nothing') in g.lines()[0], g.said()

def test_other_scripts(whole, tmp_path):
    def report():
        sys.argv = ['cifar_fast_report',str(whole)]
        return main()
    g = Group(2, report, tmp_path/'said')
    assert g.wait()==[2,2] and g.lines()==['cifar_fast_report: this runs in one process: start it as it is']

def test_as_accurate(tmp_path):
    """ResNet-9 on the shapes by two processes: as far from the mean of three seeds of one as they are from each other, or nearly.
    Gradients that were added, not averaged, would be as far as twice the learning rate is"""
    r = recipes['demo'].replace(size=16, epochs=3, lr=.05, model_args=dict(width=8, scale=.125))
    def accuracy(n, seed, r=r):
        out = tmp_path/f'{n}_{seed}_{r.lr}'
        together(n, lambda: train_recipe(r, out, quiet=True, seed=seed) and 0, tmp_path/'said')
        return run_results(Run(out))['test_accuracy']
    one = [accuracy(1, seed) for seed in range(3)]
    def near(a): return abs(a-np.mean(one))<max(4*np.std(one, ddof=1), .05)
    two,twice = accuracy(2, 3),accuracy(1, 3, r.replace(lr=.1))
    assert min(one)>.2 and near(two) and not near(twice), (one,two,twice)

# As it is used

@pytest.mark.parametrize('launcher', [['torchrun','--nproc_per_node','2','--no-python'],
                                      ['accelerate','launch','--multi_gpu','--num_processes','2','--no_python']])
def test_launchers(folder, tmp_path, launcher):
    exe = Path(sys.executable).parent
    launch = shutil.which(launcher[0], path=f"{exe}:{os.environ['PATH']}")
    with socket.socket() as s:
        s.bind(('', 0))
        port = ['--master_port' if launcher[0]=='torchrun' else '--main_process_port', str(s.getsockname()[1])]
    args = ['--recipe','demo','--data',folder,'--size','16','--bs','24','--epochs','1','--no_report','--quiet','--out',tmp_path/'run']
    argv = [launch,*launcher[1:-1],*port,launcher[-1],exe/'cifar_fast_train',*args]
    p = subprocess.run([*map(str, argv)], capture_output=True, text=True, timeout=120)
    assert p.returncode==0, p.stderr
    assert Run(tmp_path/'run').config['device'].startswith('2 processes') and p.stdout.count('test accuracy')==1
