"A page to try a net on, in a browser, and a model card: what each shows is what the run says"
import json,os,socket,sys,urllib.request
import pytest,yaml
from PIL import Image
from browser import look_js
from conftest import draw_folder
from cifar_fast.cli import main
from cifar_fast.core import CifarFastError
from cifar_fast.demo import NetOnShow,serve_demo
from cifar_fast.evaluate import evaluate_run
from cifar_fast.explain import explain
from cifar_fast.export import export_run
from cifar_fast.recipes import get_recipe
from cifar_fast.runs import Run,run_results
from cifar_fast.train import train_recipe

odd = '<b>bee|*'  # a class whose name is Markdown, HTML and the end of a table's cell

@pytest.fixture(scope='module')
def data(tmp_path_factory): return draw_folder(tmp_path_factory.mktemp('sharing')/'photos', ('ant',odd,'cat'))

@pytest.fixture(scope='module')
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp('run')
    r = get_recipe('assignment').replace(data=str(data), epochs=3, bs=16, policy='none', model_args=dict(width=4), lr=.05)
    train_recipe(r, out/'run', precision='fp32', valid_pct=.25, quiet=True)
    return Run(out/'run')

@pytest.fixture(scope='module')
def picture(data, tmp_path_factory):
    "Not square, and turned by the note of a camera"
    path = tmp_path_factory.mktemp('picture')/'bee.jpg'
    (turned := Image.Exif())[274] = 6
    Image.open(data/'test'/odd/'0.png').resize((300,200)).save(path, exif=turned)
    return path

@pytest.fixture(scope='module')
def page(run):
    pytest.importorskip('gradio', reason='the page is made by gradio: pip install gradio')
    page,url = serve_demo(run.path)
    yield url
    page.close(verbose=False)

def said_by(capsys, *argv):
    "Exit code and output of a script"
    was,sys.argv = sys.argv,list(map(str, argv))
    try: return main(),*capsys.readouterr()
    finally: sys.argv = was

@pytest.mark.parametrize('width,dark', [(1280,False),(390,False),(390,True)])
def test_page_in_the_browser(page, run, picture, browser, tmp_path, width, dark):
    "A picture gets the classes that `explain` writes, and a map, of any layer; nothing is asked of another machine"
    row = explain(run, picture, tmp_path/'explained')[0]
    b,heat = browser.page,'#heat img'
    browser.errors.clear(), browser.requests.clear()
    b.set_viewport_size(dict(width=width, height=900))
    b.emulate_media(color_scheme='dark' if dark else 'light')
    b.goto(page)
    b.set_input_files('#picture input[type=file]', picture)
    b.wait_for_selector(heat)
    b.wait_for_function('s => document.querySelector(s).naturalWidth>0', arg=heat)
    shown = b.inner_text('#classes')
    assert row['class_1'] in shown and f"{row['prob_1']:.0%}" in shown, shown
    assert f"evidence for {row['explained']}" in b.inner_text('#of')
    first = b.get_attribute(heat, 'src')
    w,h = b.eval_on_selector(heat, 'o => [o.naturalWidth,o.naturalHeight]')
    assert h==pytest.approx(1.5*w, abs=2)  # upright
    b.click('#layer input')
    b.click('[role=option] >> nth=0')
    b.wait_for_function('([s, was]) => document.querySelector(s)?.src!=was', arg=[heat,first])
    b.click('text=Draw a test image')
    b.wait_for_selector('text=actual class:')
    show,i = NetOnShow(run),int(b.inner_text('text=actual class:').split(',')[0].split()[-1])
    probs = show.look(show.draw(tmp_path, i)[0])[0]
    b.wait_for_function('([s, n]) => document.querySelector(s).innerText.includes(n)', arg=['#classes',f'{max(probs.values()):.0%}'])
    b.wait_for_function('() => !document.querySelector("#heat .progress-text, #heat .wrap.generating")')
    b.wait_for_timeout(500)  # what fades in
    wide,is_dark,faint = b.evaluate(look_js)
    if folder := os.environ.get('CIFAR_FAST_SHOTS'): b.screenshot(path=f'{folder}/{width}{"-dark"*dark}.png', full_page=True)
    assert wide<=width and is_dark==dark and not faint, (wide, is_dark, faint)
    assert all(o.startswith((page,'data:','blob:')) for o in browser.requests), browser.requests
    assert not [o for o in browser.errors if o!='Method not implemented.'], browser.errors  # that one is gradio's own, on each visit

def test_damaged_picture_in_the_browser(page, browser, tmp_path, capfd):
    "One line on the page, none in the terminal"
    (tmp_path/'bad.png').write_bytes(b'\x89PNG\r\n\x1a\nno picture')
    browser.page.goto(page)
    browser.page.set_input_files('#picture input[type=file]', tmp_path/'bad.png')
    browser.page.wait_for_selector('text=cannot read the image bad.png')
    assert 'Traceback' not in capfd.readouterr().err

def test_page_of_this_machine_only(page):
    "Another address of this machine is not served, and the browser is told to ask no other machine"
    port = int(page.rstrip('/').rpartition(':')[2])
    with pytest.raises(OSError): socket.create_connection(('127.0.0.2',port), 2).close()
    with urllib.request.urlopen(page) as o:
        assert o.headers['content-security-policy'].startswith("default-src 'self'")
        text = o.read().decode()
    assert 'fonts.googleapis' not in text and 'fonts.gstatic' not in text

def test_script(run, capsys, monkeypatch):
    "It prints where the page is, and serves it"
    gr,seen = pytest.importorskip('gradio'),[]
    def visit(page):
        with urllib.request.urlopen(page.local_url) as o: seen.append((o.status,page.local_url))
        page.close(verbose=False)
    monkeypatch.setattr(gr.Blocks, 'block_thread', visit)
    code,out,_ = said_by(capsys, 'cifar_fast_demo', run.path)
    assert code==0 and seen==[(200,out.split()[0])] and out.startswith('http://127.0.0.1:')
    assert os.environ['GRADIO_ANALYTICS_ENABLED']=='False'

def test_one_line(run, capsys, monkeypatch, tmp_path):
    "What a person can mend, with exit code 2"
    with socket.socket() as s:
        s.bind(('127.0.0.1',0))
        s.listen()
        port = s.getsockname()[1]
        cases = [(('cifar_fast_demo',run.path,'--port',port), f'port {port} of 127.0.0.1 is in use'),
                 (('cifar_fast_demo',run.path,'--port',70000), '1 to 65535'),
                 (('cifar_fast_demo',tmp_path), 'no config.json'),
                 (('cifar_fast_export',run.path,'--out',tmp_path/'x','--licence','mit'), 'add --card'),
                 (('cifar_fast_export',run.path,'--out',tmp_path/'x','--card','--learner'), 'leave out --learner')]
        got = [(said_by(capsys, *argv),msg) for argv,msg in cases]
        monkeypatch.setattr('importlib.util.find_spec', lambda o: None)
        got += [(said_by(capsys, 'cifar_fast_demo', run.path), "pip install 'cifar_fast[demo]'"),
                (said_by(capsys, 'cifar_fast_export', run.path, '--out', tmp_path/'x', '--card'), "pip install 'cifar_fast[onnx]'")]
    for (code,out,err),msg in got: assert code==2 and not out and msg in err and err.count('\n')==1, (code,out,err)
    assert not (tmp_path/'x').exists()

def test_without_its_data(run, picture, monkeypatch):
    "A net whose data are elsewhere shows what is dropped on it"
    with_data = NetOnShow(run)
    monkeypatch.setattr('cifar_fast.demo.run_images', lambda run: (_ for _ in ()).throw(CifarFastError('they are gone')))
    without = NetOnShow(run)
    assert without.images is None and 'they are gone' in without.lost and without.look(picture)[0]==with_data.look(picture)[0]

@pytest.mark.parametrize('size', [(1500,1),(1,1500)])
def test_a_thin_picture(run, tmp_path, size):
    "The heat over it is a picture, too"
    Image.new('RGB', size).save(tmp_path/'thin.png')
    assert max(NetOnShow(run).look(tmp_path/'thin.png')[1].size)==600

@pytest.fixture(scope='module')
def card(run, tmp_path_factory):
    for o in ('onnx','onnxscript','onnxruntime'): pytest.importorskip(o)
    out = tmp_path_factory.mktemp('card')/'card'
    return out,export_run(run, out, card=True, best=True, licence='Apache-2.0')

def test_card(run, card):
    "Its head is read by YAML, its figures are measured, its files are those of the hub, none is a pickle, none tells of this machine"
    out,files = card
    text,res = (out/'README.md').read_text('utf-8'),run_results(run)
    assert {*files}=={o.name for o in out.iterdir()}=={'README.md','config.json','model.onnx','model.safetensors'}
    meta = yaml.safe_load(text.split('---\n')[1])
    assert meta['license']=='apache-2.0' and meta['library_name']=='cifar_fast' and meta['pipeline_tag']=='image-classification'
    metric = meta['model-index'][0]['results'][0]['metrics'][0]
    assert metric['value']==res['best_test_accuracy'] and 'best epoch' in metric['name']
    assert f"| {res['test_accuracy']:.2%} |" in text and run.config['data']['fingerprint'] in text
    assert odd not in text and r'&lt;b&gt;bee\|\*' in text and 'To be filled in' not in text
    config = json.loads((out/'config.json').read_text())
    assert config['id2label']=={'0':odd,'1':'ant','2':'cat'} and config['recipe']['data']=='photos'
    for o in (text, (out/'config.json').read_text()): assert str(run.path.parent) not in o and '/photos' not in o

def test_card_of_a_run_that_began_with_another(run, data, tmp_path):
    "Nor does it tell where that one lay"
    r = get_recipe('assignment').replace(data=str(data), epochs=1, bs=16, policy='none', model_args=dict(width=4), start=str(run.path))
    train_recipe(r, tmp_path/'next', precision='fp32', quiet=True)
    export_run(Run(tmp_path/'next'), tmp_path/'out', onnx=False, card=True)
    for o in ('README.md','config.json'): assert str(run.path.parent) not in (tmp_path/'out'/o).read_text('utf-8')
    assert '--start run' in (tmp_path/'out/README.md').read_text('utf-8')

def test_card_as_the_hub_reads_it(card):
    hub = pytest.importorskip('huggingface_hub')
    data = hub.ModelCard.load(card[0]/'README.md').data
    assert data.license=='apache-2.0' and data.eval_results[0].metric_type=='accuracy' and data.eval_results[0].dataset_name=='photos'

def test_card_is_a_run_that_can_be_used(data, run, card, picture, tmp_path):
    "Downloaded, the files explain, evaluate and are shown as the run is, with the weights of its best epoch"
    row = explain(card[0], picture, tmp_path/'explained')[0]
    assert max((probs := NetOnShow(card[0]).look(picture)[0]).values())==pytest.approx(row['prob_1'], abs=1e-6) and row['class_1'] in probs
    preds,_ = evaluate_run(card[0], data/'test', tmp_path/'evaluated', quiet=True)
    assert preds.accuracy==pytest.approx(run_results(run)['best_test_accuracy'], abs=1e-6)

def test_unknown_licence(run, tmp_path):
    export_run(run, tmp_path/'card', onnx=False, card=True)
    text = (tmp_path/'card'/'README.md').read_text('utf-8')
    assert yaml.safe_load(text.split('---\n')[1])['license']=='unknown' and 'license: unknown  # to be filled in' in text
    assert '**To be filled in.**' in text and 'onnx' not in text
