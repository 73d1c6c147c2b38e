"Mixed images and stopping early: as the formulas say, to the bit where a run is resumed, and refused where they cannot be"
import json,shutil
import pytest,torch
import torch.nn.functional as F
from conftest import interrupted
from fastai.basics import Callback
from safetensors.torch import load_file
from torch import nn
from cifar_fast.core import CifarFastError,precisions
from cifar_fast.data import load_images
from cifar_fast.gradcam import GradCAMCallback,grad_cam
from cifar_fast.parts import Autocast
from cifar_fast.recipes import get_recipe
from cifar_fast.runs import Run,result_rows
from cifar_fast.report import repeat_command
from cifar_fast.train import recipe_learner,resume_run,train_recipe

@pytest.fixture(scope='module')
def tiny(folder): return get_recipe('demo').replace(data=str(folder), epochs=4, bs=24, policy='flip_crop', model_args=dict(width=4))

def resumed(*args, **kwargs):
    "Train until two epochs are written, and go on"
    return resume_run(interrupted(*args, after=1, **kwargs), quiet=True)

def same(a, b):
    a,b = (load_file(o/'model.safetensors') for o in (a,b))
    return all(torch.equal(a[k], b[k]) for k in a)

def timeless(results): return {k: v for k,v in results.items() if 'second' not in k}

@pytest.mark.parametrize('pipeline', ['device','item'])
@pytest.mark.parametrize('mix', [dict(mixup=.4), dict(cutmix=1.)])
def test_resumes(tiny, tmp_path, monkeypatch, mix, pipeline):
    "Beside smoothed labels, a running mean, alternating flips and sizes that grow: a resumed run mixes as a whole one does"
    r = tiny.replace(**mix, label_smoothing=.1, ema=.8, alternating_flip=True, policy='crop', size=16,
                     progressive_resizing=((0,12),(.6,16)))
    whole = train_recipe(r, tmp_path/'whole', precision='fp32', quiet=True, pipeline=pipeline)
    parts = resumed(r, tmp_path/'parts', monkeypatch, pipeline=pipeline)
    assert same(tmp_path/'whole', tmp_path/'parts') and timeless(whole)==timeless(parts)
    train_recipe(r.replace(mixup=0., cutmix=0.), tmp_path/'plain', precision='fp32', quiet=True, pipeline=pipeline)
    assert not same(tmp_path/'whole', tmp_path/'plain')
    assert (tmp_path/'parts/steps.csv').read_text()==(tmp_path/'whole/steps.csv').read_text()

class Seen(Callback):
    run_valid,order = False,Autocast.order+1
    def before_fit(self): self.rows = []
    def before_batch(self): self.rows.append((self.x.clone(),self.y.clone()))

@pytest.mark.parametrize('pipeline', ['device','item'])
def test_mixes_what_the_net_would_have_seen(tiny, pipeline):
    "Flipped and small already: what comes out is a mixture of two images that a training without MixUp shows, in the same order"
    r = tiny.replace(epochs=1, policy='none', alternating_flip=True, progressive_resizing=((0,12),))
    ims,rows = load_images(r.data),[]
    for o in (r,r.replace(mixup=.4)):
        learn = recipe_learner(o, ims, precision='fp32', pipeline=pipeline)
        learn.add_cb(Seen())
        with learn.no_bar(), learn.no_logging(): learn.fit_recipe(o)
        rows.append(learn.seen.rows[0])
    (plain,y),(mixed,z) = rows
    assert torch.equal(y, z) and mixed.shape[-1]==12 and mixed.dtype==torch.float32
    plain,mixed = plain.flatten(1).double(),mixed.flatten(1).double()
    def rest(m, a): # the distance from m to the nearest line from a to another image, with a part of at most a half
        parts = [(b-a,((m-a)@(b-a)/((b-a)@(b-a)).clamp(min=1e-9)).clamp(0, .5)) for b in plain]
        return min((m-a-t*d).norm() for d,t in parts)
    assert max(rest(m, a) for m,a in zip(mixed, plain))<1e-3 and (mixed-plain).abs().max()>.1

def test_half_precision(tiny):
    "Images that a loader hands over in bf16, as on a GPU, are mixed in fp32; a net in bf16 trains on them"
    for mix in (dict(mixup=.4),dict(cutmix=1.)):
        r = tiny.replace(epochs=1, **mix)
        learn = recipe_learner(r, load_images(r.data), precision='bf16')
        learn.add_cb(Seen())
        class Ask(Callback):
            order = Autocast.order+1
            def before_train(self): self.dl.wants['dtype'] = precisions['bf16']
        with learn.no_bar(), learn.no_logging(): learn.fit(1, .01, cbs=Ask())
        assert learn.seen.rows[0][0].dtype==torch.float32 and torch.isfinite(torch.tensor(learn.history.epochs[0]['train_loss']))

def test_grad_cam_sees_whole_images(tiny):
    "The callback explains what is validated, unmixed: its maps are those of the images themselves"
    r = tiny.replace(mixup=1.)
    learn = recipe_learner(r, load_images(r.data), precision='fp32')
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, .01)
        learn.get_preds(cbs=(cam := GradCAMCallback()))
        x = torch.cat([x for x,_ in learn.dls.valid])
    ours,alone = (o.as_subclass(torch.Tensor) for o in (cam.cams,grad_cam(learn.model.eval(), x)))
    torch.testing.assert_close(ours, alone, atol=1e-4, rtol=1e-3)

mixes = [dict(mixup=.4),dict(cutmix=1.)]

@pytest.mark.parametrize('mix', mixes)
def test_any_loss(tiny, mix):
    "PyTorch's own, which do not say that they take class numbers, are mixed as ours is, and are there again afterwards"
    r,seen = tiny.replace(epochs=1, **mix),[]
    for loss in (None,nn.CrossEntropyLoss(),F.cross_entropy):
        learn = recipe_learner(r, load_images(r.data), precision='fp32')
        if loss: learn.loss_func = loss
        was = learn.loss_func
        with learn.no_bar(), learn.no_logging(): learn.fit(1, .01)
        seen.append([s['loss'] for s in learn.history.steps])
        assert learn.loss_func is was
    assert seen[1]==pytest.approx(seen[0]) and seen[2]==pytest.approx(seen[0])

@pytest.mark.parametrize('mix', mixes)
def test_one_image_left(tiny, mix):
    "A last batch of one image has the loss of that image"
    losses = []
    for o in ({},mix):
        r = tiny.replace(epochs=1, bs=71, policy='none', **o)
        learn = recipe_learner(r, load_images(r.data), precision='fp32')
        learn.dls.train.drop_last = False
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 0.)
        losses.append([s['loss'] for s in learn.history.steps])
    assert len(losses[1])==2 and losses[1][1]==pytest.approx(losses[0][1]) and losses[1][0]!=losses[0][0]

def test_interrupted_in_a_batch(tiny):
    "What is predicted then are probabilities, as ever"
    class Stop(Callback):
        def after_loss(self): raise KeyboardInterrupt
    learn = recipe_learner(tiny.replace(mixup=.4), load_images(tiny.data), precision='fp32')
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(KeyboardInterrupt): learn.fit(1, .01, cbs=Stop())
        assert torch.allclose(learn.get_preds()[0].sum(1), torch.ones(len(learn.dls.valid_ds)))

def test_graph_is_refused(tiny, tmp_path):
    for mix,name in ((dict(mixup=.2),'MixUp'),(dict(cutmix=1.),'CutMix')):
        with pytest.raises(CifarFastError, match=f'without asking {name}.*leave out --graph'):
            train_recipe(tiny.replace(**mix), tmp_path/'run', quiet=True, graph=True)
        assert not (tmp_path/'run').exists()

# --- stopping early ------------------------------------------------------------------------------------------------

flat = dict(lr=1e-9, epochs=8)  # learns nothing, so that the first epoch stays the best

def test_stops(tiny, tmp_path):
    "After two epochs without a better one; the results are those of the epochs that were"
    out = tmp_path/'run'
    res = train_recipe(tiny.replace(**flat), out, precision='fp32', quiet=True, valid_pct=.25, patience=2)
    accs = [r['valid_accuracy'] for r in Run(out).read_table('history.csv')]
    best = accs.index(max(accs))
    assert len(accs)==best+3==res['epochs']<8 and res['best_epoch']==best+1 and Run(out).finished
    assert ('stopped early','of 8 epochs') in result_rows(Run(out)) and '--patience 2' in repeat_command(Run(out))
    with pytest.raises(CifarFastError, match='finished'): resume_run(out, quiet=True)

def test_stop_survives_a_resume(tiny, tmp_path, monkeypatch):
    "It knows how long it has waited; a run that was killed after it had stopped stops there again"
    r,kw = tiny.replace(**flat),dict(valid_pct=.25, patience=2)
    whole = train_recipe(r, tmp_path/'whole', precision='fp32', quiet=True, **kw)
    parts = resumed(r, tmp_path/'parts', monkeypatch, **kw)
    assert timeless(whole)==timeless(parts) and whole['epochs']<8 and same(tmp_path/'whole', tmp_path/'parts')
    shutil.copytree(tmp_path/'whole', killed := tmp_path/'killed')
    (killed/'results.json').unlink()
    assert timeless(resume_run(killed, quiet=True))==timeless(whole) and same(killed, tmp_path/'whole')

def test_patience_needs_a_split(tiny, tmp_path):
    with pytest.raises(CifarFastError, match='patience is 2: choose a split to judge by, too, such as --valid_pct .1'):
        train_recipe(tiny, tmp_path/'run', quiet=True, patience=2)
    for bad in (0,-1,.5):
        with pytest.raises(CifarFastError, match='patience is'): train_recipe(tiny, tmp_path/'run', quiet=True, valid_pct=.2, patience=bad)
    assert not (tmp_path/'run').exists()

def test_older_run(tiny, tmp_path):
    "A run from before there was patience opens as ever"
    train_recipe(tiny.replace(epochs=1), tmp_path/'run', precision='fp32', quiet=True)
    c = json.loads((tmp_path/'run/config.json').read_text())
    del c['patience'],c['recipe']['mixup'],c['recipe']['cutmix']
    (tmp_path/'run/config.json').write_text(json.dumps(c))
    (tmp_path/'run/results.json').unlink()
    state = torch.load(tmp_path/'run/checkpoint.pt', weights_only=True)
    del state['follows']  # it came later, too
    torch.save(state, tmp_path/'run/checkpoint.pt')
    assert resume_run(tmp_path/'run', quiet=True)['epochs']==1
    assert Run(tmp_path/'run').finished
