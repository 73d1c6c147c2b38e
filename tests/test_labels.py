"Which labels are wrong: the ranking where the answer is known, no net that has seen what it judges, and a search that was stopped"
import csv,functools,shutil,sys
import numpy as np,pytest
from contextlib import contextmanager
from conftest import draw_folder
import cifar_fast.labels as labels,cifar_fast.train as train
from cifar_fast.core import CifarFastError
from cifar_fast.cli import how_to_go_on,main
from cifar_fast.data import ImageArrays,load_images
from cifar_fast.interpret import Predictions
from cifar_fast.labels import out_of_fold
from cifar_fast.recipes import get_recipe
from cifar_fast.runs import Run
from cifar_fast.train import run_learner

k,recipe = 3,get_recipe('assignment').replace(epochs=2, bs=32, policy='none', model_args=dict(width=4), lr=.02)

def rows_of(path):
    with open(path, newline='') as f: return list(csv.DictReader(f))

@pytest.fixture(scope='module')
def changed(tmp_path_factory):
    "A folder of 300 images, 15 of them under another class; one of these has the name of a formula"
    d,rng = draw_folder(tmp_path_factory.mktemp('labels')/'photos', n=80, n_test=20),np.random.default_rng(0)
    files = sorted(d.rglob('*.png'))
    wrong = [files[i] for i in rng.choice(len(files), 15, replace=False)]
    moved = []
    for i,f in enumerate(wrong):
        other = [c for c in ('ant','bee','cat') if c!=f.parent.name][i%2]
        to = f.parent.parent/other/f"{'=1+' if i==0 else 'moved'}{i}.png"
        shutil.move(f, to)
        moved.append(str(to.relative_to(d)))
    return d,moved

@pytest.fixture(scope='module')
def images(changed):
    first,again = load_images(changed[0]),load_images(changed[0])  # from the files, from the cache
    assert list(first.names)==list(again.names)
    return again

@contextmanager
def trainings():
    "The data of each training that begins in the block"
    res,real = [],train.recipe_learner
    @functools.wraps(real)
    def learner(recipe, images, *args, **kwargs):
        res.append(images)
        return real(recipe, images, *args, **kwargs)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(train, 'recipe_learner', learner)
        yield res

@pytest.fixture(scope='module')
def done(images, tmp_path_factory):
    "Folder and predictions of a search that came to its end, and what was trained on"
    with trainings() as res: preds = out_of_fold(recipe, images, out := tmp_path_factory.mktemp('done')/'l', k, quiet=True)
    return out,preds,res

@pytest.fixture
def script(monkeypatch, capsys):
    "Exit code, stdout and stderr of the script, in this process"
    def run(*argv):
        opts = ['--folds', k, '--epochs', 2, '--bs', 32, '--policy', 'none', '--model-args', 'width=4', '--lr', .02, '--quiet']
        monkeypatch.setattr(sys, 'argv', ['cifar_fast_labels', *map(str, [*argv, *opts])])
        return main(),*capsys.readouterr()
    return run

def test_finds_what_was_changed(changed, script, tmp_path):
    "Of 15 wrong labels in 300, at least 12 are among the first 15: by chance it would be one. Page and table tell them"
    d,wrong = changed
    code,out,err = script(d, '--out', tmp_path/'l')
    assert code==0 and 'suspicious labels' in out, err
    rows = rows_of(tmp_path/'l'/'labels.csv')
    assert len({r['image'] for r in rows[:15]} & {*wrong})>=12, rows[:15]
    assert [float(r['prob_given']) for r in rows]==sorted(float(r['prob_given']) for r in rows)
    for r in rows: assert r['given']==r['image'].split('/')[1]!=r['likely'] and float(r['prob_given'])<float(r['prob_likely'])
    page = (tmp_path/'l'/'labels.html').read_text('utf-8')
    assert f'{len(rows):,}' in page and 'Confusion matrix' in page and page.count('<img')==6
    code,_,err = script(d, '--out', tmp_path/'l')
    assert code==2 and 'is finished' in err and err.count('\n')==1

def test_a_formula_stays_a_name(images, done, tmp_path, monkeypatch):
    "A name that a spreadsheet would compute is written with a quote before it; where there are no names, the images are numbered"
    monkeypatch.setattr(labels, 'out_of_fold', lambda *args, **kwargs: done[1])
    def named(names, out):
        monkeypatch.setattr(train, 'load_images', lambda *args, **kwargs: ImageArrays(**{**vars(images), 'names': names}))
        labels.find_wrong_labels(recipe, out, quiet=True)
        return {r['image'] for r in rows_of(out/'labels.csv')}
    assert named(np.array(['=1+1']*300), tmp_path/'l')=={"'=1+1"}
    found = done[1].suspicious()
    assert named(None, tmp_path/'m')=={f'training image {i}' if i<240 else f'test image {i-240}' for i in found}

def test_no_net_has_seen_what_it_judges(images, done):
    "Each image, by its bytes, is in one fold and not in the training of that; its logits are of the net that the fold's folder holds"
    out,preds,parts = done
    keys = [{o.tobytes() for o in x} for ims in parts for x in (ims.train_x,ims.test_x)]
    whole = {o.tobytes() for x in (images.train_x,images.test_x) for o in x}
    assert len(parts)==k and all(not a&b and a|b==whole for a,b in zip(keys[::2], keys[1::2]))
    assert sum(map(len, keys[1::2]))==len(whole)==len(preds)==300
    fold = images.fold_numbers(k)
    for i,ims in enumerate(parts):
        assert np.array_equal(preds.images[fold==i], ims.test_x) and np.array_equal(preds.targs[fold==i], ims.test_y)
        learn = run_learner(Run(out/f'fold{i}'), ims)
        with learn.no_bar(): z,_ = learn.get_preds(act=lambda x: x)
        np.testing.assert_allclose(preds.logits[fold==i], z, atol=1e-5)

def test_copies_are_in_one_fold(images):
    "Even if they have two labels"
    ims,n = images,len(images.test_y)
    twice = ImageArrays(ims.train_x, ims.train_y, ims.train_x[:n][::-1], ims.test_y, ims.vocab, 'twice')
    fold = twice.fold_numbers(k)
    assert np.array_equal(fold[:n], fold[:-n-1:-1]) and set(fold)=={*range(k)} and (ims.train_y[:n][::-1]!=ims.test_y).any()

def test_stopped_and_gone_on(images, done, tmp_path):
    "Killed before it had written a file, then stopped in the second fold: the same call trains what is missing, and ends in the same bits"
    (tmp_path/'l'/'fold0').mkdir(parents=True)
    (tmp_path/'l'/'fold0'/'.config.json.4194304.tmp').write_text('{')  # above any number of a process
    real,whole = train.Checkpoint.after_epoch,done[1]
    def after_epoch(self):
        real(self)
        if self.folder.path.name=='fold1': raise KeyboardInterrupt
    with pytest.MonkeyPatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(train.Checkpoint, 'after_epoch', after_epoch)
        out_of_fold(recipe, images, tmp_path/'l', k, quiet=True)
    assert not Run(tmp_path/'l'/'fold1').finished and 'give the same command with --out' in how_to_go_on(tmp_path/'l')
    with trainings() as res: again = out_of_fold(recipe, images, tmp_path/'l', k, quiet=True)
    assert len(res)==2 and np.array_equal(again.logits, whole.logits)
    with trainings() as res: again = out_of_fold(recipe, images, tmp_path/'l', k, quiet=True)
    assert not res and np.array_equal(again.logits, whole.logits)

def test_the_batch_fits_into_every_training(monkeypatch, tmp_path):
    "Also where a validation split takes more of one than of another"
    rng,seen = np.random.default_rng(0),[]
    def fold_run(recipe, how, part, *args):
        seen.append((recipe.bs,len(part.split(how['valid_pct'], how['seed'])[0])))
        return Predictions(np.zeros((len(part.test_y),4)), part.test_y, part.vocab)
    monkeypatch.setattr(labels, 'fold_run', fold_run)
    for i in range(40):
        y = np.repeat(np.arange(4), rng.integers(10, 40, 4))
        x = rng.integers(0, 256, (len(y),8,8,3), dtype=np.uint8)
        ims = ImageArrays(x[::2], y[::2], x[1::2], y[1::2], list('abcd'), 'noise')
        out_of_fold(get_recipe('assignment'), ims, tmp_path/str(i), quiet=True, valid_pct=.1)
    assert len(seen)==200 and all(bs<=n for bs,n in seen)

def files(path): return {o: o.stat().st_mtime_ns for o in path.rglob('*') if o.is_file()}

@pytest.mark.parametrize('lr,how,folds,message', [
    (.03, {}, k, 'another recipe'), (None, {}, 2, 'another number of folds'), (None, dict(seed=1), k, 'another seed'),
    (None, dict(precision='fp31'), k, 'unknown precision'), (None, {}, 1, 'folds is 1'), (None, {}, 250, 'too few for 250 folds')])
def test_one_line(images, done, tmp_path, lr, how, folds, message):
    "Another search is no reason to overwrite one, and nothing is left of one that cannot begin"
    before = files(done[0])
    with pytest.raises(CifarFastError, match=message): out_of_fold(recipe.replace(lr=lr), images, done[0], folds, quiet=True, **how)
    assert files(done[0])==before
    if 'another' in message: return
    with pytest.raises(CifarFastError, match=message): out_of_fold(recipe, images, tmp_path/'new', folds, quiet=True, **how)
    assert not (tmp_path/'new').exists()

def test_in_the_way(script, changed, tmp_path):
    (tmp_path/'l').mkdir()
    (tmp_path/'l'/'mine.txt').write_text('mine')
    code,_,err = script(changed[0], '--out', tmp_path/'l')
    assert code==2 and 'is not empty' in err and [o.name for o in (tmp_path/'l').iterdir()]==['mine.txt']
    code,_,err = script('nowhere', '--out', tmp_path/'m')
    assert code==2 and 'no folder or archive' in err and not (tmp_path/'m').exists()
