"Runs whose data move, runs that begin from another one, and classes that are drawn as often as the others"
import json,shutil
import numpy as np,pytest,torch
from conftest import draw_folder,interrupted
from safetensors.torch import load_file
from sklearn.metrics import balanced_accuracy_score
import cifar_fast.cli as cli
from cifar_fast.core import CifarFastError
from cifar_fast.data import ImageArrays,load_images
from cifar_fast.interpret import Predictions
from cifar_fast.loaders import cifar_dls
from cifar_fast.recipes import get_recipe
from cifar_fast.runs import Run,compare_table,find_runs,result_rows
from cifar_fast.train import move_run,recipe_learner,resume_run,run_learner,run_recipe,train_recipe,train_seeds

def tiny(folder, **kwargs):
    return get_recipe('demo').replace(**{**dict(data=str(folder), epochs=2, bs=16, policy='flip_crop', model_args=dict(width=4)), **kwargs})

def train(recipe, out, **kwargs): return train_recipe(recipe, out, precision='fp32', quiet=True, **kwargs)
def weights(run): return load_file(run/'model.safetensors')
def same(a, b): return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)

@pytest.fixture(scope='module')
def first(folder, tmp_path_factory):
    "A finished run on three classes"
    out = tmp_path_factory.mktemp('first')/'run'
    train(tiny(folder), out)
    return out

@pytest.fixture(scope='module')
def others(tmp_path_factory): return draw_folder(tmp_path_factory.mktemp('others')/'pets', ('dog','owl'), n=20, n_test=6, seed=5)

def test_begins_with_the_weights(first, folder, others):
    "The same classes: every tensor. Other classes: all but the head, and the run's own normalisation instead of that of the new images"
    there = weights(first)
    for data,n in ((folder,3),(others,2)):
        ims = load_images(data)
        learn = recipe_learner(tiny(data, start=str(first)), ims, precision='fp32')
        ours = learn.model.state_dict()
        assert {k for k in there if not torch.equal(ours[k], there[k])}==({'fc.weight'} if n==2 else set())
        assert ours['fc.weight'].shape==(n,32)
        norm = next(f for f in learn.dls.after_batch.fs if hasattr(f, 'mean'))
        assert norm.mean.flatten().tolist()==pytest.approx(Run(first).config['data']['mean'])

def test_says_that_the_head_is_new(first, others, capsys):
    recipe_learner(tiny(others, start=str(first)), load_images(others))
    assert capsys.readouterr().out.startswith('a new head for 2 classes: those of')

def test_freeze_then_fine_tune(first, others):
    "As fastai does it: first the head alone, then everything, the body at a smaller rate"
    learn = recipe_learner(tiny(others, start=str(first)), load_images(others), precision='fp32')
    before = {k: v.clone() for k,v in learn.model.state_dict().items()}
    learn.freeze()
    assert [k for k,p in learn.model.named_parameters() if p.requires_grad and p.ndim>1]==['fc.weight']
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, .01)
        after = learn.model.state_dict()
        assert torch.equal(after['layer1.conv.weight'], before['layer1.conv.weight'])
        assert not torch.equal(after['fc.weight'], before['fc.weight'])
        learn.fine_tune(1, base_lr=.01)
    low,high = (h['lr'] for h in learn.opt.hypers)
    assert low<high and not torch.equal(learn.model.state_dict()['layer1.conv.weight'], before['layer1.conv.weight'])

def test_whitening_stays_as_it_was(folder, tmp_path):
    "What the first run did not train the second does not either, after `unfreeze` too"
    r = tiny(folder, epochs=1, model_args=dict(width=4, whiten=True))
    train(r, tmp_path/'a')
    learn = recipe_learner(r.replace(start=str(tmp_path/'a')), load_images(folder), precision='fp32')
    was = weights(tmp_path/'a')['whiten.weight']
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1, base_lr=.01)
    assert not learn.model.whiten.weight.requires_grad and torch.equal(learn.model.whiten.weight, was)

def test_start_at_the_command_line(first, others, tmp_path, capsys):
    "The run's own recipe, but for what is said; the run that it began from is no longer needed afterwards"
    begin = tmp_path/'begin'
    shutil.copytree(first, begin)
    cli.cifar_fast_train(start=str(begin), data=str(others), epochs='3', out=str(tmp_path/'run'), quiet=True, report=False)
    r = run_recipe(Run(tmp_path/'run'))
    assert (r.name,r.epochs,r.start,r.model_args)==('demo',3,str(begin),dict(width=4))
    shutil.rmtree(begin)
    assert 'test accuracy' in capsys.readouterr().out
    learn = run_learner(Run(tmp_path/'run'))
    assert same({k: v.cpu() for k,v in learn.model.state_dict().items()}, weights(tmp_path/'run'))

def test_resumes_without_the_run_it_began_from(first, others, tmp_path, monkeypatch):
    begin = tmp_path/'begin'
    shutil.copytree(first, begin)
    r = tiny(others, start=str(begin))
    train(r, tmp_path/'whole')
    interrupted(r, tmp_path/'parts', monkeypatch)
    shutil.rmtree(begin)
    resume_run(tmp_path/'parts', quiet=True)
    assert same(weights(tmp_path/'whole'), weights(tmp_path/'parts'))

def test_start_with_what_cannot_be(first, folder, tmp_path, monkeypatch):
    ims = load_images(folder)
    for bad,why in ((dict(model_args=dict(width=8)), 'another model.*--recipe'), (dict(start=str(tmp_path/'none')), 'no run at')):
        with pytest.raises(CifarFastError, match=why) as e: recipe_learner(tiny(folder, **{'start': str(first), **bad}), ims)
        assert '\n' not in str(e.value)
    cut = interrupted(tiny(folder), tmp_path/'cut', monkeypatch)
    with pytest.raises(CifarFastError, match='not finished: cifar_fast_train --resume'): recipe_learner(tiny(folder, start=str(cut)), ims)
    with pytest.raises(CifarFastError, match='begins with one set'): tiny(folder, start='a', model='torchvision/resnet18', pretrained=True)

def test_resume_with_more_epochs_says_what_does_it(first):
    with pytest.raises(CifarFastError) as e: cli.cifar_fast_train(resume=str(first), epochs='60')
    said = str(e.value)
    assert 'leave out what sets its epochs' in said and said.endswith(f'cifar_fast_train --start {first} --epochs 60') and '\n' not in said

def test_a_name_is_no_folder(tmp_path, monkeypatch):
    "A folder that is called as a built-in data set is, in the place where one works, does not take its place"
    monkeypatch.chdir(tmp_path)
    for o in ('shapes10','cifar10','coarse'): (tmp_path/o).mkdir()
    for kw in (dict(data='shapes10'),dict(data='cifar10'),dict(data='x', labels='coarse')):
        r = get_recipe('demo').replace(**kw)
        assert r.located()==r
    assert get_recipe('demo').replace(data='./shapes10').located().data==str(tmp_path/'shapes10')

def test_start_from_a_run_that_was_pretrained(first, tmp_path):
    "Its weights take the place of those that it began with, unless both are asked for; switches stand alone"
    shutil.copytree(first, tmp_path/'run')
    c = json.loads((tmp_path/'run/config.json').read_text())
    c['recipe'].update(model='torchvision/resnet18', model_args={}, pretrained=True)
    (tmp_path/'run/config.json').write_text(json.dumps(c))
    r = get_recipe(str(tmp_path/'run'))
    assert r.pretrained and not r.changed(start=str(tmp_path/'run')).pretrained
    with pytest.raises(CifarFastError, match='begins with one set'): r.changed(start=str(tmp_path/'run'), pretrained='true')
    with pytest.raises(CifarFastError) as e: cli.cifar_fast_train(resume=str(first), compile=True, seed=3)
    assert str(e.value).endswith(f'cifar_fast_train --start {first} --compile --seed 3')

def test_data_that_moved(tmp_path, monkeypatch, capsys):
    "Nothing there: one line says how to tell. Other images there: refused, and nothing is written. The same there: on to the same end"
    old,new = draw_folder(tmp_path/'old'),tmp_path/'disk'/'new'
    train(tiny(old), tmp_path/'whole')
    cut = interrupted(tiny(old), tmp_path/'cut', monkeypatch)
    shutil.move(old, new)
    with pytest.raises(CifarFastError, match=f'are not there any more: if they have moved, cifar_fast_train --resume {cut} --data'):
        resume_run(cut, quiet=True)
    before = (cut/'config.json').read_bytes()
    with pytest.raises(CifarFastError, match='is not what it was'):
        cli.cifar_fast_train(resume=str(cut), data=str(draw_folder(tmp_path/'other', seed=1)), quiet=True)
    assert (cut/'config.json').read_bytes()==before
    for run in ('cut','whole'): cli.cifar_fast_train(resume=str(tmp_path/run), data=str(new), quiet=True, report=False)
    assert same(weights(cut), weights(tmp_path/'whole')) and capsys.readouterr().out.count('run folder')==2
    assert {run_recipe(Run(tmp_path/o)).data for o in ('cut','whole')}=={str(new)}
    assert run_learner(Run(tmp_path/'whole')).dls.train.n==72

def test_an_archive_of_the_same(first, folder, tmp_path):
    "The fingerprint is of the images, not of how they are kept"
    shutil.copytree(first, tmp_path/'run')
    shutil.make_archive(tmp_path/'images', 'zip', folder)
    assert run_recipe(move_run(Run(tmp_path/'run'), tmp_path/'images.zip')).data==str(tmp_path/'images.zip')

def test_seeds_whose_data_moved(tmp_path):
    "The same command with the new place goes on; runs on the same images at two places are one experiment"
    old,new,kw = draw_folder(tmp_path/'old'),tmp_path/'new',dict(precision='fp32', quiet=True)
    train(tiny(old, epochs=1), tmp_path/'s'/'seed0')
    shutil.move(old, new)
    res = train_seeds(tiny(new, epochs=1), tmp_path/'s', 2, **kw)
    assert res['n']==2 and run_recipe(Run(tmp_path/'s'/'seed0')).data==str(new)
    config = json.loads((tmp_path/'s'/'seed0'/'config.json').read_text())
    config['recipe']['data'] = str(old)
    (tmp_path/'s'/'seed0'/'config.json').write_text(json.dumps(config))
    assert [r['n'] for r in compare_table(find_runs(tmp_path/'s'))]==[2]
    with pytest.raises(CifarFastError, match='another recipe'): train_seeds(tiny(new, epochs=1, lr=.05), tmp_path/'s', 2, **kw)

@pytest.fixture(scope='module')
def uneven():
    "Two classes, 90 images and 10; each pixel says which image it is"
    x = np.arange(100, dtype=np.uint8)[:,None,None,None]*np.ones((1,16,16,3), np.uint8)
    return ImageArrays(x, np.repeat([0,1], (90,10)), x[80:], np.repeat([0,1], (10,10)), ['often','rare'], 'uneven')

@pytest.mark.parametrize('pipeline', ['device','item'])
def test_balance(uneven, pipeline):
    "Half of what is drawn is of the rare class, every image of a class as often as the others; what is held out stays as it is"
    def drawn(balance):
        torch.manual_seed(0)
        dl = cifar_dls(uneven, 10, 'none', pipeline=pipeline, device='cpu', balance=balance).train
        return np.concatenate([np.array(dl.idxs) for _ in range(40) if len([*dl])])
    idxs = drawn(True)
    rare = idxs[idxs>=90]
    assert len(rare)/len(idxs)==pytest.approx(.5, abs=4*(.25/4000)**.5)
    n = np.bincount(rare-90, minlength=10)
    assert ((n-len(rare)/10)**2/(len(rare)/10)).sum()<27.9  # chi-square of 9 degrees of freedom, one in a thousand
    assert set(np.bincount(drawn(False)))=={40}
    dls = cifar_dls(uneven, 10, 'none', pipeline=pipeline, device='cpu', balance=True)
    assert torch.cat([y for _,y in dls[1]]).tolist()==uneven.test_y.tolist()
    a,b = (torch.cat([y for _,y in dls.train]) for _ in range(2))
    assert not torch.equal(a, b)

def test_balance_counts_what_is_trained_on(uneven):
    "With a validation split the weights are those of the rest"
    dls = cifar_dls(uneven, 10, 'none', valid_pct=.2, pipeline='device', device='cpu', balance=True)
    assert len(dls.train.weights)==80 and dls.train.weights.sum().item()==pytest.approx(2)

def test_balanced_runs_resume_and_tell(tmp_path, monkeypatch):
    "The draws are part of what a checkpoint keeps; results and their table have the balanced accuracy"
    d = draw_folder(tmp_path/'d')
    for i in range(18): (d/'train'/'cat'/f'{i}.png').unlink()
    r = tiny(d, balance=True)
    results = train(r, tmp_path/'whole')
    resume_run(interrupted(r, tmp_path/'parts', monkeypatch), quiet=True)
    assert same(weights(tmp_path/'whole'), weights(tmp_path/'parts'))
    p = Predictions.load(tmp_path/'whole'/'predictions.safetensors', ['ant','bee','cat'])
    assert results['balanced_accuracy']==pytest.approx(balanced_accuracy_score(p.targs, p.preds))
    said = f"{results['balanced_accuracy']:.2%}"
    assert dict(result_rows(Run(tmp_path/'whole')))['balanced accuracy, the mean over the classes']==said  # above the page, too
