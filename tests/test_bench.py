"`bench` runs, leaves its files, and survives a contender that does not; its figures are not looked at"
import json,os,signal,subprocess,sys,time
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
import pytest,torch
from cifar_fast import bench as b,speedruns
from cifar_fast.all import CifarFastError,Recipe,get_recipe,machine_facts
from cifar_fast.cli import main
from PIL import Image
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils import collect_env
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

tiny = get_recipe('assignment').replace(model_args=dict(width=4), bs=16)
cpu = torch.device('cpu')
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')

@pytest.fixture(scope='module')
def ran(tmp_path_factory):
    out = tmp_path_factory.mktemp('bench')/'new'
    growing = tiny.replace(progressive_resizing=((0,16),(.5,32)))
    return out,b.bench(out, growing, device='cpu', quick=True, contenders=['device','device_graph','loop','resident'])

def test_files(ran):
    out,res = ran
    assert sorted(o.name for o in out.iterdir()) == ['bench.json','bench.md','bench.png']
    assert json.loads((out/'bench.json').read_text()) == json.loads(json.dumps(res))
    Image.open(out/'bench.png').verify()
    md = (out/'bench.md').read_text()
    said = 'device pipeline', 'roofline', 'quick: ', 'torch ', f"{res['hardware']['cores']} cores", '16×16, then 32×32'
    assert all(o in md for o in said)

def test_figures(ran):
    "FLOPs are those of both sizes; the figures of the contenders are there"
    res = ran[1]
    assert [len(c['rates']) for c in res['contenders']] == [3,0,3,3]
    assert all(c['error'] or min(c['rates'])>0 and c['memory']>50e6 for c in res['contenders'])
    net = b.recipe_net(Recipe(**res['recipe']))
    assert res['flops']==(b.training_flops(net, 16)+b.training_flops(net, 32))/2

def test_failing_contender(ran):
    "CUDA graphs cannot be had on a CPU: a row that says so"
    out,res = ran
    assert 'CUDA' in res['contenders'][1]['error']
    assert 'failed: ' + res['contenders'][1]['error'] in (out/'bench.md').read_text()

spec = dict(recipe=tiny, n=64, n_test=32, device=cpu, precision='fp32', workers=0)

def test_killed_contender():
    dead = b._Child('loop', spec)
    with dead.pool:
        dead.process.kill()
        for _ in range(2):
            dead.error = None
            assert dead.ask('turn', warm=1, steps=1, epochs=1) is None and 'process has ended' in dead.error

def test_slow_contender():
    "One that hangs is killed when its seconds are used up"
    slow,start = b._Child('loop', spec, limit=1.),time.monotonic()
    with slow.pool: assert slow.ask(time.sleep, 600) is None
    assert '1 s' in slow.error and not slow.process.is_alive() and time.monotonic()-start<60

def alive(pid):
    "Zombies, which wait for somebody to ask how they ended, are not"
    status = Path(f'/proc/{pid}/stat')
    return status.exists() and status.read_text().rpartition(')')[2].split()[0]!='Z'

@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='looks into /proc')
def test_orphans_end(tmp_path):
    "Nobody goes on computing for a parent that was killed"
    script = tmp_path/'parent.py'
    script.write_text("""import sys,time
from cifar_fast import bench as b
if __name__=='__main__':
    import torch
    child = b._Child('loop', dict(device=torch.device('cpu')))
    child.pool.submit(int).result()
    print(child.process.pid, flush=True)
    child.ask(time.sleep, 600)
""")
    parent = subprocess.Popen([sys.executable,script], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.kill()
    parent.wait()
    start = time.monotonic()
    while alive(child) and time.monotonic()-start<30: time.sleep(.1)
    assert not alive(child)

@pytest.mark.parametrize('name', ['device_compile','loop_compile'])
def test_compiled_contender(monkeypatch, name):
    "Compiling asks for a batch of a loader that is made anew from the timed one"
    torch._dynamo.reset()  # what other tests compiled here counts against its limit
    calls = []
    def backend(g, xs): return calls.append(g) or g.forward
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend=backend))
    assert b._contender(name, tiny, b.noise_images(64, 32, 32), cpu, 'fp32', 0).turn(warm=1, steps=2, epochs=1)>0 and calls

def test_step_costs():
    "Three operations and ten milliseconds a step, whatever the device computes before"
    x = torch.ones(8)
    def turn(warm, n, epochs, watch):
        for k in (warm,n):
            for _ in watch(iter(range(k))):
                for _ in range(3): x.neg_()
                time.sleep(.01)
    costs = b._ByHand.step_costs(SimpleNamespace(net=torch.nn.Linear(1, 1), turn=turn), warm=2, n=5)
    assert costs['kernels']==3 and 10<=costs['issue']<100 and 0<costs['busy']<5

class Tape(TorchDispatchMode):
    "A CUDA graph as a CPU can have it: the operations of a step, done once more with the same tensors"
    def __init__(self):
        super().__init__()
        self.ops = []
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        res = f(*args, **(kwargs or {}))
        self.ops.append((f,args,kwargs or {},res))
        return res
    @torch.no_grad()
    def replay(self):
        for f,args,kwargs,res in self.ops:
            for new,old in zip(tree_leaves(f(*args, **kwargs)), tree_leaves(res)):
                if isinstance(new, torch.Tensor) and new.data_ptr()!=old.data_ptr(): old.copy_(new)

def same_start(hands):
    "The weights of the first for all, and momenta as before the first step"
    start = {k: v.clone() for k,v in hands[0].net.state_dict().items()}
    for o in hands:
        o.net.load_state_dict(start)
        for s in o.opt.state.values(): s['momentum_buffer'].zero_()

def same_end(a, b):
    for k,v in a.net.state_dict().items(): torch.testing.assert_close(v, b.net.state_dict()[k], atol=1e-5, rtol=1e-4)

fast = get_recipe('fast').replace(model_args=dict(width=4, whiten=True), bs=16, ema=.9, progressive_resizing=((0,16),(.5,32)))

@pytest.mark.parametrize('growing', [tiny.replace(progressive_resizing=((0,16),(.5,32))),fast], ids=lambda o: o.opt)
def test_graph_by_hand(monkeypatch, growing):
    "A replayed step reads nothing but the batch, the learning rate of the moment and the net; each size has a graph of its own"
    for k,v in dict(CUDAGraph=Tape, graph=lambda o: o, Stream=lambda: None, stream=nullcontext, synchronize=lambda: None).items():
        monkeypatch.setattr(torch.cuda, k, v)
    eager,graph = (b._ByHand(growing, b.noise_images(64, 32, 32), cpu, 'fp32') for _ in range(2))
    graph.graph = True
    for g in graph.opt.param_groups: g['lr'] = torch.tensor(g['lr'])
    batches = [*islice(eager.batches, 6)]
    graph.train(graph.hypers(2), batches)
    assert [*graph.graphs]==[(16,3,16,16),(16,3,32,32)]
    same_start([eager,graph])
    for o in (eager,graph): o.train(o.hypers(6), batches)
    same_end(eager, graph)

class NoReading(TorchDispatchMode):
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        assert not any(o in str(f) for o in ('local_scalar_dense','nonzero','is_nonzero')), f
        return f(*args, **(kwargs or {}))

def test_loop_reads_nothing():
    "Flips, small images, Muon, and the EMA of the weights: no number of the device is waited for"
    hand = b._ByHand(fast, b.noise_images(96, 32, 32), cpu, 'fp32')
    batches,was = [*islice(hand.batches, 6)],[o.clone() for o in hand.averaged]
    with NoReading(): hand.train(hand.hypers(6), batches)
    assert was and not all(map(torch.equal, hand.averaged, was))

@on_cuda
@pytest.mark.parametrize('name', ['loop_graph','loop_compile_graph'])
def test_graph_by_hand_on_cuda(name):
    ims,cuda = b.noise_images(64, 32, 32),torch.device('cuda')
    eager,graph = (b._contender(o, tiny, ims, cuda, 'fp32', 0) for o in ('loop',name))
    batches = [*islice(eager.batches, 6)]
    graph.train(graph.hypers(1), batches)
    same_start([eager,graph])
    for o in (eager,graph): o.train(o.hypers(6), batches)
    same_end(eager, graph)

@on_cuda
@pytest.mark.parametrize('name', ['assignment','speedrun'])
def test_all_contenders_on_cuda(tmp_path, name):
    res = b.bench(tmp_path/'new', get_recipe(name).replace(model_args=dict(width=8)), device='cuda', quick=True, limit=300)
    assert [c['error'] for c in res['contenders']]==[None]*len(b._contenders)
    assert all(c['step']['kernels']>0 and c['step']['busy']>0 for c in res['contenders'])

def test_power_limit(monkeypatch):
    "It is asked of the very card that trains"
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: 'a card')
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: SimpleNamespace(uuid='12-34'))
    def run(command): return (0,'700.00 W','') if 'power.limit' in command and 'GPU-12-34' in command else (1,'','')
    monkeypatch.setattr(collect_env, 'run', run)
    facts = machine_facts(torch.device('cuda'))
    assert facts['hardware']['power']=='700.00 W' and b.machine_notes(facts)[0].startswith('a card, power limit 700.00 W;')

runs = '--recipe speedrun --data shapes10 --size 16 --epochs 1 --bs 500 --model_args width=8 --device cpu --precision fp32'.split()

def script(monkeypatch, *args):
    "The exit code of `cifar_fast_bench`, in this process"
    monkeypatch.setattr(sys, 'argv', ['cifar_fast_bench',*map(str, args)])
    return main()

@pytest.fixture
def steps(monkeypatch):
    "A clock that counts the steps of the optimizer, and moves on a long way with each net that is evaluated"
    ticks = []
    hooks = [register_optimizer_step_post_hook(lambda *_: ticks.append(1)),
             register_module_forward_hook(lambda m,*_: None if m.training else ticks.append(1000))]
    monkeypatch.setattr(speedruns, 'when_done', lambda: sum(ticks))
    yield
    for o in hooks: o.remove()

def test_runs(monkeypatch, tmp_path, steps):
    "The training is timed, the whole of it, and nothing else"
    assert script(monkeypatch, *runs, '--runs', 2, '--out', tmp_path/'r')==0
    res = json.loads((tmp_path/'r'/'runs.json').read_text())
    assert [r['seed'] for r in res['runs']]==[0,1]
    assert [r['train_seconds'] for r in res['runs']]==[12]*2 and res['runs'][0]['test_accuracy']!=res['runs'][1]['test_accuracy']
    assert res['recipe']['model_args']==dict(width=8) and 'speedrun, 2 runs' in (tmp_path/'r'/'runs.md').read_text()

def test_runs_do_not_time_the_warm_up(monkeypatch, tmp_path, steps):
    "In which the net is compiled, and on a GPU the steps are recorded"
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend='eager'))
    assert script(monkeypatch, *runs, '--runs', 1, '--compile', '--out', tmp_path/'r')==0
    assert json.loads((tmp_path/'r'/'runs.json').read_text())['runs'][0]['train_seconds']==12
    row = next(o for o in (tmp_path/'r'/'runs.md').read_text().splitlines() if 'train seconds' in o)
    assert [o.strip() for o in row.split('|')[2:6]]==['12.0000','','12.0000','12.0000']  # one run has no spread

def test_interrupted_runs(monkeypatch, tmp_path, capfd):
    "Ctrl-C keeps the runs that were finished"
    def run(recipe, images, device, how):
        if how['seed']==2: os.kill(os.getpid(), signal.SIGINT)
        return dict(seed=how['seed'], test_accuracy=.9+how['seed']/100, tta_accuracy=.9, prepare_seconds=.1, train_seconds=1.)
    monkeypatch.setattr(speedruns, '_timed_run', run)
    def leave(code): raise SystemExit(code)
    monkeypatch.setattr(os, '_exit', leave)
    with pytest.raises(SystemExit, match='130'): script(monkeypatch, *runs, '--runs', 9, '--out', tmp_path/'r')
    assert f"stopped. The runs that were finished are in {tmp_path/'r'}" in capfd.readouterr().err
    assert [r['seed'] for r in json.loads((tmp_path/'r'/'runs.json').read_text())['runs']]==[0,1]
    row = next(o for o in (tmp_path/'r'/'runs.md').read_text().splitlines() if 'test accuracy' in o)
    assert [float(o) for o in row.split('|')[2:6]]==[.905,.0071,.9,.91]

@pytest.mark.parametrize('args,message', [
    (['--runs',0], 'number of runs'), (['--runs',2,'--quick'], 'leave out --quick'), (['--runs',2,'--seed',1], '--seed'),
    (['--runs',2,'--limit',9], '--limit'),
    (['--compile'], '--compile goes with --runs'), (['--contenders','devise'], "did you mean 'device'"),
    (['--data','shape10','--runs',2], 'shape10'), (['--data','shapes10','--runs',1,'--test',.3], 'test is 0.3: choose none'),
    (['--recipe','demo','--runs',1,'--valid_pct',.1,'--patience',1], 'patience is 1: choose none')])
def test_bad_options(monkeypatch, tmp_path, capsys, args, message):
    assert script(monkeypatch, '--device', 'cpu', '--out', tmp_path/'r', *args)==2
    err = capsys.readouterr().err
    assert message in err and err.count('\n')==1 and not (tmp_path/'r').exists()

def test_bad_input(tmp_path):
    (tmp_path/'mine').touch()
    with pytest.raises(CifarFastError, match='is not empty'): b.bench(tmp_path, tiny)
    for match,kwargs in {"did you mean 'assignment'": dict(recipe='asignment'), "did you mean 'device'": dict(contenders=['devise']),
                         'batch size is 100000': dict(recipe=tiny.replace(bs=100_000)), 'device': dict(device='abacus')}.items():
        with pytest.raises(CifarFastError, match=match): b.bench(tmp_path/'new', **kwargs)
    assert not (tmp_path/'new').exists()
