"Grad-CAM against the reference implementation, in every setting a model may be in, and with nothing left behind"
import contextlib,gc,os,shutil
from copy import deepcopy
from dataclasses import replace
import numpy as np,pytest,torch
import torch.nn.functional as F
from torch import nn
from fastai.callback.core import Callback,CancelValidException
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.torch_core import set_seed
from cifar_fast.core import CifarFastError
from cifar_fast.data import load_images
from cifar_fast.gradcam import GradCAMCallback,cam_layers,find_layer,grad_cam
from cifar_fast.learner import cifar_learner
from cifar_fast.loaders import cifar_dls,image_batch
from cifar_fast.models import get_model,resnet9
torch.set_num_threads(1)

@pytest.fixture(scope='module')
def ims(): return load_images('shapes10')
@pytest.fixture(scope='module')
def dls(ims): return cifar_dls(ims, bs=32, policy='flip_crop', device='cpu')
@pytest.fixture(scope='module')
def x(dls, ims): return image_batch(dls, ims.test_x[:40]).as_subclass(torch.Tensor).contiguous()

def with_statistics(net, x):
    "`net` in eval mode, its BatchNorms with the statistics of `x`, so that its maps are no caricature"
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d): m.momentum = None
    with torch.no_grad(): net.train()(x)
    return net.eval()

@pytest.fixture
def net(x):
    torch.manual_seed(0)
    return with_statistics(resnet9(width=4, scale=.125), x)

def close(a, b, eps=1e-5): return (a-b).abs().max()<=eps

# --- the reference --------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module', params=['resnet9','resnet18','dilated_net'])
def full_net(request, x):
    torch.manual_seed(0)
    return with_statistics(get_model(request.param), x)

@pytest.mark.parametrize('plus', [False,True])
@pytest.mark.parametrize('given', [False,True])
def test_equals_the_reference(full_net, x, plus, given):
    "Three nets, four depths, given and predicted classes, Grad-CAM and Grad-CAM++: at most 1e-5 apart in fp32"
    ref = pytest.importorskip('pytorch_grad_cam', reason='the package grad-cam is not installed (pip install grad-cam)')
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    x,targets = x[:6],[3,0,9,5,5,1] if given else None
    layers = cam_layers(full_net, x)
    ours = grad_cam(full_net, x, layers, targets, plus)
    assert len(layers)==4
    for name in layers:
        with (ref.GradCAMPlusPlus if plus else ref.GradCAM)(model=full_net, target_layers=[find_layer(full_net, name)[1]]) as cam:
            theirs = cam(input_tensor=x, targets=[ClassifierOutputTarget(c) for c in targets] if given else None)
        assert np.abs(ours[name].numpy()-theirs).max()<1e-5, name
        assert (theirs.max((1,2))==0).tolist()==ours[name].empty.tolist()
        assert ours[name].empty.sum()<=2, f'{name}: too few maps to compare'

def small(kind):
    "A net of torchvision that puts out tokens or N×H×W×C, and how the reference is told to read the layer"
    from torchvision.models import SwinTransformer,VisionTransformer
    torch.manual_seed(0)
    if kind=='swin': return SwinTransformer([2,2], 24, [1,1], [2,2], [4,4], num_classes=10).eval(),'features.3',lambda t: t.permute(0,3,1,2)
    vit = VisionTransformer(32, 4, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10).eval()
    nn.init.normal_(vit.heads.head.weight)
    return vit,'encoder.layers.encoder_layer_2.ln_1',lambda t: t[:,1:].transpose(1, 2).reshape(len(t), -1, 8, 8)

@pytest.mark.parametrize('plus', [False,True])
@pytest.mark.parametrize('kind', ['vit','swin'])
def test_transformers_equal_the_reference(x, kind, plus):
    ref = pytest.importorskip('pytorch_grad_cam', reason='the package grad-cam is not installed (pip install grad-cam)')
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    net,layer,reshape = small(kind)
    with (ref.GradCAMPlusPlus if plus else ref.GradCAM)(net, [find_layer(net, layer)[1]], reshape_transform=reshape) as cam:
        theirs = cam(x[:4], [ClassifierOutputTarget(c) for c in (0,3,5,9)])
    ours = grad_cam(net, x[:4], layer, [0,3,5,9], plus)
    assert np.abs(ours.numpy()-theirs).max()<1e-5 and not ours.empty.all()

@pytest.mark.parametrize('kind', ['vit','swin'])
def test_transformers_by_the_formula(x, kind):
    "By autograd on what the layer gives, laid out by hand; no layer that is chosen is an attention"
    net,layer,reshape = small(kind)
    kept,module = [],find_layer(net, layer)[1]
    hook = module.register_forward_hook(lambda m, _, o: kept.append(o))
    logits = net(x[:4])
    hook.remove()
    A,grad = [reshape(o.detach()) for o in (kept[0], *torch.autograd.grad(logits[:,3].sum(), kept))]
    want = F.relu((grad.mean((2,3), keepdim=True)*A).sum(1))
    lo,hi = want.amin((1,2), keepdim=True),want.amax((1,2), keepdim=True)
    want = F.interpolate(((want-lo)/(hi-lo).clamp(min=1e-30))[:,None], (32,32), mode='bilinear')[:,0]
    lo,hi = want.amin((1,2), keepdim=True),want.amax((1,2), keepdim=True)
    assert close(grad_cam(net, x[:4], layer, 3), (want-lo)/(hi-lo).clamp(min=1e-30))
    layers = cam_layers(net, x, 99)
    assert len(layers)>=4 and layers[-1]==('permute' if kind=='swin' else layer) and not any('attention' in o for o in layers)
    assert set(grad_cam(net, x[:2], layers))==set(layers)

def test_what_is_no_map_is_refused(x):
    "One line for attention matrices, class tokens, tuples, several inputs, and a dictionary of logits"
    class Net(nn.Module):
        def __init__(self, gives=lambda o: o):
            super().__init__()
            self.patch,self.norm,self.attn,self.fc,self.gives = nn.Conv2d(3,12,4,4),nn.LayerNorm(12),nn.Softmax(-1),nn.Linear(12,10),gives
        def forward(self, x):
            o = self.norm(self.patch(x).flatten(2).transpose(1, 2))
            return self.gives(self.fc((self.attn(o[:,None]@o[:,None].transpose(2, 3))[:,0]@o).mean(1)))
    class Two(Net):
        def forward(self, x, mask): return super().forward(x)
    assert cam_layers(Net(), x)==['patch','norm'] and grad_cam(Net(), x[:2], 'norm').shape==(2,32,32)
    vit = small('vit')[0]
    for net,layer,msg in [(Net(), 'attn', "layer 'attn' gives 2×1×64×64, but Grad-CAM needs a map"), (Two(), None, 'Two fails on images'),
                          (vit, 'encoder.layers.encoder_layer_2', 'by its class token alone'),
                          (Net(lambda o: dict(out=o)), None, 'gives a dict'),
                          (vit, 'encoder.layers.encoder_layer_0.self_attention', 'gives a tuple')]:
        with pytest.raises(CifarFastError, match=msg) as e: grad_cam(net.eval(), x[:2], layer)
        assert '\n' not in str(e.value)
    with pytest.raises(CifarFastError, match='not a tuple'): grad_cam(Two(), (x[:2],x[:2]))

def test_the_query_of_a_pooling_attention_is_no_map(x):
    "As the SigLIP nets of timm have one: each head's query is one row of numbers, whose norm would be the last layer with a grid"
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch,self.norm,self.q_norm,self.fc = nn.Conv2d(3,12,4,4),nn.LayerNorm(12),nn.Identity(),nn.Linear(12,10)
            self.query = nn.Parameter(torch.randn(1,3,1,4))
        def forward(self, x):
            t = self.norm(self.patch(x).flatten(2).transpose(1, 2)).unflatten(2, (3,4)).transpose(1, 2)
            return self.fc(F.scaled_dot_product_attention(self.q_norm(self.query.expand(len(x), -1, -1, -1)), t, t).flatten(1))
    assert cam_layers(Pooled(), x)==['patch','norm']
    with pytest.raises(CifarFastError, match="'q_norm' gives 2×3×1×4, but Grad-CAM needs a map"): grad_cam(Pooled(), x[:2], 'q_norm')
    flat = nn.Sequential(nn.Conv2d(3,4,4,4), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten())  # where the image is a strip, so is its map
    assert cam_layers(flat, x[:,:,:4])==['0','1']

def test_one_layer_is_the_same_as_several(full_net, x):
    "By name, by module (also where it is a Sequential, which could be taken for a list) and by number"
    layers = cam_layers(full_net, x)
    together = grad_cam(full_net, x[:4], layers)
    for name in layers:
        for o in (name, find_layer(full_net, name)[1], [k for k,_ in full_net.named_children()].index(name)):
            assert close(grad_cam(full_net, x[:4], o), together[name], 1e-6)

# --- a model in any state -------------------------------------------------------------------------------------------

@pytest.mark.parametrize('plus', [False,True])
def test_settings(net, x, plus):
    "Grad mode, inference mode, frozen parameters, memory format, train mode, the rest of the batch: the same maps"
    x,kw = x[:8],dict(layer=['layer1','res1','layer3','res2'], targets=[0,1,2,3,4,5,6,7], plus=plus)
    want = grad_cam(net, x, **kw)
    def same(net, x, eps=0.):
        got = grad_cam(net, x, **kw)
        return all(close(got[k], want[k], eps) and torch.equal(got[k].empty, want[k].empty) for k in want)
    with torch.no_grad(): assert same(net, x)
    with torch.inference_mode(): assert same(net, x.clone())
    with torch.inference_mode(): inference = x.clone()
    assert same(net, inference)
    assert same(net, x.clone().requires_grad_())
    assert same(deepcopy(net).requires_grad_(False), x)
    assert same(deepcopy(net).train(), x)
    assert same(deepcopy(net).to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last), 1e-5)
    assert same(deepcopy(net).double(), x.double(), 1e-5)
    singles = [grad_cam(net, x[i:i+1], **(kw|dict(targets=i))) for i in range(8)]
    for k in want: assert close(torch.cat([o[k] for o in singles]), want[k])

def test_bf16_autocast(net, x):
    """bf16 has two to three digits, and so has the map of the last layer: at most .15 apart anywhere, correlated by .998; those of
    Grad-CAM++ too, at any depth. In Grad-CAM's at lower layers positive and negative weights cancel: the correlation is .85 and more"""
    layers = ['layer1','res1','layer3','res2']
    for plus in (False,True):
        want = grad_cam(net, x[:8], layers, 3, plus)
        with torch.autocast('cpu', dtype=torch.bfloat16): got = grad_cam(net, x[:8], layers, 3, plus)
        for k in layers:
            good = plus or k=='res2'
            assert got[k].dtype==torch.float32 and close(got[k], want[k], .15 if good else 1)
            assert np.corrcoef(got[k].flatten(), want[k].flatten())[0,1] > (.998 if good else .85)

def compiled(net, how, backend='eager'):
    "A compiled copy that has run once"
    net = deepcopy(net)
    if how=='wrapped': net = torch.compile(net, backend=backend)
    else: net.compile(backend=backend)
    return net

@pytest.mark.parametrize('how', ['wrapped','in place'])
def test_compiled(net, x, how):
    "torch.compile(model) and model.compile(), before and after their first call; compiled they stay"
    x,fast,calls = x[:4],None,[]
    def backend(gm, inputs):
        calls.append(1)
        return gm.forward
    fast = compiled(net, how, backend)
    want = grad_cam(net, x, ['layer1','res2'])
    for _ in range(2):
        got = grad_cam(fast, x, ['layer1',find_layer(fast, 'res2')[1]])
        assert all(torch.equal(got[k], want[k]) for k in want) and list(got)==['layer1','res2']
        n = len(calls)
        with torch.no_grad(): fast(x)
        assert len(calls)>=1
    assert len(calls)==n, 'Grad-CAM made the model compile again'
    assert torch._dynamo.eval_frame._stance.stance=='default'

@pytest.mark.skipif(not (os.environ.get('CIFAR_FAST_SLOW') and shutil.which('g++')), reason='a minute of compiling: set CIFAR_FAST_SLOW=1')
def test_compiled_by_inductor(x):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3,4,3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4,10)).eval()
    fast = torch.compile(net)
    with torch.no_grad(): fast(x[:4])
    assert torch.equal(grad_cam(fast, x[:4], 1), grad_cam(net, x[:4], 1))

def test_in_place_after_the_layer(x):
    "An in-place ReLU or addition behind the layer does not reach what the layer gave"
    class Block(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            self.conv,self.bn,self.act,self.inplace = nn.Conv2d(3,3,3,padding=1),nn.BatchNorm2d(3),nn.ReLU(inplace),inplace
        def forward(self, x):
            o = self.bn(self.conv(x))
            o = o.add_(x) if self.inplace else o+x
            return self.act(o)
    def model(inplace):
        torch.manual_seed(0)
        return nn.Sequential(Block(inplace), nn.ReLU(inplace), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3,10)).eval()
    layers = ['0','0.conv','0.bn','0.act','1']
    a,b = grad_cam(model(False), x[:4], layers),grad_cam(model(True), x[:4], layers)
    for k in layers: assert torch.equal(a[k], b[k]), k

def test_a_layer_that_is_called_twice(x):
    "The last call counts"
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv,self.act,self.fc = nn.Conv2d(3,3,3,padding=1),nn.ReLU(),nn.Linear(3,10)
        def forward(self, x): return self.fc(self.act(self.conv(self.act(self.conv(x)))).amax((2,3)))
    torch.manual_seed(0)
    net = Twice().eval()
    c = net(x[:4]).argmax(1)
    with torch.no_grad(): A = net.act(net.conv(net.act(net.conv(x[:4]))))
    raw = torch.einsum('nk,nkhw->nhw', net.fc.weight[c], A).relu().detach()
    hi = raw.amax((1,2), keepdim=True)
    lo = raw.amin((1,2), keepdim=True)
    assert close(grad_cam(net, x[:4], 'act'), (raw-lo)/(hi-lo).clamp(min=1e-30))

def test_a_shared_layer_stands_where_it_was_called_last(x):
    "A net that has one activation and one pool for all of its convolutions: the deepest layer is the last pool"
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1,self.conv2,self.act,self.pool,self.fc = nn.Conv2d(3,4,3),nn.Conv2d(4,8,3),nn.ReLU(),nn.MaxPool2d(2),nn.Linear(288,10)
        def forward(self, x): return self.fc(self.pool(self.act(self.conv2(self.pool(self.act(self.conv1(x)))))).flatten(1))
    assert cam_layers(Shared(), x, 99)==['conv1','conv2','act','pool'] and cam_layers(Shared(), x, 1)==['pool']

# --- empty maps and other trouble -----------------------------------------------------------------------------------

def test_empty_maps(x):
    "Without positive evidence a map is zero and marked; a class with the opposite weights has all of it"
    net = nn.Sequential(nn.Conv2d(3,4,3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4,2, bias=False)).eval()
    net[4].weight.data = torch.tensor([[1.],[-1]]).expand(2,4).clone()
    for plus in (False,True):
        cams = grad_cam(net, x[:6], 1, [0,1]*3, plus)
        assert cams.empty.tolist()==[False,True]*3 and not cams[1::2].any() and cams.isfinite().all()
        assert (cams[::2].amax((1,2))==1).all()

@pytest.mark.parametrize('value', [float('nan'),float('inf'),-float('inf')])
@pytest.mark.parametrize('plus', [False,True])
def test_values_that_are_not_finite(net, x, value, plus):
    net.layer3.conv.weight.data[0,0,0,0] = value
    for layer in (['res2'],['layer1','res2']):
        with pytest.raises(CifarFastError, match='not finite'): grad_cam(net, x[:2], layer, plus=plus)

def test_messages(net, x):
    x = x[:2]
    for kw,msg in [(dict(layer='res3'), "unknown layer 'res3': did you mean 'res2'"), (dict(layer=10), 'parts, numbered from 0 to 9'),
                   (dict(layer='pool'), '2×32×1×1, but Grad-CAM needs a map N×C×H×W of more than one pixel: choose from prep,'),
                   (dict(layer=['res2','fc']), "layer 'fc' gives 2×10"), (dict(layer=nn.ReLU()), 'not a layer of the model'),
                   (dict(targets=10), 'class 10 is out of range: the net has the classes 0 to 9'), (dict(targets=[0,-1]), 'class -1'),
                   (dict(targets=[1,2,3]), 'targets of shape 3 for 2 images'), (dict(targets=.5), 'class numbers')]:
        with pytest.raises(CifarFastError) as e: grad_cam(net, x, **kw)
        assert msg in str(e.value) and '\n' not in str(e.value)
    for bad,msg in [(x[0], 'not 3×32×32'), (x.byte(), 'torch.uint8'), (x[:0], '0×3×32×32'), (x.numpy(), 'a ndarray'),
                    (x[:,:2], 'fails on images of 2×32×32')]:
        with pytest.raises(CifarFastError) as e: grad_cam(net, bad)
        assert msg in str(e.value) and '\n' not in str(e.value)
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.net,self.spare,self.aside = resnet9(width=4),nn.Conv2d(3,3,3),nn.Conv2d(3,3,3)
        def forward(self, x):
            self.aside(x)
            return self.net(x)
    with pytest.raises(CifarFastError, match="layer 'spare' is not used"): grad_cam(Unused(), x, 'spare')
    with pytest.raises(CifarFastError, match="do not depend on layer 'aside'"): grad_cam(Unused(), x, 'aside')
    with pytest.raises(CifarFastError, match='not logits'): grad_cam(net[:6], x, 'layer1')
    with pytest.raises(CifarFastError, match='puts out a map'): grad_cam(nn.Sequential(nn.Flatten(), nn.Linear(3072,10)), x)

# --- nothing is left behind -----------------------------------------------------------------------------------------

def hooks(net):
    return sum(len(m._forward_hooks)+len(m._forward_pre_hooks)+len(m._backward_hooks)+('forward' in m.__dict__) for m in net.modules())

def state(net, rng=True):
    "All that Grad-CAM could change"
    return ([m.training for m in net.modules()], [p.requires_grad for p in net.parameters()], hooks(net), torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(), torch.is_autocast_enabled('cpu'), torch.random.get_rng_state().tolist() if rng else None,
            [None if p.grad is None else p.grad.tolist() for p in net.parameters()], [p.tolist() for p in net.state_dict().values()])

def messy(net):
    "`net` in train mode but for a part, partly frozen, with gradients"
    net.train()
    net.res1.eval()
    net.prep.requires_grad_(False)
    for i,p in enumerate(net.parameters()): p.grad = torch.full_like(p, i) if i%3 else None
    return net

class Broken(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error
    def forward(self, x): raise self.error

@pytest.mark.parametrize('mode', [contextlib.nullcontext,torch.no_grad,torch.inference_mode])
def test_the_model_is_as_before(net, x, mode):
    net = messy(net)
    with mode():
        before = state(net)
        for kw in (dict(), dict(layer=['layer1','res2'], plus=True), dict(layer='fc'), dict(layer='none'), dict(targets=99)):
            with contextlib.suppress(CifarFastError): grad_cam(net, x[:2], **kw)
            assert state(net)==before, kw
        cam_layers(net, x)
        assert state(net)==before

@pytest.mark.parametrize('error', [ZeroDivisionError('boom'),KeyboardInterrupt()])
def test_the_model_is_as_before_after_an_error(net, x, error):
    "An error in the middle of the forward pass"
    net = messy(net)
    net.layer3.act = Broken(error)
    before = state(net)
    with pytest.raises(type(error)): grad_cam(net, x[:2], ['layer1','res2'])
    assert state(net)==before

def test_a_part_that_takes_no_hooks(x):
    "Refused in a line, and no hook is left on the parts before it"
    net = nn.Sequential(nn.Conv2d(3, 4, 3), torch.jit.script(nn.ReLU()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    was = hooks(net)
    for f in (lambda: grad_cam(net, x),lambda: grad_cam(net, x, [0,1])):
        with pytest.raises(CifarFastError, match='register_forward_hook is not supported'): f()
        assert hooks(net)==was and net.training
        assert torch._dynamo.eval_frame._stance.stance=='default'

def test_images_go_to_the_device_of_the_model(net, x):
    "A model on another device than the images: `meta` stands in for a GPU, and the model says where its input is"
    class Where(nn.Module):
        def forward(self, x): raise ZeroDivisionError(x.device)
    net.layer3.act = Where()
    net.to('meta')
    with pytest.raises(ZeroDivisionError, match='meta'): grad_cam(net, x[:2], 'layer1')
    with pytest.raises(ZeroDivisionError, match='meta'): cam_layers(net, x[:2])

def test_nothing_piles_up(net, x):
    "A hundred calls leave no hook and no tensor"
    def tensors(): return sum(isinstance(o, torch.Tensor) for o in gc.get_objects())
    def go():
        grad_cam(net, x[:1], ['layer1','res2'])
        with contextlib.suppress(CifarFastError): grad_cam(net, x[:1], 'fc')
    go()
    gc.collect()
    before = tensors()
    for _ in range(100): go()
    assert hooks(net)==0
    gc.collect()
    assert tensors()<=before

def test_training_goes_on(net, x):
    "A backward pass that was begun before gives the same gradients after"
    def grads(between):
        torch.manual_seed(0)
        model = deepcopy(net)
        loss = model(x[:4]).square().mean()
        if between: grad_cam(model, x[:4], ['layer1','res2'])
        loss.backward()
        return [p.grad for p in model.parameters()]
    for a,b in zip(grads(False), grads(True)): assert torch.equal(a, b)

# --- the callback ---------------------------------------------------------------------------------------------------

@pytest.fixture
def few(dls, ims): return dls.test_dl(list(zip(ims.test_x[:40], ims.test_y[:40])), with_labels=True, bs=16)

@pytest.mark.parametrize('precision', ['fp32','bf16'])
@pytest.mark.parametrize('how', [None,'wrapped','in place'])
def test_callback_equals_the_function(dls, net, few, ims, precision, how):
    "Through get_preds and validate, in fp32 and bf16, compiled or not, all batches, several layers; the predictions as without"
    net.to(memory_format=torch.channels_last)  # as the learner will do
    model = compiled(net, how) if how else net
    learn,batches = cifar_learner(dls, model, precision=precision),list(few)
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=precision=='bf16'):
        one = torch.cat([grad_cam(net, x) for x,_ in batches])
        want = [grad_cam(net, x, ['layer1','res2'], y, True) for x,y in batches]
    with learn.no_bar(), learn.no_logging():
        plain = learn.get_preds(dl=few, with_loss=True)
        before = state(model, rng=False)
        cb = GradCAMCallback()
        got = learn.get_preds(dl=few, with_loss=True, cbs=cb)
        assert state(model, rng=False)==before
        assert close(cb.cams, one, 1e-6) and cb.cams.empty.shape==(40,)
        assert all(close(a, b, 1e-2 if precision=='bf16' else 1e-5) for a,b in zip(got, plain))
        cb = GradCAMCallback(['layer1','res2'], ims.test_y[:40], plus=True)
        for run in (learn.validate, learn.get_preds):
            run(dl=few, cbs=cb)
            assert state(model, rng=False)==before and list(cb.cams)==['layer1','res2']
            for k in cb.cams: assert close(cb.cams[k], torch.cat([o[k] for o in want]), 1e-6)
        with torch.inference_mode(): learn.get_preds(dl=few, cbs=cb)
        assert state(model, rng=False)==before and close(cb.cams['res2'], torch.cat([o['res2'] for o in want]))

def test_callback_with_fastais_mixed_precision(dls, net, x, few):
    "fastai's MixedPrecision closes its autocast after the loss"
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat()).to_bf16()
    with learn.no_bar(): learn.get_preds(dl=few, cbs=(cb := GradCAMCallback()))
    assert close(cb.cams, grad_cam(net, x))

def test_callback_in_a_fit(dls, net, ims):
    "Kept in a learner it explains each validation, and the training is the one without it"
    small = cifar_dls(replace(ims, train_x=ims.train_x[:64], train_y=ims.train_y[:64], test_x=ims.test_x[:32], test_y=ims.test_y[:32]),
                      bs=32, policy='none', device='cpu')
    def fit(cbs):
        set_seed(0)
        learn = cifar_learner(small, deepcopy(net), precision='fp32', cbs=cbs)
        with learn.no_bar(), learn.no_logging(): learn.fit(2, .01)
        return learn
    cb = GradCAMCallback('res1')
    a,b = fit([]),fit([cb])
    for p,q in zip(a.model.state_dict().values(), b.model.state_dict().values()): assert torch.equal(p, q)
    assert hooks(b.model)==0
    assert close(cb.cams, grad_cam(b.model, image_batch(small, ims.test_x[:32]), 'res1'))

class Raise(Callback):
    order = 50
    def __init__(self, event, error, first=0): self.event,self.error,self.first = event,error,first
    def before_batch(self): self.now('before_batch')
    def after_pred(self): self.now('after_pred')
    def now(self, event):
        if event==self.event and self.iter>=self.first: raise self.error

@pytest.mark.parametrize('kept', [False,True])
@pytest.mark.parametrize('where', ['model','interrupt','before_batch','after_pred'])
def test_callback_after_an_error(dls, net, few, where, kept):
    "The model, another callback before or after it, an interrupt from the keyboard: everything as before"
    error,good = KeyboardInterrupt() if where=='interrupt' else ZeroDivisionError('boom'),deepcopy(net)
    if where in ('model','interrupt'): net.layer3.act = Broken(error).eval()
    learn = cifar_learner(dls, net, precision='bf16')
    before = state(net, rng=False)
    cbs = [GradCAMCallback(), Raise(where, error)]
    with learn.no_bar():
        if kept: learn.add_cbs(cbs)
        with pytest.raises(type(error)): learn.get_preds(dl=few, cbs=None if kept else cbs)
        if kept: learn.remove_cbs(cbs)
        learn.autocast.ctx.close()
        assert state(net, rng=False)==before
        learn.model = good
        learn.get_preds(dl=few, cbs=cbs[0])
    assert len(cbs[0].cams)==40

def test_callback_and_a_cancelled_pass(dls, net, few):
    "The maps of the batches before are there"
    learn = cifar_learner(dls, net, precision='fp32')
    before = state(net, rng=False)
    with learn.no_bar(): learn.validate(dl=few, cbs=[cb := GradCAMCallback(), Raise('before_batch', CancelValidException(), first=1)])
    assert state(net, rng=False)==before and len(cb.cams)==16

def test_callback_messages(dls, net, few):
    learn = cifar_learner(dls, net, precision='fp32')
    for kw,msg in [(dict(layer='res3'), "did you mean 'res2'"), (dict(layer='fc'), 'choose from prep'), (dict(targets=[1,2]), 'of shape 2'),
                   (dict(targets=[1]*50), '50 targets for 40 images'), (dict(targets=12), 'class 12 is out of range')]:
        with pytest.raises(CifarFastError, match=msg), learn.no_bar(): learn.get_preds(dl=few, cbs=GradCAMCallback(**kw))
        assert hooks(net)==0

def test_callback_with_several_inputs(dls, net, few):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = net
        def forward(self, x, y): return self.one(x)+self.one(y)
    class Twice(Callback):
        def before_batch(self): self.learn.xb = self.x,self.x
    learn = cifar_learner(dls, Two(), precision='fp32', cbs=Twice())
    with pytest.raises(CifarFastError, match='of one input, and Two has 2'), learn.no_bar(): learn.get_preds(dl=few, cbs=GradCAMCallback())
    assert isinstance(learn.model, Two) and hooks(net)==0
