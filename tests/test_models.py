"Nets of torchvision and timm: weights, head and normalisation; trained, resumed, explained, exported; the learner's arguments"
import dataclasses,inspect,re
from importlib.util import find_spec
import numpy as np,pytest,torch
import torch.nn.functional as F
from conftest import draw_folder,interrupted
from fastai.basics import Callback,Recorder,accuracy,error_rate,params
from fastai.callback.core import TrainEvalCallback
from fastai.metrics import F1Score
from fastai.optimizer import Adam
from safetensors.torch import load_file
from torch import nn
from torchvision import models as tv
from cifar_fast import train
from cifar_fast.core import CifarFastError
from cifar_fast.explain import explain
from cifar_fast.export import export_run
from cifar_fast.gradcam import cam_layers,randomized
from cifar_fast.data import load_images
from cifar_fast.learner import cifar_learner
from cifar_fast.loaders import cifar_dls,image_batch
from cifar_fast.models import body_head,get_model,nets,weight_stats
from cifar_fast.recipes import Recipe,get_recipe
from cifar_fast.report import report_run
from cifar_fast.runs import Run
from cifar_fast.train import recipe_learner,resume_run,run_learner,run_model,train_recipe
torch.set_num_threads(1)

small = 'torchvision/shufflenet_v2_x0_5'  # the smallest of torchvision's downloads

def images(folder): return load_images(folder, 32)

@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    "Weights as torchvision keeps them on the disk, made up"
    home = tmp_path_factory.mktemp('torch')
    path = home/'hub'/'checkpoints'/tv.get_model_weights('shufflenet_v2_x0_5').DEFAULT.url.rpartition('/')[2]
    path.parent.mkdir(parents=True)
    torch.manual_seed(3)
    state = tv.shufflenet_v2_x0_5().state_dict()
    torch.save(state, path)
    with pytest.MonkeyPatch.context() as m:
        m.setenv('TORCH_HOME', str(home))
        yield state

@pytest.fixture
def no_weights(tmp_path, monkeypatch):
    "Neither a disk with weights nor a network"
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'empty'))
    def fail(*args, **kwargs): raise OSError('no network')
    monkeypatch.setattr(torch.hub, 'download_url_to_file', fail)

def recipe(folder, **kwargs):
    r = get_recipe('assignment').replace(data=str(folder), size=32, bs=24, epochs=1, policy='flip_crop', lr=.01, model=small)
    return r.replace(**kwargs)

def test_pretrained_but_for_the_head(weights):
    "Every tensor of the body is that of the file, whatever the number of classes; the head is drawn anew"
    for n in (3,1000):
        ours = get_model(small, n, True).state_dict()
        assert ours.keys()==weights.keys() and ours['fc.weight'].shape[0]==n
        assert all(torch.equal(v, weights[k]) for k,v in ours.items() if not k.startswith('fc.'))
        assert not torch.equal(ours['fc.weight'], weights['fc.weight'][:n])

@pytest.mark.parametrize('name', ['mnasnet0_5','densenet121'])
def test_pretrained_of_older_files(name, tmp_path, monkeypatch):
    "mnasnet asks which version wrote its weights; those of the densenets still have the names of their first version"
    state = getattr(tv, name)(num_classes=5).state_dict()
    for k in [*state]: state[re.sub(r'(denselayer\d+\.(?:norm|conv))(\d)', r'\1.\2', k)] = state.pop(k)
    assert ('features.denseblock1.denselayer1.norm.1.weight' in state)==(name=='densenet121')
    path = tmp_path/'hub'/'checkpoints'/tv.get_model_weights(name).DEFAULT.url.rpartition('/')[2]
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    ours = get_model(f'torchvision/{name}', 3, True).state_dict()
    assert all(torch.equal(a, b) for (k,a),b in zip(ours.items(), state.values()) if not k.startswith('classifier'))

@pytest.mark.parametrize('name,size', [('googlenet',64),('inception_v3',96)])
def test_pretrained_without_further_heads(name, size, tmp_path, monkeypatch):
    "The file holds heads for training, too; pixels come to the weights as in torchvision's net, which turns one normalisation into another"
    torch.manual_seed(3)
    theirs,w = getattr(tv, name)(init_weights=False, transform_input=True).eval(),tv.get_model_weights(name).DEFAULT
    path = tmp_path/'hub'/'checkpoints'/w.url.rpartition('/')[2]
    path.parent.mkdir(parents=True)
    torch.save(theirs.state_dict(), path)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    ours = get_model(f'torchvision/{name}', 1000, True, aux_logits=False, init_weights=False).eval()
    ours.fc.load_state_dict(theirs.fc.state_dict())
    x,t = torch.rand(2, 3, size, size),w.transforms()
    def seen(mean, std): return (x-torch.tensor(mean).view(3,1,1))/torch.tensor(std).view(3,1,1)
    with torch.no_grad(): torch.testing.assert_close(ours(seen(*weight_stats(f'torchvision/{name}'))), theirs(seen(t.mean, t.std)))

def test_normalised_as_the_weights_expect(weights, folder):
    "An image of one colour arrives as torchvision's own transform for the weights makes it; without weights as the data set's mean"
    ims,img = images(folder),np.full((32,32,3), (200,100,50), np.uint8)
    theirs = tv.get_model_weights('shufflenet_v2_x0_5').DEFAULT.transforms(crop_size=32, resize_size=32)
    want = theirs(torch.from_numpy(img).permute(2,0,1))
    x = image_batch(recipe_learner(recipe(folder, pretrained=True), ims, device='cpu').dls, [img])
    assert torch.allclose(torch.Tensor(x[0]), want, atol=1e-5)
    own = image_batch(recipe_learner(recipe(folder), ims, device='cpu').dls, [img])
    assert not torch.allclose(own, x, atol=.1)

def test_weights_that_cannot_be_had(no_weights):
    with pytest.raises(CifarFastError, match='no pretrained weights for torchvision/shufflenet.*no network.*leave out --pretrained') as e:
        get_model(small, 3, True)
    assert '\n' not in str(e.value)

def test_weights_on_the_disk_cannot_run_anything(tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self): return (open, (str(tmp_path/'ran'),'w'))
    path = tmp_path/'hub'/'checkpoints'/tv.get_model_weights('shufflenet_v2_x0_5').DEFAULT.url.rpartition('/')[2]
    path.parent.mkdir(parents=True)
    torch.save({'fc.weight': Evil()}, path)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    with pytest.raises(CifarFastError, match='no pretrained weights for torchvision/shufflenet'): get_model(small, 3, True)
    for kw in dict(weights='DEFAULT'),dict(checkpoint_path=str(path)):
        with pytest.raises(CifarFastError, match='is no argument for model_args: weights come by pretrained or start'):
            get_model(small, 1000, **kw)
    assert not (tmp_path/'ran').exists()

class Look(Callback):
    "What is trained, and how fast"
    run_valid = False
    def __init__(self): self.trained,self.lrs = [],[]
    def after_batch(self):
        self.trained.append({id(p) for p in self.model.parameters() if p.requires_grad})
        self.lrs.append([h['lr'] for h in self.opt.hypers])

def test_freeze_then_fine_tune(weights, folder):
    "As fastai does it: first the head alone, with BatchNorm as `train_bn` says; then everything, the body at a smaller rate"
    learn = recipe_learner(recipe(folder, pretrained=True), images(folder), precision='fp32', device='cpu')
    head = {id(p) for p in learn.model.fc.parameters()}
    norms = {id(p) for m in learn.model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    first = learn.model.conv1[0].weight.clone()
    look = Look()
    with learn.no_bar(), learn.no_logging(), learn.added_cbs(look):
        learn.freeze()
        learn.fit(1, .01)
        assert torch.equal(learn.model.conv1[0].weight, first)
        learn.fine_tune(1, base_lr=.01)
    assert look.trained[::3]==[head|norms, head|norms, {id(p) for p in learn.model.parameters()}]  # three batches an epoch
    low,high = look.lrs[-2]
    assert low<high and not torch.equal(learn.model.conv1[0].weight, first)

def test_a_run_keeps_its_weights(weights, folder, tmp_path, monkeypatch):
    "What has been trained needs the downloaded weights no more: to be looked at, scored, or resumed after its first epoch"
    r = recipe(folder, pretrained=True, epochs=2)
    whole = train_recipe(r, tmp_path/'whole', precision='fp32', quiet=True)
    interrupted(r, tmp_path/'parts', monkeypatch)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'empty'))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', None)
    resume_run(tmp_path/'parts', quiet=True)
    a,b = (load_file(tmp_path/o/'model.safetensors') for o in ('whole','parts'))
    assert all(torch.equal(a[k], b[k]) for k in a)
    learn = run_learner(Run(tmp_path/'whole'))
    with learn.no_bar(), learn.no_logging(): assert learn.validate()[1]==pytest.approx(whole['test_accuracy'])
    data = Run(tmp_path/'whole').config['data']
    assert [*data['mean'],*data['std']]==pytest.approx(sum(weight_stats(small), []))

@pytest.mark.parametrize('name', ['torchvision/resnet18','torchvision/mobilenet_v3_small'])
def test_from_training_to_export(folder, tmp_path, name):
    "One epoch on small images, then everything that a run is for"
    train_recipe(recipe(folder, model=name), tmp_path/'run', precision='fp32', quiet=True)
    run = Run(tmp_path/'run')
    model = run_model(run)
    layers = cam_layers(model, torch.randn(1, 3, 32, 32))
    assert 1<len(layers)<=4 and not any('fc' in o or 'classifier' in o for o in layers)
    page = report_run(run, quiet=True).read_text()
    assert name in page and f'--model {name}' in page and 'Grad-CAM' in page
    rows = explain(run, [folder/'test'/'ant'/f'{i}.png' for i in range(2)], tmp_path/'explained')
    assert len(rows)==2 and len([*(tmp_path/'explained').glob('*.png')])==2
    assert {*export_run(run, tmp_path/'export', onnx=False, learner=True)}=={'model.safetensors','learner.pkl'}
    if 'resnet' in name and all(map(find_spec, ('onnx','onnxscript','onnxruntime'))):  # slow
        assert 'model.onnx' in export_run(run, tmp_path/'onnx')

def vit(n_classes=10): return tv.VisionTransformer(32, 8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=n_classes)

def without_maps(n_classes=10): return nn.Sequential(nn.Flatten(), nn.Linear(3*32*32, n_classes))

@pytest.mark.parametrize('net', [vit,without_maps])
def test_to_the_end_on_shapes(monkeypatch, tmp_path, capsys, net):
    "The end of a training draws the weights anew, those of a class token and of positions too; what has no map loses no results"
    monkeypatch.setitem(nets, 'mine', net)
    ims = load_images('shapes10')
    few = dataclasses.replace(ims, train_x=ims.train_x[:100], train_y=ims.train_y[:100], test_x=ims.test_x[:50], test_y=ims.test_y[:50],
                              test_mask=ims.test_mask[:50])
    monkeypatch.setattr(train, 'load_images', lambda *args, **kwargs: few)
    results = train_recipe(get_recipe('demo').replace(model='mine', epochs=1, bs=50), tmp_path/'run', precision='fp32', quiet=True)
    if net is without_maps: assert 'cam_localization' not in results and 'no localization: no layer' in capsys.readouterr().out
    else: assert [o['who'] for o in results['cam_localization']]==['trained net','randomized net','centre prior']
    assert Run(tmp_path/'run').finished

def test_randomized_draws_every_weight():
    "No tensor that held different numbers is as before; the numbers of a class token are the same in another order"
    torch.manual_seed(0)
    net = vit()
    nn.init.normal_(net.class_token)
    a,b,c = randomized(net),randomized(net),randomized(net, 1)
    for k,p in net.named_parameters():
        p,q = p.detach(),dict(a.named_parameters())[k].detach()
        assert torch.equal(q, dict(b.named_parameters())[k])
        if p.flatten()[0]!=p.flatten()[-1]: assert not torch.equal(p, q) and not torch.equal(dict(c.named_parameters())[k], q), k
    assert torch.equal(a.class_token.flatten().sort()[0], net.class_token.flatten().sort()[0])

@pytest.mark.parametrize('name,kwargs,said', [
    ('torchvision/resnet43', {}, "unknown torchvision model 'resnet43': did you mean 'resnet"),
    ('torchvision/', {}, 'unknown torchvision model'),
    ('resnet34', {}, 'torchvision/NAME'), ('torchvision/resnet18', dict(widht=4), "cannot build .*unexpected keyword argument 'widht'"),
    ('torchvision/resnet18', dict(n_classes=4), 'n_classes is no argument for model_args'),
    ('torchvision/resnet18', dict(name='a'), 'name is no'), ('resnet9', dict(name='a'), "unknown argument of resnet9 'name'"),
    ('torchvision/resnet18', dict(pretrained=True), 'pretrained is no'),
    ('torchvision/googlenet', dict(init_weights=False), 'gives a GoogLeNetOutputs, not logits'),
    ('torchvision/vit_b_16', {}, 'images of 32×32 pixels .Wrong image height'), ('torchvision/vgg11', dict(size=16), 'of 16×16 pixels')])
def test_messages(folder, name, kwargs, said):
    kwargs = dict(kwargs)
    size = kwargs.pop('size', 32)
    with pytest.raises(CifarFastError, match=said) as e: recipe(folder, model=name, model_args=kwargs).check_images(size, 3)
    assert '\n' not in str(e.value)

def test_a_net_that_computes_while_it_is_built(folder): recipe(folder, model='torchvision/regnet_x_400mf').check_images(32, 3)

def test_pretrained_goes_with_a_net_that_has_weights():
    with pytest.raises(CifarFastError, match='True: choose it with a model torchvision/NAME'): Recipe('a', pretrained=True).check()
    with pytest.raises(CifarFastError, match='there are no weights for resnet9'): get_model('resnet9', pretrained=True)

def test_without_timm(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'timm', None)
    with pytest.raises(CifarFastError, match=r"pip install 'cifar_fast\[timm\]'"): Recipe('a', model='timm/convnext_atto').check()

def test_timm(folder, tmp_path):
    "A net of timm with weights from a file, trained, explained, and with its own normalisation"
    timm = pytest.importorskip('timm', reason="pip install 'cifar_fast[timm]'")
    torch.manual_seed(3)
    state = timm.create_model('test_byobnet').state_dict()
    torch.save(state, tmp_path/'weights.pth')
    args = dict(pretrained_cfg_overlay=dict(file=str(tmp_path/'weights.pth')))
    net = get_model('timm/test_byobnet', 3, True, **args)
    same = [k for k,v in net.state_dict().items() if v.shape==state[k].shape and torch.equal(v, state[k])]
    assert len(state)-2==len(same) and [len(o) for o in body_head(net)]==[len([*net.parameters()])-2,2]
    train_recipe(recipe(folder, model='timm/test_byobnet', pretrained=True, model_args=args), tmp_path/'run', precision='fp32', quiet=True)
    assert Run(tmp_path/'run').config['data']['mean']==pytest.approx(timm.get_pretrained_cfg('test_byobnet').mean)
    assert len(explain(tmp_path/'run', folder/'test'/'ant', tmp_path/'explained'))==8
    for name,said in (('convnext_attoo',"did you mean 'convnext_atto'"),('botnet50ts_256','no pretrained weights for timm/botnet50ts_256')):
        with pytest.raises(CifarFastError, match=said): get_model(f'timm/{name}', 3, True)

def test_two_heads(folder, tmp_path):
    "Of a net that learns by distillation both are its head: fresh where classes are others, and alone what a frozen net trains"
    pytest.importorskip('timm', reason="pip install 'cifar_fast[timm]'")
    args = dict(img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=1)
    r,other = recipe(folder, model='timm/deit_tiny_distilled_patch16_224', model_args=args),draw_folder(tmp_path/'other', ('ant','owl'))
    train_recipe(r, tmp_path/'run', precision='fp32', quiet=True)
    learn = recipe_learner(r.replace(data=str(other), start=str(tmp_path/'run')), images(other), precision='fp32')
    there,heads = load_file(tmp_path/'run/model.safetensors'),{f'{k}.{o}' for k in ('head','head_dist') for o in ('weight','bias')}
    assert {k for k,v in learn.model.state_dict().items() if v.shape!=there[k].shape or not torch.equal(v, there[k])}==heads
    learn.freeze()
    assert {k for k,p in learn.model.named_parameters() if p.requires_grad and 'norm' not in k}==heads

# --- every argument of the learner ----------------------------------------------------------------------------------

def net(): return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
def halves(m): return [params(m[:2]),params(m[2:])]
def weighted(pred, targ, reduction='mean'): return F.cross_entropy(pred, targ, torch.tensor([1.,2.,3.]), reduction=reduction)
def no_bn(learn): return learn.freeze() or [p.requires_grad for p in learn.model[1].parameters()]

given = dict(  # what to give, and how to see that it has come
    mom=(.7, lambda l: l.opt.hypers[0]['mom']==.7), wd=(.02, lambda l: l.opt.hypers[0]['wd']==.02),
    nesterov=(False, lambda l: not l.opt.opt.param_groups[0]['nesterov']),
    label_smoothing=(.2, lambda l: l.loss_func.func.label_smoothing==.2),
    precision=('bf16', lambda l: hasattr(l, 'autocast')), opt_func=(Adam, lambda l: 'sqr_mom' in l.opt.hypers[0]),
    loss_func=(weighted, lambda l: l.loss_func is weighted and l.validate()[0]==pytest.approx(by_hand(l, weighted), rel=1e-4)),
    moms=((.9,.6,.8), lambda l: l.history.steps[-1]['mom']==pytest.approx(.8, abs=.1) and min(s['mom'] for s in l.history.steps)<.7),
    compile=(True, lambda l: l.with_compile), graph=(True, lambda l: l.with_graph), deterministic=(True, lambda l: True),
    cbs=([TrainEvalCallback()], lambda l: sum(isinstance(o, TrainEvalCallback) for o in l.cbs)==2),
    metrics=([accuracy,accuracy], lambda l: len(l.recorder.metrics)==2), lr=(.05, lambda l: l.lr==.05),
    splitter=(halves, lambda l: len(l.opt.hypers)==2), path=('somewhere', lambda l: str(l.path)=='somewhere'),
    model_dir=('weights', lambda l: l.model_dir=='weights'), train_bn=(False, lambda l: no_bn(l)==[False]*2),
    default_cbs=(False, lambda l: not hasattr(l, 'recorder')))

def by_hand(learn, loss):
    "Its mean over the validation set"
    preds,targs = learn.get_preds(1, act=lambda o: o)
    return float(loss(preds, targs))

def test_every_argument_is_tried(): assert {*inspect.signature(cifar_learner).parameters}-{'dls','model'}==given.keys()

@pytest.mark.parametrize('name', given)
def test_argument(folder, name):
    "Each argument that the signature shows does what it says"
    val,came = given[name]
    kwargs = dict(precision='fp32', splitter=halves) if name=='train_bn' else dict(precision='fp32')
    learn = cifar_learner(cifar_dls(images(folder), 24, 'none', device='cpu'), net(), **dict(kwargs, **{name: val}))
    with learn.no_bar(), learn.no_logging():
        if name not in ('compile','graph'): learn.fit_one_cycle(2, .01)  # those are tried in the tests of speed
        assert came(learn)

def test_metrics_of_one_name(folder):
    "And one that gives a number for each class: each stands under its own name, or the last of its name"
    metrics = [F1Score(average='micro'),F1Score(average=None),error_rate]
    learn = cifar_learner(cifar_dls(images(folder), 24, 'none', device='cpu'), net(), metrics=metrics, precision='fp32')
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, .01)
        row,(_,_,each,error) = learn.history.epochs[-1],learn.validate()
    assert row['valid_error_rate']==pytest.approx(error) and row['valid_f1_score']==pytest.approx(each) and len(each)==3

def test_a_bare_learner(folder):
    "Without fastai's own callbacks, and with some of them"
    for cbs,n in (([],0),([TrainEvalCallback()],0),([TrainEvalCallback(),Recorder()],1)):
        learn = cifar_learner(cifar_dls(images(folder), 24, 'none', device='cpu'), net(), default_cbs=False, cbs=cbs, precision='fp32')
        learn.fit(1, .01)
        assert hasattr(learn, 'history')==bool(n)

def test_two_smoothings(folder):
    with pytest.raises(CifarFastError, match='label_smoothing is 0.1'):
        cifar_learner(cifar_dls(images(folder), 24, device='cpu'), net(), loss_func=weighted, label_smoothing=.1)
