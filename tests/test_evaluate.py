"A run on other images and on damaged copies of its own, as its users start it; temperature scaling where there is a validation split"
import csv,json,os,sys
from types import SimpleNamespace
import numpy as np,pytest
from conftest import draw_folder
from cifar_fast.cli import main
from cifar_fast.data import load_images
from cifar_fast.evaluate import labelled_images,match_classes
from cifar_fast.interpret import Predictions
from cifar_fast.recipes import get_recipe
from cifar_fast.runs import Run
from cifar_fast.train import run_learner,train_recipe

@pytest.fixture(scope='module')
def runs(folder, tmp_path_factory):
    "One with a validation split, one without"
    d = tmp_path_factory.mktemp('runs')
    recipe = get_recipe('assignment').replace(data=str(folder), epochs=2, bs=16, policy='none', model_args=dict(width=4), lr=.02)
    for name,pct in (('split',.25),('whole',0.)): train_recipe(recipe, d/name, quiet=True, valid_pct=pct)
    return d

@pytest.fixture
def script(monkeypatch, capsys):
    "Exit code, stdout and stderr of a script, in this process"
    def run(*argv):
        monkeypatch.setattr(sys, 'argv', ['cifar_fast_evaluate', *map(str, argv), '--quiet'])
        return main(),*capsys.readouterr()
    return run

def test_temperature_of_a_run(runs):
    "Fitted on the validation images, used on the test images; without a split there is none"
    res = json.loads((runs/'split'/'results.json').read_text())
    learn = run_learner(Run(runs/'split'))
    test,valid = [Predictions.from_learner(learn, i) for i in (2,1)]
    assert res['temperature']==pytest.approx(valid.temperature(), rel=1e-3)
    assert (res['ece'],res['ece_scaled'])==pytest.approx((test.calibration()[1],test.scaled(res['temperature']).calibration()[1]), abs=.02)
    assert not {'temperature','ece','ece_scaled'} & json.loads((runs/'whole'/'results.json').read_text()).keys()

def test_other_images(runs, script, tmp_path):
    "Classes by name: one that the net does not know, one without an image, an empty one and a loose file are told"
    other = draw_folder(tmp_path/'other', ('bee','dog','ant'), n=8, n_test=4, seed=3)/'train'
    (other/'cat').mkdir()
    (other/'1.png').write_bytes((other/'ant'/'1.png').read_bytes())
    code,out,err = script(runs/'whole', other, '--out', tmp_path/'e')
    assert code==0, err
    assert 'a class' not in out and '9: no class, dog' in out and 'classes without an image' in out and ' cat\n' in out
    with open(tmp_path/'e'/'predictions.csv') as f: rows = list(csv.DictReader(f))
    assert sorted(r['actual'] for r in rows)==['ant']*8+['bee']*8
    page = (tmp_path/'e'/'evaluation.html').read_text('utf-8')
    assert f"{np.mean([r['correct']=='True' for r in rows]):.2%}" in page and 'Confusion matrix' in page

@pytest.mark.skipif(sys.platform!='linux', reason='names that are no UTF-8 are files of Linux')
def test_folders_as_training_reads_them(tmp_path):
    "Names that cannot be printed are escapes, links are followed, and what a NAS keeps beside the pictures is none of them"
    ims = load_images(draw_folder(tmp_path/'data', ('ant',os.fsdecode(b'caf\xe9')), n=8, n_test=4))
    run = SimpleNamespace(path=tmp_path, config=dict(data=dict(classes=ims.vocab, size=16, mean=[.5]*3, std=[.5]*3)))
    (tmp_path/'other').mkdir()
    for o in (tmp_path/'data'/'test').iterdir(): (tmp_path/'other'/o.name).symlink_to(o)
    thumb = tmp_path/'other'/'ant'/'@eaDir'/'0.png'/'SYNOPHOTO_THUMB_M.png'
    thumb.parent.mkdir(parents=True)
    thumb.write_bytes((tmp_path/'other'/'ant'/'0.png').read_bytes())
    x,names,_ = labelled_images(run, tmp_path/'other')
    kept,y,rows = match_classes(ims.vocab, names)
    assert kept.all() and not rows and np.array_equal(x, ims.test_x) and (y==ims.test_y).all()

def test_its_own_test_set(runs, script, folder, tmp_path):
    code,out,err = script(runs/'whole', folder, '--out', tmp_path/'e')
    acc = json.loads((runs/'whole'/'results.json').read_text())['test_accuracy']
    assert code==0 and f'{acc:.2%}' in out, err

def test_damaged_copies(runs, script):
    "In the table, in the report, and beside the temperature"
    code,out,err = script(runs/'split', '--corrupt')
    assert code==0 and all(k in out for k in ('noise','covered')), err
    rows = Run(runs/'split').read_table('corrupted.csv')
    page = (runs/'split'/'report.html').read_text('utf-8')
    assert len(rows)==4 and len(rows[0])==9 and all(0<=v<=1 for r in rows for k,v in r.items() if k!='strength')
    assert 'Corrupted copies' in page and 'Calibration with the temperature' in page and page.count('<img')>=12

@pytest.mark.parametrize('argv,message', [((), 'name a folder of labelled images'), (('nowhere',), 'no folder or archive nowhere'),
                                          (('shapes10',), 'no image of a class that the net knows (ant, bee, cat)')])
def test_one_line(runs, script, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    code,_,err = script(runs/'whole', *argv)
    assert code==2 and message in err and err.count('\n')==1 and not list(tmp_path.iterdir())

def test_data_are_as_they_were(runs, folder): assert load_images(str(folder)).fingerprint==Run(runs/'whole').config['data']['fingerprint']
