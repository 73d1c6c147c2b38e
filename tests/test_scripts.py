"The scripts that look at a run, as their users meet them"
import csv,itertools,json,re
import numpy as np,pytest
from PIL import Image
from scipy.stats import ttest_ind
from cifar_fast.runs import Run
from cifar_fast.train import run_model

small = ['--epochs','2','--bs','16','--policy','none','--model_args','width=4','--lr','.05','--quiet']

@pytest.fixture(scope='module')
def done(folder, run_script, tmp_path_factory):
    "Two runs that differ in their seed, and everything that can be made of them"
    d = tmp_path_factory.mktemp('done')
    (d/'pictures'/'deep').mkdir(parents=True)
    for i,size in enumerate([(16,16),(90,60),(40,200)]):
        noise = np.random.default_rng(i).integers(0, 256, (*size[::-1],3), dtype=np.uint8)
        Image.fromarray(noise).save(d/'pictures'/('deep' if i else '.')/f'{i}.png')
    (d/'broken.jpg').write_bytes(b'no image')
    (d/'nothing').mkdir()
    (d/'mine.toml').write_text('gama = 0.1')
    calls = dict(
        a=['--data',folder,*small,'--out',d/'a'], b=['--data',folder,*small,'--out',d/'b','--seed',1,'--no_report'],
        seeds=['--data',folder,*small,'--out',d/'seeds','--seeds',2,'--no_report'],
        seeds_again=['--data',folder,*small,'--out',d/'seeds','--seeds',2],
        set=['--data',folder,*small[2:],'--out',d/'set','--nesterov','False','--epochs',1,'--no-report'],
        lr_find=['cifar_fast_lr_find','--recipe','demo','--data',folder,'--bs',16,'--model-args',"{'width':4}",'--steps',12,
                 '--out',d/'lr','--quiet'],
        report=['cifar_fast_report',d/'b'], compare=['cifar_fast_compare',d/'a',d/'b','--out',d/'compare.html'],
        differ=['cifar_fast_compare',d/'a',d/'set','--out',d/'differ.html'],
        explain=['cifar_fast_explain',d/'a',d/'pictures','--out',d/'explained'], export=['cifar_fast_export',d/'a','--out',d/'exported'],
        sweep=['--data',folder,*small,'--out',d/'sweep','--sweep','wd=0,.01 mom=.5,.9','--seeds',2,'--valid_pct',.25],
        sweep_again=['--data',folder,*small,'--out',d/'sweep','--sweep','wd=0,.01 mom=[.5,.9]','--seeds',2,'--valid_pct',.25],
        compare_sweep=['cifar_fast_compare',d/'sweep','--out',d/'sweep.html'],
        file=['--recipe',d/'a',*small[2:],'--epochs',1,'--out',d/'file','--no_report'],
        bad_set=['--data',folder,*small,'--nesterv','False'],
        bad_bool=['--data',folder,*small,'--nesterov','perhaps'],
        bad_dict=['--data',folder,*small,'--opt_args','wd'], no_effect=['--data',folder,*small,'--opt_args','mom=.1'],
        bad_seeds=['--data',folder,*small,'--out',d/'zero','--seeds',0],
        sweep_twice=['--data',folder,*small,'--out',d/'w','--sweep','lr=.1,.2'],
        sweep_same=['--data',folder,*small,'--out',d/'w','--sweep','wd=.1,0.10'], sweep_empty=['--out',d/'w','--sweep','lr='],
        sweep_name=['--out',d/'w','--sweep','rl=.1,.2'], sweep_seed=['--out',d/'w','--sweep','lr=.1,.2','--seed',1],
        sweep_resume=['--resume',d/'a','--sweep','lr=.1,.2'], file_key=['--recipe',d/'mine.toml','--out',d/'w'],
        report_none=['cifar_fast_report',d/'nowhere'], report_other=['cifar_fast_report',d/'pictures'],
        compare_none=['cifar_fast_compare',d/'a',d/'nowhere'], compare_page=['cifar_fast_compare',d/'a','--out',d/'a'],
        lr_recipe=['cifar_fast_lr_find','--recipe','dem'], lr_kept=['cifar_fast_lr_find','--out',d/'a'],
        lr_range=['cifar_fast_lr_find','--recipe','demo','--data',folder,'--bs',16,'--start',1,'--end',.1,'--out',d/'lr2'],
        explain_none=['cifar_fast_explain',d/'a',d/'nowhere.png'],
        explain_broken=['cifar_fast_explain',d/'a',d/'broken.jpg','--out',d/'e1'],
        explain_empty=['cifar_fast_explain',d/'a',d/'nothing','--out',d/'e2'],
        explain_layer=['cifar_fast_explain',d/'a',d/'pictures','--layer','layr1','--out',d/'e3'],
        explain_class=['cifar_fast_explain',d/'a',d/'pictures','--target','bea','--out',d/'e4'],
        explain_kept=['cifar_fast_explain',d/'a',d/'pictures','--out',d/'pictures'],
        export_kept=['cifar_fast_export',d/'a','--out',d/'exported'])
    return d,dict(zip(calls, run_script(*calls.values())))

@pytest.mark.parametrize('name', '''a b seeds seeds_again sweep sweep_again compare_sweep file set lr_find report compare differ explain
                                    export'''.split())
def test_ends_well(done, name): assert done[1][name][0]==0, done[1][name]

@pytest.mark.parametrize('name,message', dict(
    bad_set='unrecognized arguments: --nesterv', bad_bool="nesterov is 'perhaps'", bad_dict="opt_args is 'wd'", no_effect='opt_args',
    bad_seeds='at least',
    sweep_twice='lr is in --sweep and given once more', sweep_same='wd=0.1 is in the sweep twice', sweep_empty="'lr=' is not",
    sweep_name="did you mean 'lr'", sweep_seed='leave out --seed', sweep_resume='sweep', file_key="did you mean 'gamma'",
    report_none='no run at', report_other='config.json',
    compare_none='nowhere', compare_page='.html', lr_recipe="did you mean 'demo'", lr_kept='another run',
    lr_range='start', explain_none='nowhere.png', explain_broken='broken.jpg', explain_empty='nothing', explain_layer="'layer1'",
    explain_class="did you mean 'bee'", explain_kept='pictures', export_kept='exported').items())
def test_one_line(done, name, message):
    code,out,err = done[1][name]
    assert code==2, (out,err)
    assert err.startswith('cifar_fast_') and err.count('\n')==1 and message in err, err

@pytest.mark.parametrize('name', 'ab')
def test_report_is_one_whole_page(done, name):
    text = (done[0]/name/'report.html').read_text(encoding='utf-8')
    assert not re.findall(r'(?:src|href)="(?!data:|#)|<script|@import|url\(', text) and len(text)<5e6
    assert f"{json.loads((done[0]/name/'results.json').read_text())['test_accuracy']:.2%}" in text

def test_compare(done):
    accs = [json.loads((done[0]/o/'results.json').read_text())['test_accuracy'] for o in 'ab']
    assert f'{np.mean(accs):.2%} ± {np.std(accs, ddof=1):.2%}' in (done[0]/'compare.html').read_text(encoding='utf-8')

@pytest.mark.parametrize('page', ['a/report.html','b/report.html','compare.html','differ.html','sweep.html'])
def test_page_in_the_browser(done, browser, page):
    "On a phone and a desk, by day and by night: no wider than the screen, easy to read, silent, and alone"
    page = done[0]/page
    for width,dark in itertools.product((390,1280), (False,True)): assert browser.look(page, width, dark)==[page.as_uri()]

def test_seeds(done):
    "Seed 0 of several is the run of seed 0; what is finished is not trained again"
    d,res = done
    accs = [json.loads((o/'results.json').read_text())['test_accuracy'] for o in (d/'seeds'/'seed0',d/'a')]
    assert accs[0]==accs[1]
    assert ' ± ' in res['seeds'][1] and res['seeds_again'][1].splitlines()[:4]==res['seeds'][1].splitlines()[:4]

def test_sweep(done):
    "Four combinations of two runs: finished ones are not trained again, and the differences are SciPy's"
    d,res = done
    lines = res['sweep'][1].splitlines()
    assert res['sweep_again'][1].splitlines()[-7:]==lines[-7:] and not (d/'w').exists()
    def accuracies(p): return [json.loads((o/'results.json').read_text())['valid_accuracy'] for o in sorted(p.iterdir())]
    accs = {p: accuracies(p) for p in sorted((d/'sweep').iterdir())}
    assert {p.name for p in accs}=={'wd=0.0_mom=0.5','wd=0.0_mom=0.9','wd=0.01_mom=0.5','wd=0.01_mom=0.9'}
    means = {p.name.replace('_', ' '): f'{np.mean(o):.2%} ± {np.std(o, ddof=1):.2%}' for p,o in accs.items()}
    shown = [l for l in lines if l.startswith('wd=')]
    assert sorted(means)==sorted(l.split('  ')[0] for l in shown) and all(means[l.split('  ')[0]] in l for l in shown)
    tops = [max(np.mean(o) for o in accs.values()),float(shown[0].split()[2][:-1])/100]
    assert tops[0]==pytest.approx(tops[1], abs=1e-4) and [l for l in shown if 'the best' in l]==shown[:1]
    first,*others = accs.values()
    said = res['compare_sweep'][1].splitlines()[1:-1]
    for o,line in zip(others, said):
        diff = np.mean(o)-np.mean(first)
        se = abs(diff/ttest_ind(o, first, equal_var=False).statistic) if diff else np.hypot(np.std(o), np.std(first))
        assert f'{100*diff:+.2f} ± {100*se:.2f} points: {"no" if abs(diff)<2*se or not diff else "a"} difference' in line
        assert line.split('  ')[-1].strip() in (d/'sweep.html').read_text(encoding='utf-8')

def test_single_runs_say_nothing(done): assert 'nothing can be said' in done[1]['differ'][1]

def test_recipe_of_a_run(done):
    a,b = (Run(done[0]/o).config['recipe'] for o in ('a','file'))
    assert b==dict(a, epochs=1, peak_epoch=b['peak_epoch'], step_epochs=b['step_epochs']) and b['data']==a['data']

def test_set(done): assert Run(done[0]/'set').config['recipe']['nesterov'] is False

def test_lr_find(done):
    with open(done[0]/'lr'/'range.csv') as f: lrs = [float(r['lr']) for r in csv.DictReader(f)]
    np.testing.assert_allclose(lrs, np.geomspace(1e-4, 1, 12)[:len(lrs)], rtol=1e-6)
    assert (done[0]/'lr'/'range.png').read_bytes()[:4]==b'\x89PNG'

def test_explain(done):
    import torch
    from cifar_fast.data import image_array
    d = done[0]
    with open(d/'explained'/'explained.csv') as f: rows = list(csv.DictReader(f))
    assert len(rows)==3 and len(list((d/'explained').glob('*.png')))==3
    run = Run(d/'a')
    data,net = run.config['data'],run_model(run)
    for r in rows:
        x = torch.tensor(image_array(Image.open(r['image']), data['size'])).permute(2,0,1)/255
        probs = net(((x-torch.tensor(data['mean'])[:,None,None])/torch.tensor(data['std'])[:,None,None])[None]).softmax(1)[0]
        assert r['class_1']==data['classes'][probs.argmax()] and abs(float(r['prob_1'])-probs.max().item())<1e-3

def test_export(done):
    ort = pytest.importorskip('onnxruntime')
    assert ort.InferenceSession(done[0]/'exported'/'model.onnx').get_inputs()[0].shape[1]==3
