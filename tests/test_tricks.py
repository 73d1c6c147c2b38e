"The tricks do what their plain formulas say, in few operations, and let nobody wait"
import contextlib
import numpy as np,pytest,test_recipes,torch
import torch.nn.functional as F
from copy import deepcopy
from fastai.basics import Callback,DataLoaders,Learner,OptimWrapper
from torch import nn
from torch.optim.swa_utils import AveragedModel,get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode
from cifar_fast.core import precisions
from cifar_fast.data import ImageArrays
from cifar_fast.device import DeviceDL
from cifar_fast.loaders import ImageDL,cifar_dls
from cifar_fast.models import get_model
from cifar_fast.parts import Autocast,sgd
from cifar_fast.recipes import get_recipe,recipes
from cifar_fast.train import recipe_learner
from cifar_fast.tricks import *

class Ops(TorchDispatchMode):
    "The names of operations, but of those that only look at a tensor in another way"
    def __init__(self):
        super().__init__()
        self.seen = []
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and 'profiler' not in str(func): self.seen.append(str(func))
        return func(*args, **(kwargs or {}))

# --- Muon ----------------------------------------------------------------------------------------------------------

def plain_step(p, buf, lr, mom, wd, sgd_mom, bias_lr, head_lr):
    "One parameter's step as the formulas have it: Nesterov, the polynomial 3.4445x-4.775x^3+2.0315x^5 three times, an angle of `lr`"
    def nesterov(m): return p.grad+m*buf.mul_(m).add_(p.grad)
    if p.ndim!=4: return p.mul_(1-lr*wd).sub_(lr*(bias_lr if p.ndim==1 else head_lr)*nesterov(sgd_mom))
    x = nesterov(mom).flatten(1)
    x = x/(x.norm()+1e-7)
    for _ in range(3): x = 3.4445*x - 4.775*(x@x.T)@x + 2.0315*(x@x.T)@(x@x.T)@x
    p.mul_(len(p)**.5/p.norm()).sub_(lr*x.view_as(p))

def filters_and_others(seed=0):
    "Two shapes twice, a tall one, a bias and a head, channels last"
    g = torch.Generator().manual_seed(seed)
    shapes = (8,4,3,3),(8,4,3,3),(40,3,2,2),(6,8,1,1),(6,8,1,1),(8,),(10,6)
    made = [torch.randn(s, generator=g) for s in shapes]
    return [nn.Parameter(t.to(memory_format=torch.channels_last) if t.ndim==4 else t) for t in made]

def give_grads(ps, seed):
    for p,g in zip(ps, filters_and_others(seed)): p.grad = g.detach()

hyper = dict(lr=.2, momentum=.6, weight_decay=.05, sgd_momentum=.85, bias_lr=2., head_lr=.5)

def test_muon_is_its_formula(monkeypatch):
    "In fp32, as the formula is computed here; `orthogonalize` takes bf16 where there are instructions for it"
    monkeypatch.setattr('cifar_fast.tricks.has_bf16', lambda device: False)
    ps,qs = filters_and_others(),filters_and_others()
    opt,bufs = Muon(ps, **hyper),[torch.zeros_like(q) for q in qs]
    for i in range(4):
        for o in (ps,qs): give_grads(o, i+1)
        opt.step()
        with torch.no_grad():
            for q,buf in zip(qs, bufs): plain_step(q, buf, *hyper.values())
        for p,q in zip(ps, qs): torch.testing.assert_close(p, q, atol=2e-5, rtol=1e-4)
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in ps if p.ndim==4)

def test_muon_takes_its_settings_as_tensors():
    "As a CUDA graph has them: filled in place, and never read"
    class Unread(Ops):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert '_local_scalar_dense' not in str(func)
            return super().__torch_dispatch__(func, types, args, kwargs)
    ps,qs = filters_and_others(),filters_and_others()
    lr,mom = torch.tensor(0.),torch.tensor(0.)
    ours,theirs = Muon(ps, **dict(hyper, lr=lr, momentum=mom)),Muon(qs, **hyper)
    for i,(a,b) in enumerate(((.3,.5),(.1,.7),(.05,.6))):
        for o in (ps,qs): give_grads(o, i+1)
        theirs.param_groups[0].update(lr=a, momentum=b)
        lr.fill_(a)
        mom.fill_(b)
        with Unread(): ours.step()
        theirs.step()
    for p,q in zip(ps, qs): torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-5)

@pytest.mark.parametrize('name,most', [('speedrun',82),('fast',108)])
def test_operations_of_a_muon_step(name, most):
    r = get_recipe(name)
    net = get_model(r.model, **r.model_args).to('meta').to(memory_format=torch.channels_last)
    opt = Muon(net.parameters(), lr=r.lr, momentum=r.mom, weight_decay=r.wd, **r.opt_args)
    for p in net.parameters(): p.grad = torch.empty_like(p) if p.requires_grad else None
    opt.step()  # the state is made once
    with Ops() as ops: opt.step()
    assert len(ops.seen)<=most and not [o for o in ops.seen if 'zeros' in o], ops.seen

def test_muon_goes_on_from_its_state():
    "To the bit, also where a parameter has had no gradient yet"
    def stepped(ps, opt, seeds):
        for s in seeds:
            give_grads(ps, s)
            ps[0].grad = None
            opt.step()
    ps = filters_and_others()
    opt = Muon(ps, **hyper)
    stepped(ps, opt, (1,2))
    assert len(opt.state_dict()['state'])==len(ps)-1
    qs = [nn.Parameter(p.detach().clone()) for p in ps]
    again = Muon(qs, lr=1.)
    again.load_state_dict(deepcopy(opt.state_dict()))
    stepped(ps, opt, (3,4))
    stepped(qs, again, (3,4))
    assert all(torch.equal(p, q) for p,q in zip(ps, qs))

# --- EMA -----------------------------------------------------------------------------------------------------------

class Reference(Callback):
    "PyTorch's own average, beside the callback's"
    order,run_valid = EMA.order+1,False
    def before_fit(self): self.model_ = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(.9), use_buffers=True)
    def after_batch(self):
        if (self.epoch*self.n_iter+self.iter+1)%3: return
        self.model_.update_parameters(self.model)
        for (k,a),b in zip(self.ema.averaged.state_dict().items(), self.model_.state_dict().values()): assert torch.equal(a, b), k
        self.compared = True

def test_ema_is_pytorchs():
    "To the bit: weights, the statistics of batch norms, and their counts"
    torch.manual_seed(0)
    ds = [(torch.randn(3),torch.randn(1)) for _ in range(80)]
    net = nn.Sequential(nn.Linear(3,4), nn.BatchNorm1d(4), nn.Linear(4,1))
    dls = DataLoaders.from_dsets(ds, ds[:8], bs=4, device='cpu')
    learn = Learner(dls, net, loss_func=nn.MSELoss(), opt_func=sgd, cbs=[EMA(.9, every=3),Reference()])
    with learn.no_bar(), learn.no_logging(): learn.fit(3, lr=.1)
    assert learn.reference.compared and learn.model[1].num_batches_tracked!=60

class Means(Callback):
    "The mean as the training left it, and what is validated"
    order = EMA.order+1
    def after_train(self): self.mean = [p.clone() for p in self.ema.averaged.module.parameters()]
    def before_batch(self):
        if not self.training: self.shown = [p.clone() for p in self.model.parameters()]

def noise_learner(net, cbs):
    torch.manual_seed(0)
    ds = [(torch.randn(4),torch.randn(4)) for _ in range(40)]
    return Learner(DataLoaders.from_dsets(ds, ds[:8], bs=4, device='cpu'), net, loss_func=nn.MSELoss(), opt_func=sgd, cbs=cbs)

def test_ema_of_a_shared_layer():
    "Its mean is validated, too, and the weights come back"
    shared = nn.Linear(4,4)
    learn = noise_learner(nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(4,4)), [EMA(.9, every=1),Means()])
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, lr=.1)
        assert all(torch.equal(a, b) for a,b in zip(learn.means.mean, learn.means.shown)) and len(learn.means.mean)==4
        before = learn.validate()
        assert learn.validate()==before

def test_ema_begins_anew_after_an_interrupt():
    "What is left of the mean of another training has no part in it"
    class Stop(Callback):
        def after_epoch(self): raise KeyboardInterrupt
    learn = noise_learner(nn.Linear(4,4), EMA(.9, every=1))
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(KeyboardInterrupt): learn.fit(1, lr=.1, cbs=Stop())
        nn.init.zeros_(learn.model.weight)
        learn.fit(1, lr=0.)
    assert not learn.model.weight.any()

# --- flips and sizes -----------------------------------------------------------------------------------------------

def random_images(n=60, n_test=10):
    x = np.random.default_rng(0).integers(0, 256, (n+n_test,32,32,3), dtype=np.uint8)
    y = np.arange(n+n_test)%10
    return ImageArrays(x[:n], y[:n], x[n:], y[n:], [str(i) for i in range(10)], 'random', '-')

class Seen(Callback):
    "What the net sees, and the number of each image"
    run_valid,order = False,Autocast.order
    def before_fit(self): self.rows = []
    def before_batch(self): self.rows.append((self.x.clone(),torch.as_tensor(self.dls.train.idxs[self.iter*self.dl.bs:][:len(self.x)])))

@pytest.mark.parametrize('pipeline,at_once', [('item',None),('device',None),('device',2),('device',100)])
def test_flips_and_sizes(pipeline, at_once):
    "Whoever makes them, loader or callback, one batch or many at a time: the same images, to the bit; the size changes within an epoch"
    dls = cifar_dls(random_images(), bs=8, policy='none', device='cpu', pipeline=pipeline)
    dls.train.at_once = at_once
    plain = torch.cat([x for x,_ in dls.train.new(shuffle=False, drop_last=False)])
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3,10))
    sizes = ((0,16),(.25,24),(.75,32))  # of 21 steps, those from the 6th and the 16th on
    cbs = [AlternatingFlip(3),ProgressiveResize(sizes),Seen()]
    learn = Learner(dls, net, loss_func=nn.CrossEntropyLoss(), opt_func=sgd, lr=.1, cbs=cbs)
    with learn.no_bar(), learn.no_logging(): learn.fit(3)
    first,sides = torch.rand(60, generator=torch.Generator().manual_seed(3))<.5,[16]*6+[24]*10+[32]*5
    assert [len(x) for x,_ in learn.seen.rows]==[8]*21 and isinstance(dls.train, ImageDL if pipeline=='item' else DeviceDL)
    for i,(side,(x,idxs)) in enumerate(zip(sides, learn.seen.rows)):
        want = torch.where((first[idxs]^(i//7==1))[:,None,None,None], plain[idxs].flip(-1), plain[idxs])
        if side<32: want = F.interpolate(want, size=(side,side), mode='bilinear', antialias=True)
        assert torch.equal(x, want) and x.is_contiguous(memory_format=torch.channels_last), i
    assert not getattr(dls.train, 'wants', None) and learn.dls.train.one_batch()[0].shape[-1]==32  # nothing is left behind

@pytest.mark.parametrize('at_once,most', [(1,12*55),(100,60)])
def test_operations_of_a_pass(at_once, most):
    "Of twelve batches by the assignment's policy: for each, or for all together"
    dl = cifar_dls(random_images(), bs=5, device='cpu', pipeline='device').train
    dl.one_batch()  # reads the images, and makes the colour of holes
    dl.at_once = at_once
    with Ops() as ops: assert len([*dl])==12
    assert len(ops.seen)<=most+4, len(ops.seen)  # the permutation

def test_resumes_where_passes_are_made_at_once(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(DeviceDL, '_batches_at_once', lambda self, xs: 2)
    test_recipes.test_resumes_with_all_tricks(folder, tmp_path, monkeypatch)

def test_images_come_in_the_precision_of_the_training():
    "On a GPU; a CPU casts batch by batch, as ever"
    dls = cifar_dls(random_images(), bs=8, device='cpu', pipeline='device')
    learn = Learner(dls, nn.Flatten(), loss_func=nn.CrossEntropyLoss(), cbs=Autocast())
    learn.dl,learn.training = dls.train,True
    for device,wants in (('cpu',{}),('cuda',dict(dtype=precisions['bf16']))):
        dls.train._device = torch.device(device)
        learn.autocast.before_train()
        assert dls.train.wants==wants
    dls.train._device = torch.device('cpu')
    assert next(iter(dls.train))[0].dtype==torch.bfloat16 and next(iter(dls.train))[0].dtype==torch.float32

# --- nobody waits --------------------------------------------------------------------------------------------------

class NothingSent(TorchDispatchMode):
    "Refuses to send something to the `meta` device, which itself refuses to be read"
    on = False
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        res,kwargs = func(*args, **(kwargs or {})),kwargs or {}
        ins,outs = ([o for o in torch.utils._pytree.tree_leaves(p) if isinstance(o, torch.Tensor)] for p in ((args,kwargs),res))
        sent = [o for o in ins if o.device.type=='cpu' and (o.ndim or 'copy' in str(func))]
        assert not (self.on and sent and any(o.device.type=='meta' for o in ins+outs)), f'{func} sends {[tuple(o.shape) for o in sent]}'
        assert not (self.on and 'lift_fresh' in str(func)), func
        return res

class Between(Callback):
    "Counts the batches, and watches from the end of the first"
    run_valid,order,n = False,1000,0
    def __init__(self, mode): self.mode = mode
    def after_batch(self): self.n,self.mode.on = self.n+1,True
    def after_train(self): self.mode.on = False

def batches_without_waiting(r, at_once=None, cbs=()):
    "How many batches of an epoch by recipe `r` there are before something waits for the device"
    learn = recipe_learner(r, random_images(), device='cpu', precision='fp32')
    learn.dls.to('meta')
    learn.model.to('meta')
    learn.dls.train.at_once = at_once
    if r.opt=='sgd': learn.opt_func = lambda ps, lr: OptimWrapper(ps, torch.optim.SGD, lr=lr, momentum=.9)  # none is fused on `meta`
    mode = NothingSent()
    learn.add_cbs([Between(mode),*cbs])
    with learn.no_bar(), learn.no_logging(), contextlib.suppress(NotImplementedError,RuntimeError), mode:
        learn.fit_recipe(r)  # until the losses of the epoch are read
    return learn.between.n

@pytest.mark.parametrize('name,at_once', [*((o,4) for o in recipes),('speedrun',None),('dawn10',None)])
def test_no_batch_waits(name, at_once):
    "With any recipe: nothing is read from the device between two batches and nothing sent to it"
    r = get_recipe(name).replace(epochs=1, bs=5)
    assert batches_without_waiting(r, at_once)==12
    if name in ('speedrun','dawn10'): assert batches_without_waiting(r.replace(ema=.9), at_once)==12

class Reads(Callback):
    run_valid = False
    def after_batch(self): self.iter==6 and float(self.loss.detach())
class Sends(Callback):
    run_valid = False
    def before_batch(self):
        if self.iter==6: self.learn.xb = (self.x*torch.ones(5,1,1,1).to('meta'),)

def test_waiting_is_seen(monkeypatch):
    "By a loss that is read, by something that is sent, and by an update of PyTorch's own average"
    r = get_recipe('dawn10').replace(epochs=1, bs=5)
    assert batches_without_waiting(r, cbs=[Reads()])==6
    with pytest.raises(AssertionError, match='sends'): batches_without_waiting(r, cbs=[Sends()])
    monkeypatch.setattr(EMA, '_update', lambda self: self.averaged.update_parameters(self.model))
    with pytest.raises(AssertionError, match='sends'): batches_without_waiting(r.replace(ema=.9))
