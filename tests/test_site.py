"The documentation site: what is on it, what makes its build fail, and how it behaves in a browser"
import ast,functools,html,importlib,inspect,json,re,shutil
from pathlib import Path
import pytest
for o in ('nbdev','markdown_it'): pytest.importorskip(o, reason='the site is built where the authors\' tools are')

root = Path(__file__).parent.parent

@pytest.fixture(scope='module')
def maker():
    with pytest.MonkeyPatch.context() as m:
        m.syspath_prepend(root/'docs')
        return importlib.import_module('make_site')

@pytest.fixture(scope='module')
def site(maker, tmp_path_factory): return maker.build(tmp_path_factory.mktemp('site'))

@pytest.fixture(scope='module')
def pages(site): return {p.url:(site.out/p.url).read_text(encoding='utf-8') for p in site.pages}

def module(p): return importlib.import_module(f'cifar_fast.{p.module}')

def entry(page, name):
    "The entry of `name` on a page, without what is nested in it"
    head = rf'<h\d class="sym" id="[^"]+"><code>{re.escape(html.escape(name))}</code>'
    found = re.findall(rf'{head}.*?(?=<section class="api">|</section>)', page, re.S)
    assert len(found)==1, f'{len(found)} entries of {name}'
    return found[0]

def text(s): return html.unescape(re.sub(r'<[^>]+>', '', s)).strip()
def table(part):
    rows = re.findall(r'<tr[^>]*>(.*?)</tr>', part, re.S)[1:]
    return [[text(o) for o in re.findall(r'<td[^>]*>(.*?)</td>', r, re.S)] for r in rows]

# --- What is on it

def test_nothing_is_broken(site): assert site.problems==[]

def test_every_notebook_is_a_page(site, pages):
    nbs = sorted(o for o in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts)
    assert {p.src for p in site.pages if p.is_nb}==set(nbs)
    assert [p.src.name for p in site.pages if p.module]==[o.name for o in nbs if o.parent.name=='nbs' and o.name!='index.ipynb']
    for p in site.pages:
        s = pages[p.url]
        assert '<html lang="en"' in s and '<main' in s, p.url
        assert s.count('<h1')==1 and s.count('<nav')==3 and s.count('aria-current="page"')==1, p.url
        assert ('rel="prev"' in s)==(p is not site.pages[0]) and ('rel="next"' in s)==(p is not site.pages[-1])

def test_imports_stand_alone(site):
    "`nbdev_docs` runs every cell that imports: what else stood there would run too, without what comes before it"
    for p in site.rooms:
        for kind,src,_ in p.cells:
            if kind!='code' or re.match(r'#\| export', src) or 'nbdev_export()' in src: continue
            imports = [isinstance(o, (ast.Import,ast.ImportFrom)) for o in ast.parse(src).body]
            assert all(imports) or not any(imports), f'{p.src.name}: {src}'

def test_figures_and_outputs_are_there(site, pages):
    for p in site.pages:
        if not p.is_nb: continue
        shown = [o for k,s,outs in p.cells for o in outs if k=='code' and not re.match(r'#\|\s*hide', s)]
        n = sum('image/png' in o.get('data', {}) or 'image/jpeg' in o.get('data', {}) for o in shown)
        drawn = sum(''.join(o.get('data', {}).get('text/html', '')).count('<figure>') for o in shown)
        assert pages[p.url].count('<figure>')==n+drawn, p.url
        assert len(list(site.out.glob(f"img/{p.url[:-5].replace('/', '-')}-[0-9]*")))==n, p.url

def test_no_directive_and_no_hidden_cell_shows(site, pages):
    for p in site.pages:
        if not p.is_nb: continue
        shown = text(pages[p.url])
        assert not re.search(r'^#\s*\|', shown, re.M) and 'nbdev_export()' not in shown, p.url
        for k,s,_ in p.cells:
            if k=='code' and re.match(r'#\|\s*hide\s*\n', s):
                last = s.strip().splitlines()[-1].strip()
                assert len(last)<30 or last not in shown or sum(last in c[1] for c in p.cells)>1, (p.url, last)

def test_each_symbol_has_one_entry(site, pages):
    for p in site.rooms:
        for name in module(p).__all__: entry(pages[p.url], name)

def test_tables_are_the_signatures(site, pages):
    "Names and defaults of each table, of functions, classes and methods, against `inspect.signature`"
    n = 0
    for name,(p,_) in site.symbols.items():
        obj = functools.reduce(getattr, name.split('.'), module(p))
        rows = table(entry(pages[p.url], name))
        if not rows or not callable(obj): continue
        params = [o for k,o in inspect.signature(obj).parameters.items() if k not in ('self','cls')]
        assert [r[0] for r in rows if r[0]!='returns']==[o.name for o in params], name
        for o,r in zip(params, rows):
            if o.default is o.empty: assert r[2] in ('required',''), (name, r)
            elif isinstance(o.default, (int,float,str,tuple,type(None))): assert r[2]==repr(o.default), (name, r)
        n += 1
    assert n>=100

def test_one_table_by_hand(pages):
    part = entry(pages['schedule.html'], 'linear_one_cycle')
    assert table(part)==[
        ['n_epoch','int','required','Epochs in all'],
        ['lr_max','float|list','required','Learning rate at the peak; a list has one for each parameter group'],
        ['lr_min','float|list','None','Learning rate at the start, 0 or more; None is a tenth of lr_max'],
        ['peak_epoch','float','5','Epochs completed at the peak, from 0 (no ramp) to n_epoch (no descent); need not be whole'],
        ['lr_end','float|list','None','Learning rate at the end, 0 or more; None is lr_min: no annihilation'],
        ['returns','callable','','Function from the position in 0…1 to the learning rate, or to a list for several groups']]
    line = (root/'cifar_fast/schedule.py').read_text(encoding='utf-8').splitlines().index('def linear_one_cycle(')+1
    assert f'/blob/main/cifar_fast/schedule.py#L{line}"' in part
    assert 'linear_one_cycle(n_epoch, lr_max, lr_min=None, peak_epoch=5, lr_end=None) -> callable' in text(part)

def test_names_in_prose_are_links(pages):
    assert '<a href="gradcam.html#show_cam"><code>show_cam</code></a>' in pages['gallery.html']
    assert '<a href="#predictions"><code>Predictions</code></a>' in pages['interpret.html']
    assert '<a href="interpret.html#predictions">' in pages['gallery.html']
    assert '<a href="learner.html"' in pages['architecture.html'] and '<a href="recipes.html">' in pages['index.html']
    assert '<a href="https://docs.fast.ai/learner.html#learner"><code>Learner</code></a>' in pages['schedule.html']

def test_architecture_is_true(site, pages):
    "The figure names every room, and the table has the imports of the modules"
    figure = re.search(r'<svg class="flow".*?</svg>', pages['architecture.html'], re.S)[0]
    assert set(re.findall(r'href="(\w+).html"', figure))=={p.module for p in site.rooms}
    rows = {r[2]:r for r in table(re.search(r'<div class="scroll rooms">.*?</table>', pages['architecture.html'], re.S)[0])}
    for p in site.rooms:
        used = re.findall(r'^from \.(\w+) import', (root/f'cifar_fast/{p.module}.py').read_text(encoding='utf-8'), re.M)
        assert re.findall(r'\w+', rows[p.module][4])==list(dict.fromkeys(used)), p.module

def test_nothing_is_loaded_from_elsewhere(site, pages):
    for url,s in pages.items(): assert not re.search(r'(src|srcset|poster|data)="?(https?:)?//|<link[^>]+href="?(https?:)?//', s), url
    for f in ('site.css','site.js'): assert not re.search(r'url\(|@import|https?://', (site.out/f).read_text(encoding='utf-8')), f

def test_search_index(site):
    rows = json.loads((site.out/'search.js').read_text(encoding='utf-8').removeprefix('window.searchIndex='))
    assert ['linear_one_cycle','schedule.html#linear_one_cycle','symbol','Schedules'] in [r[:4] for r in rows]
    assert any(r[0]=='Step decay' and 'constant learning rate' in r[4] for r in rows)

# --- What makes the build fail, and what a notebook may hold

def notebook(*cells):
    "Cells are source, or (source, outputs); those that begin with `md` are Markdown"
    def _cell(c):
        src,outs = (c,[]) if isinstance(c, str) else c
        if src.startswith('md '): return dict(cell_type='markdown', metadata={}, source=src[3:])
        return dict(cell_type='code', metadata={}, source=src, outputs=outs, execution_count=1)
    return json.dumps(dict(cells=[*map(_cell, cells)], metadata={}, nbformat=4, nbformat_minor=5))

def stream(s, name='stdout'): return dict(output_type='stream', name=name, text=s)

@pytest.fixture
def small(maker, tmp_path, monkeypatch):
    "A repository with an index, one room, and a folder of tutorials"
    monkeypatch.setattr(maker, 'root', tmp_path)
    for o in ('docs','cifar_fast','nbs/tutorials'): (tmp_path/o).mkdir(parents=True)
    for o in ('docs/page.html','docs/site.css','docs/site.js','cifar_fast/core.py'): shutil.copy(root/o, tmp_path/o)
    room = json.loads((root/'nbs/00_core.ipynb').read_text(encoding='utf-8'))
    room['cells'] = [dict(cell_type='markdown', metadata={}, source='# Core'), *[c for c in room['cells'] if c['cell_type']=='code']]
    (tmp_path/'nbs/00_core.ipynb').write_text(json.dumps(room))
    (tmp_path/'nbs/index.ipynb').write_text(notebook('md # A small site\n\n> Its subtitle\n\nSee `choose` and [the core](00_core.ipynb).'))
    return tmp_path

@pytest.mark.parametrize('text,problem', [
    ('[no](99_no.ipynb)', 'broken link 99_no.ipynb'),
    ('[no](#no-such)', 'broken anchor #no-such'),
    ('[no](00_core.ipynb#no-such)', 'broken anchor core.html#no-such'),
    ('![a picture](no.png)', 'missing image no.png'),
    ('<p id="x"></p><p id="x"></p>', "id 'x' stands twice"),
    ('<img src="https://example.com/a.png" alt="a">', 'loads https://example.com/a.png'),
    ('<img src="data:,">', 'an image without alt text'),
    ('<script src="gone.js"></script>', 'missing file gone.js'),
    ('::: {.panel-tabset}', "'::: {.panel-tabset}' is not something"),
    ('$\\nosuch{x}$', 'formula $\\nosuch{x}$')])
def test_what_is_broken_fails(maker, small, capsys, text, problem):
    (small/'nbs/index.ipynb').write_text(notebook('md # A small site', f'md {text}'))
    assert maker.main(small/'out')==1
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err)==1 and err[0].startswith('nbs/index.ipynb: '+problem), err

def test_a_tutorial(maker, small):
    "Directives, outputs, links, formulas and callouts of a notebook in a folder"
    cell = '<style>x</style><table border="1"><tr><td>7</td></tr></table>'
    table = dict(output_type='execute_result', data={'text/html':cell,'text/plain':'plain'})
    bar = dict(output_type='display_data', data={'text/html':'<style>progress{}</style>','text/plain':'<IPython.core.display.HTML object>'})
    (small/'nbs/tutorials/01_first.ipynb').write_text(notebook(
        'md # First\n\n> A tutorial', '#| hide\nhidden_cell = 1', '#| echo: false\nprint("echoless")',
        '#| code-fold: true\n#| code-summary: "How"\nfolded_cell = 1',
        ('visible_cell = 1', [stream('an output <b>\n'), stream('a warning', 'stderr')]),
        ('#| hide_output\nquiet_cell = 1', [stream('unseen')]), ('#| hide_input\nunseen_input = 1', [table]), ('bar', [bar]),
        'md ## Links {#named}\n\n`choose`, `choose(a)`, [room](../00_core.ipynb#choose), [up](../../README.md), $\\sqrt\\pi$ '
        'and `a` at $5.',
        'md ::: {.callout-note}\nMind *this*.\n:::'))
    site = maker.build(small/'out')
    assert site.problems==[]
    s = (small/'out/tutorials/first.html').read_text()
    article = s.partition('<article>')[2]
    for o in ('hidden_cell','echoless','a warning','unseen','#|','IPython','progress','x</style>'): assert o not in article, o
    for o in ('an output &lt;b&gt;','<td>7</td>','<summary>How</summary>','quiet_cell','<h2 id="named">Links ',
              '<a href="../core.html#choose"><code>choose(a)</code></a>',
              '<a href="../core.html#choose">room</a>','<a href="../index.html">up</a>','aria-label="\\sqrt{\\pi}"','at $5.',
              '<aside class="callout note">','<em>this</em>','src="../site.js"'): assert o in s, o
    assert re.findall(r'<h2>(\w+)</h2>', s)==['Overview','Tutorials','Modules'] and s.count('aria-current="page"')==1

# --- In a browser

def stays_here(site, b): return not b.errors and all(o.startswith((site.out.as_uri(),'data:')) for o in b.requests)

def test_search_in_the_browser(site, browser):
    "From a page of a room and from one in a folder"
    for p in [site.rooms[0], *[p for p in site.pages if '/' in p.url][:1]]: search(site, browser.goto(site.out/p.url))

def search(site, b):
    b.key('/', '/')
    b.type('linear_one')
    assert b.until("document.querySelector('#site-hits [aria-selected=true] b')?.textContent")=='linear_one_cycle'
    b.key('ArrowDown')
    assert b.js("document.querySelector('#site-search').getAttribute('aria-activedescendant')")=='site-hit-1'
    b.key('ArrowUp')
    b.key('Enter', '\r')
    b.until("location.pathname.endsWith('schedule.html') && location.hash=='#linear_one_cycle'")
    b.until("document.readyState=='complete'")
    b.key('/', '/')
    b.type('zzzz<b>')
    assert 'zzzz<b>' in b.until("document.querySelector('#site-hits .none')?.textContent")
    b.key('Escape')
    assert b.js("document.querySelector('#site-hits').hidden") and stays_here(site, b)

def test_theme_in_the_browser(site, browser):
    b = browser.goto(site.out/'index.html')
    b.js('localStorage.clear()')
    for dark in (True,False):
        b.dark(dark)
        b.goto(site.out/'index.html')
        assert b.is_dark==dark
    b.js("document.querySelector('button.theme').click()")
    assert b.is_dark
    b.goto(site.out/'schedule.html')
    assert b.is_dark
    b.js("document.querySelector('button.theme').click()")
    assert not b.is_dark and stays_here(site, b)
    b.js('localStorage.clear()')

@pytest.mark.parametrize('width,dark', [(390,True),(1280,False)])
def test_every_page(site, browser, width, dark):
    "On a phone by night and a desk by day: no wider than the screen, easy to read, silent, and no file but those of the site"
    browser.size(width, mobile=width<400)
    browser.dark(dark)
    for p in site.pages:
        b = browser.goto(site.out/p.url)
        b.unfold()
        assert b.page_width<=width and b.is_dark==dark and b.low_contrast=={}, (p.url, b.page_width, b.low_contrast)
        assert stays_here(site, b), (p.url, b.errors, b.requests)
    browser.size(1280)
    browser.dark(False)

def test_menu_on_a_phone(site, browser):
    browser.size(390, mobile=True)
    b = browser.goto(site.out/'index.html')
    def shown(): return b.js("getComputedStyle(document.querySelector('#site-nav')).display")=='block'
    assert not shown()
    b.js("document.querySelector('button.menu').click()")
    assert shown()
    b.key('Escape')
    assert not shown()
    browser.size(1280)

def test_a_bad_page_is_noticed(browser, tmp_path):
    "What the tests above look for is seen where it is"
    (tmp_path/'bad.html').write_text('''<meta name="viewport" content="width=device-width"><body style="background:#000">
        <p style="width:900px; color:#333">faint</p><img src="http://127.0.0.1:9/x.png"><script>console.error('oh')</script>''')
    browser.size(390, mobile=True)
    b = browser.goto(tmp_path/'bad.html')
    assert b.page_width>=900 and b.is_dark and list(b.low_contrast)==['P.']
    assert any('oh' in o for o in b.errors) and 'http://127.0.0.1:9/x.png' in b.requests
    browser.size(1280)
