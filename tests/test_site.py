"The documentation site: what is on it, what makes its build fail, and how it behaves in a browser"
import importlib,inspect,json,re,shutil,subprocess,sys
from pathlib import Path
import pytest
pytest.importorskip('myst_nb', reason='the site is built where the authors\' tools are')
from bs4 import BeautifulSoup

root = Path(__file__).parent.parent
nbs = [o for o in sorted((root/'nbs').rglob('*.ipynb')) if '.ipynb_checkpoints' not in o.parts]
urls = {o: re.sub(r'(^|/)\d+[a-z]?_', r'\1', str(o.relative_to(root/'nbs').with_suffix('.html'))) for o in nbs}
rooms = [url[:-5] for o,url in urls.items() if o.parent.name=='nbs' and o.name!='index.ipynb']

def build(src, out):
    cmd = [sys.executable, *'-m sphinx -q -E -W --keep-going -c'.split(), root/'docs', '-d', out/'doctrees', src, out/'html']
    return subprocess.run(cmd, text=True, capture_output=True)

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    p = build(root, out := tmp_path_factory.mktemp('site').resolve())
    assert p.returncode==0, p.stderr
    return out/'html'

@pytest.fixture(scope='module')
def pages(site): return {str(o.relative_to(site)): BeautifulSoup(o.read_bytes(), 'html.parser') for o in site.rglob('*.html')}

def table(part): return [[o.get_text() for o in r('td')] for r in part('tr')[1:]]

def test_every_notebook_is_a_page(pages):
    "with one title, all figures, no directive and no hidden cell"
    for nb,url in urls.items():
        cells = [c for c in json.loads(nb.read_text(encoding='utf-8'))['cells'] if not re.match(r'#\| *hide', ''.join(c['source']))]
        data = [o['data'] for c in cells for o in c.get('outputs', []) if 'data' in o]
        n = sum('image/png' in o or 'image/jpeg' in o for o in data) + sum(''.join(o.get('text/html', '')).count('<img') for o in data)
        n += sum(''.join(c['source']).count('![') for c in cells if c['cell_type']=='markdown')
        page,text = pages[url],pages[url].get_text()
        assert len(page.article('img'))==n and len(page('h1'))==1, url
        assert not re.search(r'^#\s*\|', text, re.M) and 'nbdev_export()' not in text, url

def test_symbols(pages):
    "Each has its entry, where nbdev's links go too; names and defaults in the tables are those of `inspect.signature`"
    for name in rooms:
        mod,page = importlib.import_module(f'cifar_fast.{name}'),pages[f'{name}.html']
        entries = {o.get_text(): o.find_parent('dl') for o in page('span', class_='descname')}
        assert all(k in entries and page.find(id=k.lower()) for k in mod.__all__), name
        for obj,entry in [(getattr(mod, k),entries[k]) for k in mod.__all__ if inspect.isfunction(getattr(mod, k))]:
            rows,params = {r[0]: r[2] for r in table(entry)},inspect.signature(obj).parameters if table(entry) else {}
            assert [*rows][:len(params)]==[*params], obj
            simple = {k: repr(o.default) for k,o in params.items() if isinstance(o.default, (int,float,str,tuple,type(None)))}
            assert simple=={k: rows[k] for k in simple}, obj
    entry = pages['schedule.html'].find(id='linear_one_cycle').parent
    assert table(entry)[1]==['lr_max','float|list','required','Learning rate at the peak; a list has one for each parameter group']
    assert entry.dt.get_text().strip().startswith('linear_one_cycle(n_epoch, lr_max, lr_min=None, peak_epoch=5, lr_end=None) → callable')
    line = (root/'cifar_fast/schedule.py').read_text(encoding='utf-8').splitlines().index('def linear_one_cycle(')+1
    assert entry.dt.a['href'].endswith(f'/cifar_fast/schedule.py#L{line}') and pages['schedule.html'].find(id='learner.fit_step_decay')

def test_architecture_is_true(pages):
    "The figure names every room, and the table has the imports of the modules"
    page = pages['architecture.html']
    assert {a['href'] for a in page.select('svg.flow a')}=={f'{o}.html' for o in rooms}
    imports = {r[2]: re.findall(r'\w+', r[4]) for t in page('table') for r in table(t) if len(r)==5}
    used = {o: re.findall(r'^from \.(\w+) import', (root/f'cifar_fast/{o}.py').read_text(encoding='utf-8'), re.M) for o in rooms}
    assert imports=={k: list(dict.fromkeys(v)) for k,v in used.items()}

def test_links(site, pages):
    "Names are links, links and anchors lead somewhere, pictures have words; llms.txt has every page, README.md no dead link"
    names = {a['href'] for p in ('gallery.html','schedule.html') for a in pages[p].article('a') if a.code}
    assert {'gradcam.html#show_cam','interpret.html#Predictions','https://docs.fast.ai/learner.html#learner'} <= names
    ids = {page: {o['id'] for o in s(id=True)} for page,s in pages.items()}
    for page,s in pages.items():
        assert all(o.get('alt') for o in s.article('img')), page
        for to in {o.get('href') or o.get('src') or 'https:' for o in s(['a','link','img','script'])}:
            path,_,anchor = re.sub(r'\?[^#]*', '', to).partition('#')
            f = (site/page).parent/path if path else site/page
            if re.match(r'https?:|data:', to): continue
            assert f.exists() and (not anchor or anchor in ids[str(f.resolve().relative_to(site))]), (page, to)
    listed = re.findall(r'\]\(https://\S+?/cifar_fast/(.*?)\): \S', (site/'llms.txt').read_text(encoding='utf-8'))
    assert set(listed)==set(pages)-{'genindex.html','search.html'}
    for o in re.findall(r'\]\((?!https?:|#)([^)#]+)', (root/'README.md').read_text(encoding='utf-8')): assert (root/o).exists(), o

def test_what_is_broken_fails(tmp_path):
    shutil.copytree(root/'docs', tmp_path/'docs', ignore=lambda *_: ['_build','conf.py'])
    shutil.copytree(root/'nbs', tmp_path/'nbs', ignore=lambda d, fs: [o for o in fs if not re.match('00|index', o)])
    bad = '[a](99_no.ipynb) [b](#no-such) [c](../nbs/00_core.ipynb#no) ![d](no.png)\n\n```{nosuch}\n```'
    (tmp_path/'docs/bad.md').write_text(f'# Bad\n\n{bad}')
    said = '\n'.join(o for o in build(tmp_path, tmp_path/'out').stderr.splitlines() if 'bad.md' in o)
    assert all(o in said for o in ('99_no.ipynb','no-such',"'no'",'no.png','nosuch')), said

@pytest.mark.parametrize('width,dark', [(390,True),(1280,False)])
def test_in_a_browser(site, pages, browser, width, dark):
    "On a phone by night and a desk by day; no file but those of the site; the search finds"
    for o in pages: assert all(u.startswith(site.as_uri()) for u in browser.look(site/o, width, dark)), o
    browser.page.goto((site/'search.html').as_uri()+'?q=linear_one_cycle')
    browser.page.click('#search-results a >> nth=0')
    assert browser.page.url==f"{(site/'schedule.html').as_uri()}#linear_one_cycle"
