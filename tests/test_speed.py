"What makes a training faster changes nothing else"
import os,shutil
from collections import Counter
from contextlib import nullcontext
from functools import partial
import pytest,torch
import torch.nn.functional as F
from fastai.basics import Callback,Learner,OptimWrapper
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from cifar_fast.learner import CifarLearner,cifar_learner,compile_model
from cifar_fast.core import CifarFastError,pick_device
from cifar_fast.data import load_images
from cifar_fast.device import DeviceDL
from cifar_fast.loaders import cifar_dls
from cifar_fast.models import get_model,resnet9,speed_net
from cifar_fast.recipes import get_recipe
from cifar_fast.runs import Run
from cifar_fast.train import recipe_learner,resume_run,train_recipe
from cifar_fast.tricks import ProgressiveResize

def trained(folder, out, mom=.9, moms=(), **how):
    "Weights and losses of two epochs of a small ResNet-9"
    r = get_recipe('dawn10').replace(data=str(folder), epochs=2, bs=24, lr=.05, mom=mom, moms=moms,
                                    model_args=dict(width=8, scale=.125))
    train_recipe(r, out, precision='fp32', quiet=True, **how)
    return load_file(out/'model.safetensors'),[s['loss'] for s in Run(out).read_table('steps.csv')]

@pytest.mark.skipif(not (os.environ.get('CIFAR_FAST_SLOW') and shutil.which('g++')), reason='minutes of compiling: set CIFAR_FAST_SLOW=1')
def test_compile(folder, tmp_path):
    "Compiled arithmetic rounds differently, and no more than that"
    a,losses = trained(folder, tmp_path/'plain')
    b,compiled = trained(folder, tmp_path/'compiled', compile=True)
    assert compiled==pytest.approx(losses, abs=1e-4)
    for k in a: torch.testing.assert_close(a[k], b[k], atol=1e-3, rtol=1e-3)

class CountOps(TorchDispatchMode):
    "The operations that make something new, each a kernel on a GPU; views are free"
    views = 'detach view permute t unsqueeze expand slice select alias split transpose _unsafe_view lift_fresh'.split()
    def __init__(self):
        super().__init__()
        self.ops = Counter()
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        if (name := f.overloadpacket.__name__) not in self.views: self.ops[name] += 1
        return f(*args, **(kwargs or {}))

def small_learner(name, folder, **how):
    r = get_recipe(name)
    r = r.replace(bs=8, model_args=dict(r.model_args, width=4))
    return recipe_learner(r, load_images(folder, 32), device='cpu', precision='fp32', **how)

def ops_by_hand(learn):
    learn.model.train()
    mode,batches = CountOps(),iter(learn.dls.train)
    for _ in range(4):
        mode.ops.clear()
        with mode:
            x,y = (o.as_subclass(torch.Tensor) for o in next(batches))
            F.cross_entropy(learn.model(x), y, label_smoothing=learn.loss_func.func.label_smoothing).backward()
            learn.opt.step()
            learn.opt.zero_grad()
    return mode.ops

# the last on a CPU only, where it costs nothing
around = Counter(clone=1, argmax=1, eq=1, sum=1, add_=1, lerp=1, div=2, _local_scalar_dense=1)

@pytest.mark.parametrize('name, tricks', [('assignment',0),('speedrun',12),('fast',12)])
def test_operations_of_a_step(folder, name, tricks):
    "Beside what a loop by hand has: a copy of the loss, right answers counted, a running loss; and flips, small images and EMA"
    learn,seen = small_learner(name, folder),[]
    class Mark(Callback):
        order,run_valid = -1000,False
        def before_batch(self): seen.append(Counter(mode.ops))
    with learn.no_bar(), learn.no_logging(), CountOps() as mode: learn.fit(1, .01, cbs=Mark())
    step = seen[4]-seen[3]
    more = step-ops_by_hand(learn)
    if tricks: assert more.total()<=around.total()+tricks, more
    else: assert more==around

@pytest.mark.parametrize('name', ['assignment','speedrun','fast'])
def test_warm_up_leaves_no_trace(folder, name):
    "Weights, mean of the weights and history are bit-equal with and without"
    class Rehearse(Callback):
        def before_epoch(self): self.learn.warm_up()
    def weights(*cbs):
        learn = small_learner(name, folder)
        with learn.no_bar(), learn.no_logging(): learn.fit(2, .01, cbs=cbs)
        return learn.model.state_dict(),learn.history.steps,torch.rand(2)
    (a,steps,x),(b,others,y) = weights(),weights(Rehearse())
    assert all(torch.equal(a[k], b[k]) for k in a) and steps==others and torch.equal(x, y)

def test_validation_is_rehearsed(folder):
    "Before the first step, without gradients, in batches of both lengths; what follows is as ever"
    learn,seen = small_learner('assignment', folder),[]
    learn.dls.valid.bs = 9  # 24 images: batches of 9, 9 and 6
    class Look(Callback):
        order = -1000
        def before_epoch(self):
            hook = self.model.register_forward_hook(lambda m,x,y: seen.append((m.training,torch.is_grad_enabled(),len(y))))
            self.learn.warm_up()
            hook.remove()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, .01, cbs=Look())
    assert seen[0]==(True,True,8) and sorted(seen[1:])==[(False,False,6),(False,False,9)]
    assert len(learn.history.epochs)==1 and len(learn.history.steps)==9

def test_rehearsal_has_what_the_training_has(folder, monkeypatch):
    "Off the CPU batches are made in bf16, those of the rehearsal too, or everything would be compiled and recorded for others"
    monkeypatch.setattr(torch, 'autocast', lambda *args, **kwargs: nullcontext())  # the device that has shapes and no numbers has none
    dls = cifar_dls(load_images(folder, 32), 8, 'flip_crop', device='meta', pipeline='device')
    opt,kinds = partial(OptimWrapper, opt=torch.optim.SGD),[]
    net,growing = resnet9(width=4).to('meta'),ProgressiveResize(((0,16),(.5,32)))
    learn = cifar_learner(dls, net, precision='bf16', opt_func=opt, cbs=growing)
    def kind(self, x, *_): kinds.append((x.dtype,x.stride()))
    class Look(Callback):
        run_valid = False
        def before_epoch(self):
            with monkeypatch.context() as m:
                m.setattr(CifarLearner, '_alone', lambda self, x, y: self.training and kind(self, x))
                self.learn.warm_up()
        def before_batch(self): kind(self, self.x)
    with learn.no_bar(), learn.no_logging(), pytest.raises(Exception, match='meta'): learn.fit(1, .01, cbs=Look())
    assert len(kinds)==2+9 and len({*kinds})==2 and {d for d,_ in kinds}=={torch.bfloat16}

def test_no_step_holds_on_to_the_last(folder, monkeypatch):
    """What accumulates the gradients is a new thing in each rehearsed step and each that is recorded: an old one would run on the stream of
    the step that made it, which ends the recording"""
    node = lambda p: torch.autograd.graph.get_gradient_edge(p).node
    real,steps = CifarLearner._alone,[]
    def alone(self, *args):
        ps = [p for p in self.model.parameters() if p.requires_grad]
        assert not any(node(p).metadata for p in ps)
        handle = self.model.register_forward_hook(lambda *_: [node(p).metadata.update(made=1) for p in ps] and None)
        try: return real(self, *args)
        finally:
            handle.remove()
            steps.append(self.training)
    monkeypatch.setattr(CifarLearner, '_alone', alone)
    monkeypatch.setattr(CifarLearner, '_check_graph', lambda self: None)
    def graphed(self, step): return [step() for _ in range(3)] and step
    monkeypatch.setattr(CifarLearner, '_graphed', graphed)
    learn = small_learner('assignment', folder)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, .01)  # its last step is over, but for what the learner still has of it
        learn.with_graph = True
        learn.fit(1, .01)
    assert steps.count(True)==4+9

@pytest.mark.parametrize('why', [KeyboardInterrupt(),RuntimeError('no')], ids=lambda o: type(o).__name__)
@pytest.mark.parametrize('how', [{}, dict(compile=True), dict(graph=True)], ids=lambda o: ''.join(o) or 'plain')
def test_nothing_is_left(folder, monkeypatch, why, how):
    "An error or Ctrl-C, wherever it comes: the model is a plain one, and after a rehearsal what it was before"
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend='eager'))
    monkeypatch.setattr(CifarLearner, '_check_graph', lambda self: None)
    monkeypatch.setattr(CifarLearner, '_graphed', lambda self, step: step)
    def stop(*args): raise why
    class Rehearse(Callback):
        def before_epoch(self): self.learn.warm_up()
    class Stop(Callback):
        order,run_valid = 1000,False
        def after_batch(self): self.iter==2 and stop()
    learn = small_learner('fast', folder, **how)
    before = {k: v.clone() for k,v in learn.model.state_dict().items()}
    own = set(vars(learn.model))
    rehearsals = (Learner,'_step'),(CifarLearner,'_rehearse_validation'),(CifarLearner,'_put_back')
    for where in (*rehearsals,(DeviceDL,'after_iter'),(Learner,'_do_epoch_validate'),None):
        cbs = [Rehearse()]*(not how) + [Stop()]*(not where)
        with monkeypatch.context() as m, learn.no_bar(), learn.no_logging(), pytest.raises((type(why),CifarFastError)):
            if where: m.setattr(*where, stop)
            learn.fit(1, .01, cbs=cbs)
        learn.remove_cbs([Rehearse,Stop])
        assert set(vars(learn.model))==own and 'forward' not in own and not torch.is_autocast_enabled('cpu')
        assert (learn._steps,learn._compiled,'one_batch' in vars(learn))==({},None,False)
        if where in rehearsals: assert all(torch.equal(before[k], v) for k,v in learn.model.state_dict().items())

@pytest.mark.parametrize('net', [resnet9,speed_net], ids=lambda o: o.__name__)
def test_compiles_the_whole_net(monkeypatch, net):
    "One graph that has every layer in it"
    graphs = []
    def backend(g, xs): return graphs.append([n.op for n in g.graph.nodes]) or g.forward
    torch._dynamo.reset()
    model = net(width=4)
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend=backend))
    compile_model(model)
    model(torch.randn(8, 3, 32, 32))
    layers = [m for m in model.modules() if isinstance(m, (torch.nn.Conv2d,torch.nn.BatchNorm2d))]
    assert len(graphs)==1 and len(graphs[0])>2*len(layers)

@pytest.mark.parametrize('name', ['assignment','fast'])
def test_compiles_once_a_size(folder, monkeypatch, name):
    "The warm-up compiles for each size of image what the training runs, and the validation nothing"
    from torch._dynamo.testing import CompileCounterWithBackend
    torch._dynamo.reset()  # what other tests made it leave alone it compiles again
    counter,seen = CompileCounterWithBackend('aot_eager'),[]
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend=counter))
    class Look(Callback):
        def before_train(self): seen.append(counter.frame_count)
        after_epoch = before_train
    learn = small_learner(name, folder, compile=True)
    with learn.no_bar(), learn.no_logging(): learn.fit(2, .01, cbs=Look())
    sizes = {32, *(s for _,s in learn.progressive_resize.sizes)} if name=='fast' else {32}
    assert seen==[len(sizes)]*4 and learn.warmup_seconds>0

def test_static_step(folder, tmp_path, monkeypatch):
    "A run whose steps are taken as a graph would take them, and the same run as ever: bit-equal, and it resumes"
    monkeypatch.setattr(CifarLearner, '_graphed', lambda self, step: step)
    monkeypatch.setattr(CifarLearner, '_check_graph', lambda self: None)
    a,losses = trained(folder, tmp_path/'plain')
    b,static = trained(folder, tmp_path/'static', graph=True)
    assert losses==static and all(torch.equal(a[k], b[k]) for k in a)
    (tmp_path/'static'/'results.json').unlink()
    res = resume_run(tmp_path/'static', quiet=True)
    assert res['warmup_seconds']==0 and res['train_seconds']>0 and res['valid_seconds']>0

def test_static_step_of_a_momentum_that_was_none(folder, tmp_path, monkeypatch):
    "The optimizer begins without momentum, and the schedule brings one"
    monkeypatch.setattr(CifarLearner, '_graphed', lambda self, step: [step() for _ in range(3)] and step)
    monkeypatch.setattr(CifarLearner, '_check_graph', lambda self: None)
    a,b = (trained(folder, tmp_path/str(o), 0., (.5,.3,.5), graph=o)[1] for o in (False,True))
    assert a==pytest.approx(b, rel=1e-4)

def test_static_step_of_muon(folder, monkeypatch):
    "The learning rate as a tensor, small images, flips and EMA: but for the rounding of the learning rate as without"
    monkeypatch.setattr(CifarLearner, '_graphed', lambda self, step: step)
    monkeypatch.setattr(CifarLearner, '_check_graph', lambda self: None)
    def losses(**how):
        learn = small_learner('fast', folder, **how)
        with learn.no_bar(), learn.no_logging(): learn.fit_recipe(get_recipe('fast').replace(bs=8, epochs=1, lr=.01))
        return [s['loss'] for s in learn.history.steps]
    assert losses(graph=True)==pytest.approx(losses(), rel=1e-3)

@pytest.mark.parametrize('name', ['resnet9','resnet18','dilated_net','speed_net'])
def test_nothing_in_a_net_refuses_to_repeat(name):
    "Of the poolings to a size PyTorch has on a GPU no gradient that repeats to the bit, unless it is the mean of everything"
    with CountOps() as mode: get_model(name)(torch.randn(4, 3, 32, 32)).sum().backward()
    assert not [o for o in mode.ops if 'adaptive' in o] and mode.ops['convolution_backward']>5

def test_what_cannot_repeat_is_said_in_a_line(folder, monkeypatch):
    class Put(torch.nn.Module):
        def forward(self, x): return x.clone().put_(torch.tensor([0]), torch.zeros(1))
    learn = small_learner('assignment', folder)
    learn.model = torch.nn.Sequential(Put(), learn.model)
    torch.use_deterministic_algorithms(True)
    try:
        with learn.no_bar(), learn.no_logging(), pytest.raises(CifarFastError, match='^put_ does not .*: leave out --deterministic'):
            learn.fit(1, .01)
    finally: torch.use_deterministic_algorithms(False)

def test_the_chosen_gpu_is_the_current_one(monkeypatch):
    "A recorded step has a stream of its own, which is one of the current GPU; so is what a clock waits for"
    chosen = []
    monkeypatch.setattr(torch, 'empty', lambda *args, **kwargs: torch.zeros(1))
    monkeypatch.setattr(torch.cuda, 'set_device', chosen.append)
    for o in ('cpu','cuda','cuda:1'): pick_device(o)
    assert chosen==[torch.device('cuda', 1)]

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')

@pytest.fixture
def no_tf32(monkeypatch):
    for o in (torch.backends.cudnn,torch.backends.cuda.matmul): monkeypatch.setattr(o, 'allow_tf32', False)

@on_cuda
@pytest.mark.usefixtures('no_tf32')
@pytest.mark.parametrize('how', [dict(graph=True), dict(compile=True), dict(compile=True, graph=True)], ids=str)
def test_on_cuda(folder, tmp_path, how):
    "Graphs replay what was recorded, compiled or not"
    a,losses = trained(folder, tmp_path/'plain', device='cuda')
    b,fast = trained(folder, tmp_path/'fast', device='cuda', **how)
    assert fast==pytest.approx(losses, abs=1e-3)
    for k in a: torch.testing.assert_close(a[k], b[k], atol=1e-2, rtol=1e-2)

@on_cuda
def test_deterministic_on_cuda(folder, tmp_path):
    "With the switch a seed repeats to the bit, as a graph too"
    runs = [trained(folder, tmp_path/f'{i}', device='cuda', deterministic=True, graph=i>1) for i in range(4)]
    torch.use_deterministic_algorithms(False)
    for (a,_),(b,_) in ((runs[0],runs[1]),(runs[2],runs[3])): assert all(torch.equal(a[k], b[k]) for k in a)

@on_cuda
@pytest.mark.parametrize('graph', [False, True])
@pytest.mark.parametrize('name', ['dawn10','assignment','speedrun','fast','s004'])
def test_no_batch_waits_on_cuda(folder, name, graph):
    "PyTorch raises an error if anything between two batches waits for the GPU"
    class NoWaiting(Callback):
        order,run_valid = -100,False
        def before_batch(self):
            if self.iter==1: torch.cuda.set_sync_debug_mode('error')
        def after_train(self): torch.cuda.set_sync_debug_mode('default')
    learn = recipe_learner(get_recipe(name).replace(bs=8), load_images(folder, 32), device='cuda', graph=graph)
    try:
        with learn.no_logging(): learn.fit(2, .01, cbs=NoWaiting())
    finally: torch.cuda.set_sync_debug_mode('default')
    assert len(learn.history.steps)==18 and learn.warmup_seconds>0
