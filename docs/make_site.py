"Builds the site from the notebooks' saved outputs, the README and docs/*.md: no notebook runs, no network, and what is broken is an error"
import ast,base64,html,importlib,inspect,io,json,os,re,shutil,sys
from configparser import ConfigParser
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from string import Template
from fastcore.all import *
from fastcore.docments import docments
from fastcore.xml import *
from markdown_it import MarkdownIt
from matplotlib import rc_context
from matplotlib.textpath import TextPath
from nbdev.doclinks import patch_name
from PIL import Image
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.styles import get_style_by_name
from pygments.token import STANDARD_TYPES
from pygments.util import ClassNotFound

root = Path(__file__).resolve().parent.parent
config = ConfigParser(delimiters=['='])
config.read(root/'settings.ini', encoding='utf-8')
cfg = AttrDict(config['DEFAULT'])
blob,styles = f'{cfg.git_url}/blob/{cfg.branch}/',('xcode','github-dark')

# --- Small pieces of HTML

def xml(*o): return ''.join(to_xml(x, indent=False) for x in o)

def code_html(src, lang='python'):
    "`src` highlighted; an unknown language is plain text"
    try: lexer = get_lexer_by_name(lang or 'text', stripnl=False)
    except ClassNotFound: lexer = get_lexer_by_name('text')
    return highlight(src, lexer, HtmlFormatter(cssclass='hl', wrapcode=True))

def token_css():
    "Colours of the tokens, each for the light and the dark theme"
    light,dark = ({t:s.style_for_token(t) for t in STANDARD_TYPES} for s in map(get_style_by_name, styles))
    def _col(s): return f"#{s['color']}" if s['color'] else 'inherit'
    return '\n'.join(f'.hl .{k}{{color:light-dark({_col(light[t])},{_col(dark[t])})}}' for t,k in STANDARD_TYPES.items() if k and light[t]['color'])

@cache
def tex_svg(tex):
    "A formula as an inline drawing of its own, in the size and colour of the text around it"
    with rc_context({'mathtext.fontset':'stix'}): p = TextPath((0,0), f'${tex}$', size=100)
    b,op = p.get_extents().padded(2),{1:'M',2:'L',3:'Q',4:'C',79:'Z'}
    d = ''.join(op[int(c)] + ' '.join(f'{v:.0f}' for v in (pts.reshape(-1,2)*(1,-1)).ravel() if c!=79) for pts,c in p.iter_segments())
    return (f'<svg class="math" role="img" aria-label="{html.escape(tex)}" viewBox="{b.x0:.0f} {-b.y1:.0f} {b.width:.0f} {b.height:.0f}" '
            f'style="height:{b.height/100:.2f}em;vertical-align:{b.y0/100:.2f}em"><path d="{d}"/></svg>')

def slug(s): return re.sub(r'\s+', '-', re.sub(r'[^\w\s.-]', '', s.lower()).strip()) or 'section'
def first_line(s): return next((l.strip() for l in s.splitlines() if l.strip() and not l.lstrip().startswith('#')), 'a cell')

# --- The API, from the live objects

def public(name): return not any(o.startswith('_') for o in name.split('.'))

def defined(node):
    "Names that a statement of an exported cell defines: functions, classes, patched methods, constants"
    if isinstance(node, (ast.FunctionDef,ast.ClassDef)): return [patch_name(node)]
    if isinstance(node, ast.Assign): return [n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)]
    return []

def methods(node): return [o for o in node.body if isinstance(o, ast.FunctionDef) and public(o.name) and ast.get_docstring(o)] if isinstance(node, ast.ClassDef) else []

def find_object(module, name):
    for o in name.split('.'): module = inspect.getattr_static(module, o) if inspect.isclass(module) else getattr(module, o)
    if isinstance(module, property): return module.fget
    return getattr(module, '__func__', module)

def is_default(o): return o is not inspect.Parameter.empty
def show_value(o): return getattr(o, '__name__', None) if callable(o) and hasattr(o, '__name__') else re.sub(r' at 0x\w+', '', repr(o))
def show_type(p): return p.annotation if isinstance(p.annotation, str) else inspect.formatannotation(p.annotation) if is_default(p.annotation) else \
    type(p.default).__name__ if is_default(p.default) and p.default is not None else ''

def signature(o):
    "The parameters as a caller sees them, and the type of what comes back"
    try: s = inspect.signature(o)
    except (TypeError,ValueError): return [],''
    ret = s.return_annotation
    return [p for k,p in s.parameters.items() if k not in ('self','cls')],'' if inspect.isclass(o) or not is_default(ret) else ret if isinstance(ret, str) else inspect.formatannotation(ret)

def show_param(p):
    star = {p.VAR_POSITIONAL:'*',p.VAR_KEYWORD:'**'}.get(p.kind, '')
    return star + p.name + (f'={show_value(p.default)}' if is_default(p.default) else '')

# --- Pages

class Page:
    "One page: where it comes from, where it goes, and what is on it"
    def __init__(self, src, url, group):
        store_attr()
        self.nb = json.loads(src.read_text(encoding='utf-8')) if src.suffix=='.ipynb' else None
        self.cells = [(c['cell_type'],''.join(c['source']),c.get('outputs', [])) for c in self.nb['cells']] if self.nb else [('markdown',src.read_text(encoding='utf-8'),[])]
        self.module = first(re.findall(r'^#\|\s*default_exp (\S+)', '\n'.join(c[1] for c in self.cells), re.M)) if self.nb else None
        head = next((s for k,s,_ in self.cells if k=='markdown'), '')
        self.title = first(re.findall(r'^# (.+)$', head, re.M)) or src.stem
        self.subtitle = first(re.findall(r'^> (.+)$', head, re.M)) or ''
        self.ids,self.toc,self.level,self.n_img = {f'site-{o}' for o in 'main nav search hits toc'.split()},[],1,0

    def exported(self):
        "Syntax trees of the statements in the exported cells"
        return [o for k,s,_ in self.cells if k=='code' and re.match(r'#\|\s*exports?\s*$', s.partition('\n')[0]) for o in ast.parse(s).body]
    def rel(self, url): return os.path.relpath(url, os.path.dirname(self.url) or '.')
    def new_id(self, s):
        "`s`, with a number if the page has it already"
        s = next(o for o in (s, *(f'{s}-{i}' for i in range(1,1000))) if o not in self.ids)
        self.ids.add(s)
        return s

class Scan(HTMLParser):
    "What a finished page refers to, and its text by section"
    def __init__(self, text):
        super().__init__()
        self.ids,self.links,self.srcs,self.problems,self.sections,self.stack = [],[],[],[],[],[]
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if tag not in ('img','meta','link','input','br','hr','path','rect','circle','line','source'): self.stack.append((tag,a))
        if 'id' in a: self.ids.append(a['id'])
        if tag=='a' and 'href' in a: self.links.append(a['href'])
        self.srcs += [a[k] for k in ('src','poster','data') if k in a] + ([a['href']] if tag in ('link','use','image') else [])
        if tag=='img' and not a.get('alt'): self.problems.append(f"an image without alt text: {a.get('src', '')[:60]}")
        if tag in ('h1','h2','h3','h4') and 'id' in a: self.sections.append([a['id'], 'symbol' if 'sym' in a.get('class', '') else tag, '', ''])
    def handle_endtag(self, tag):
        while self.stack and self.stack.pop()[0]!=tag: pass
    def handle_data(self, data):
        tags = [t for t,_ in self.stack]
        if not self.sections or 'article' not in tags or {'script','style','pre','svg'} & set(tags) or any('no-index' in a.get('class', '') for _,a in self.stack): return
        self.sections[-1][2 if {'h1','h2','h3','h4'} & set(tags) else 3] += data

class Site:
    "All pages, and where each name is documented"
    def __init__(self, out):
        self.out,self.problems,self.page,self.pages = Path(out),[],None,[]
        groups = [('Overview',[root/'README.md',*sorted((root/'docs').glob('*.md'))])]
        groups += [(d.name.capitalize(),sorted(d.glob('*.ipynb'))) for d in map((root/cfg.nbs_path).joinpath, ('tutorials','explanations'))]
        groups += [('Modules',sorted(o for o in (root/cfg.nbs_path).glob('*.ipynb') if o.name!=cfg.readme_nb))]
        for group,files in groups:
            for f in files:
                url = 'index' if f.name=='README.md' else re.sub(r'^\d+\w?_', '', f.stem)
                self.pages.append(Page(f, f'{group.lower()}/{url}.html' if f.parent.parent==root/cfg.nbs_path else f'{url}.html', group))
        self.sources = {p.src:p for p in self.pages}
        self.rooms = [p for p in self.pages if p.module]
        self.symbols,self.lines = {},{}
        for p in self.rooms:
            names = [(n,o) for o in p.exported() for n in defined(o)]
            names += [(f'{n}.{m.name}',m) for n,o in names for m in methods(o)]
            self.symbols.update({n:(p,n.lower()) for n,_ in names if public(n)})
            p.ids |= {n.lower() for n,_ in names if public(n)}
            tree = ast.parse((root/cfg.lib_path/f'{p.module}.py').read_text(encoding='utf-8'))
            self.lines.update({(p.module,n):o.lineno for o in tree.body for n in defined(o)})
        self.links = {**{k:(p,'') for p in self.rooms for k in (p.src.stem,f'{cfg.lib_name}.{p.module}')}, **self.symbols}
        self.others = {}
        for lib in ('fastcore','fastai'):
            d = importlib.import_module(f'{lib}._modidx').d
            host = d['settings']['doc_host'] + d['settings']['doc_baseurl'].rstrip('/')
            names = {k[len(m)+1:]:f'{host}/{v[0]}' for m,syms in d['syms'].items() for k,v in syms.items()}
            self.others.update({k:v for k,v in names.items() if public(k) and re.search('[A-Z_]', k) and len(k)>2})
        self.md = self.markdown()

    def problem(self, msg): self.problems.append(f'{self.page.src.relative_to(root)}: {msg}')

    # Markdown
    def markdown(self):
        md = MarkdownIt('commonmark').enable(['table','strikethrough'])
        def math(state, silent):
            m = re.compile(r'\$\$(.+?)\$\$|\$(?=\S)([^$\n]+?)(?<=\S)\$(?!\w)', re.S).match(state.src, state.pos)
            if not m: return False
            if not silent: state.push('math', '', 0).content,state.tokens[-1].meta = m[1] or m[2],{'block':bool(m[1])}
            state.pos = m.end()
            return True
        md.inline.ruler.before('escape', 'math', math)
        def rule(name):
            def _inner(f): md.add_render_rule(name, lambda _, toks, i, opts, env: f(toks, i, env))
            return _inner
        @rule('math')
        def _(toks, i, env):
            try: svg = tex_svg(' '.join(toks[i].content.split()))
            except ValueError as e: return self.problem(f'formula {toks[i].content!r}: {first_line(str(e))}') or ''
            return f'<span class="display">{svg}</span>' if toks[i].meta['block'] else svg
        @rule('fence')
        def _(toks, i, env): return code_html(toks[i].content, toks[i].info.strip(' {}.').split(' ')[0])
        @rule('code_inline')
        def _(toks, i, env):
            url = None if any(o.type=='link_open' for o in toks[:i]) and sum(o.nesting for o in toks[:i] if o.type.startswith('link_')) else self.doclink(toks[i].content)
            code = f'<code>{html.escape(toks[i].content)}</code>'
            return f'<a href="{url}">{code}</a>' if url and not env.get('plain') else code
        @rule('heading_open')
        def _(toks, i, env):
            attrs,text = re.search(r'\s*\{#([\w.-]+)[^}]*\}\s*$', toks[i+1].content),toks[i+1]
            if attrs and text.children[-1].type=='text': text.children[-1].content = re.sub(r'\s*\{#[^}]*\}\s*$', '', text.children[-1].content)
            plain = ''.join(o.content for o in text.children)
            self.page.level = int(toks[i].tag[1])
            id = attrs[1] if attrs else self.page.new_id(slug(plain))
            self.page.toc.append((self.page.level,plain,id))
            toks[i+2].meta = {'id':id}
            return f'<{toks[i].tag} id="{id}">'
        @rule('heading_close')
        def _(toks, i, env): return f' {self.anchor(toks[i].meta["id"])}</{toks[i].tag}>\n'
        @rule('link_open')
        def _(toks, i, env): return f'<a href="{html.escape(self.href(toks[i].attrs["href"]))}">'
        @rule('image')
        def _(toks, i, env): return self.image(toks[i].attrs['src'], toks[i].content)
        @rule('table_open')
        def _(toks, i, env): return '<div class="scroll"><table>\n'
        @rule('table_close')
        def _(toks, i, env): return '</table></div>\n'
        return md

    def anchor(self, id): return f'<a class="anchor no-index" href="#{id}" aria-label="Link to this section">#</a>'

    def render(self, text):
        "Markdown to HTML, with Quarto's callouts"
        text = re.sub(r'^:::+\s*\{\.callout-(\w+)[^}]*\}\s*$', r'<aside class="callout \1">\n', text, flags=re.M)
        text = re.sub(r'^:::+\s*$', '\n</aside>', text, flags=re.M)
        for o in re.findall(r'^:::.*|\[\^[^\]]+\]', text, re.M): self.problem(f'{o!r} is not something that this site can show')
        return self.md.render(text, {})

    def inline(self, text, plain=False): return self.md.renderInline(text, {'plain':plain})

    def doclink(self, code):
        "Where the name in backticks is documented; `None` if it is not a name, or nobody's"
        name = re.sub(r'\(.*\)$|^cifar_fast\.(?!\w+$)', '', code)
        if name in self.links:
            p,id = self.links[name]
            return (self.page.rel(p.url) if p is not self.page else '') + (f'#{id}' if id else '') or '#site-main'
        return self.others.get(name)

    def href(self, link):
        "A link of a source as a link of the site: to a page, to the repository, or as it is"
        path,_,id = link.partition('#')
        if not path or re.match(r'\w+:', link): return link
        f,end = (self.page.src.parent/path).resolve(),f'#{id}' if id else ''
        if f in self.sources: return self.page.rel(self.sources[f].url) + end.lower()
        return blob + str(f.relative_to(root)) + end if f.exists() and f.is_relative_to(root) else link

    def image(self, src, alt, data=None):
        "An `img` of a file beside the source, or of `data`; it is copied"
        if data is None:
            f = (self.page.src.parent/src).resolve()
            if not f.is_file(): return self.problem(f'missing image {src}') or ''
            data,src = f.read_bytes(),f.name
        to = self.out/'img'/src
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(data)
        size = '' if src.endswith('.svg') else 'width="{}" height="{}" '.format(*Image.open(io.BytesIO(data)).size)
        return f'<img src="{self.page.rel(f"img/{src}")}" {size}loading="lazy" alt="{html.escape(alt)}">'

    # Notebooks
    def code_cell(self, src, outputs):
        lines = src.splitlines()
        dirs = dict(re.match(r'#\s*\|\s*([\w-]+):?\s*(.*)', l).groups() for l in lines if re.match(r'#\s*\|', l))
        src = '\n'.join(l for l in lines if not re.match(r'#\s*\|', l)).strip('\n')
        if 'hide' in dirs or 'default_exp' in dirs or dirs.get('include')=='false': return ''
        if 'export' in dirs or 'exports' in dirs: return self.export_cell(src, 'exports' in dirs)
        res = ''
        if not ('hide_input' in dirs or 'exporti' in dirs or dirs.get('echo')=='false') and src:
            res = code_html(src)
            if dirs.get('code-fold')=='true': res = self.fold(dirs.get('code-summary', 'Code').strip('"'), res)
        if 'hide_output' in dirs or dirs.get('output')=='false': return res
        alt = dirs.get('fig-alt', dirs.get('fig-cap', '')).strip('"') or f"{self.page.toc[-1][1] if self.page.toc else self.page.title}: what {first_line(src)} shows"
        cap = f"<figcaption>{self.inline(dirs['fig-cap'])}</figcaption>" if 'fig-cap' in dirs else ''
        return res + ''.join(self.output(o, alt, cap) for o in outputs)

    def output(self, o, alt, cap=''):
        "One saved output; progress bars and warnings leave nothing"
        if o['output_type']=='error': return self.problem(f"a cell ends in {o['ename']}") or ''
        if o['output_type']=='stream': return self.text('' if o['name']=='stderr' else ''.join(o['text']))
        d = {k:''.join(v) if isinstance(v, list) else v for k,v in o['data'].items()}
        if 'text/html' in d:
            s = re.sub(r'<style.*?</style>|<progress.*?</progress>', '', d['text/html'], flags=re.S)
            s = re.sub(r'<img (?![^>]*\balt=)', f'<img alt="{html.escape(alt)}" ', re.sub(r' border="1"', '', s))
            return f'<div class="out scroll">{s}</div>' if '<img' in s or '<svg' in s or re.sub(r'<.*?>|\s', '', s) else ''
        for k,ext in (('image/png','png'),('image/jpeg','jpg'),('image/gif','gif')):
            if k not in d: continue
            self.page.n_img += 1
            name = f"{self.page.url.removesuffix('.html').replace('/', '-')}-{self.page.n_img}.{ext}"
            return f'<figure>{self.image(name, alt, base64.b64decode(d[k]))}{cap}</figure>'
        if 'image/svg+xml' in d: return f"<figure>{d['image/svg+xml']}{cap}</figure>"
        if 'text/markdown' in d: return f"<div class=\"out\">{self.render(d['text/markdown'])}</div>"
        return self.text(d.get('text/plain', ''))

    def text(self, s):
        s = re.sub(r'\x1b\[[\d;]*[A-Za-z]', '', s).rstrip()
        return f'<pre class="out">{html.escape(s)}</pre>' if s else ''

    def fold(self, title, body, cls=''): return f'<details class="{cls}"><summary>{title}</summary>{body}</details>'

    def export_cell(self, src, shown=False):
        "The documentation of what the cell exports, and its source to unfold"
        nodes = [(n,o) for o in ast.parse(src).body for n in defined(o)]
        entries = ''.join(self.entry(n, o, src) for n,o in nodes if public(n))
        if shown: return entries + code_html(src)
        if entries and all(isinstance(o, ast.Assign) for _,o in nodes): return entries
        names = ', '.join(f'<code>{n}</code>' for n,_ in nodes)
        title = 'Source' if entries else f'Source of {names}' if nodes else 'Imports' if re.search(r'^(from|import) ', src, re.M) else 'Source'
        return entries + self.fold(title, code_html(src), 'src no-index')

    def entry(self, name, node, src, within=False):
        "Heading, signature, docstring and table of one symbol"
        page,id,level = self.page,name.lower(),min(self.page.level+1+within, 5)
        page.toc.append((3+within,name,id))
        line = f'#L{self.lines[page.module,name]}' if (page.module,name) in self.lines else ''
        link = '' if within else xml(A('source', href=f'{blob}{cfg.lib_path}/{page.module}.py{line}', cls='source no-index', aria_label=f'Source of {name}'))
        head = f'<h{level} class="sym" id="{id}"><code>{html.escape(name)}</code> {self.anchor(id)}{link}</h{level}>'
        if isinstance(node, ast.Assign): return f'<section class="api">{head}{code_html(ast.get_source_segment(src, node))}</section>'
        obj = find_object(importlib.import_module(f'{cfg.lib_name}.{page.module}'), name)
        params,ret = signature(obj)
        docs = docments(obj, args_kwargs=True)
        prop = not isinstance(node, ast.ClassDef) and any('property' in ast.unparse(d) or 'as_prop' in ast.unparse(d) for d in node.decorator_list)
        kind = 'class ' if isinstance(node, ast.ClassDef) else ''
        sig = '' if prop else code_html(f"{kind}{name}({', '.join(map(show_param, params))})" + (f' -> {ret}' if ret else '')).replace('class="hl"', 'class="hl sig"')
        doc = self.inline(ast.get_docstring(node) or '')
        rows = [Tr(Td(Code(p.name)), Td(Code(show_type(p)) if show_type(p) else ''), Td(Code(show_value(p.default)) if is_default(p.default) else Em('required') if p.kind not in (p.VAR_KEYWORD,p.VAR_POSITIONAL) else ''),
                   Td(NotStr(self.inline(docs.get(p.name) or '')))) for p in params]
        if docs.get('return'): rows.append(Tr(Td(Em('returns')), Td(Code(ret) if ret else ''), Td(), Td(NotStr(self.inline(docs['return']))), cls='returns'))
        table = Div(Table(Thead(Tr(*map(Th, ('Parameter','Type','Default','Meaning')))), Tbody(*rows)), cls='scroll') if any(docs.values()) else ''
        inner = ''.join(self.entry(f'{name}.{m.name}', m, src, True) for m in methods(node))
        return f'<section class="api">{head}{sig}{f"<p>{doc}</p>" if doc else ""}{xml(table) if table else ""}{inner}</section>'

    # What the architecture page shows
    def room_table(self):
        "The rooms from the notebooks themselves: title, subtitle, and whom they import"
        def _link(p): return A(Code(p.module), href=self.page.rel(p.url))
        by_name,rows = {p.module:p for p in self.rooms},[]
        for p in self.rooms:
            used = unique([by_name[o.module.split('.')[1]] for o in p.exported() if isinstance(o, ast.ImportFrom) and (o.module or '').startswith(f'{cfg.lib_name}.')])
            imports = ', '.join(xml(_link(o)) for o in used) or '–'
            rows.append(Tr(Td(A(p.title, href=self.page.rel(p.url))), Td(Code(p.src.name[:2])), Td(Code(p.module)), Td(NotStr(self.inline(p.subtitle))), Td(NotStr(imports))))
        return xml(Div(Table(Thead(Tr(*map(Th, ('Room','Number','Module','Holds','Imports')))), Tbody(*rows)), cls='scroll rooms'))

    # Whole pages
    def body(self, p):
        self.page,res = p,''
        for kind,src,outputs in p.cells:
            if kind=='code': res += self.code_cell(src, outputs)
            elif kind=='markdown':
                if p.title and re.search(r'^# ', src, re.M):
                    src = re.sub(r'^# .+$', '', src, count=1, flags=re.M)
                    src = re.sub(r'^> .+$', '', src, count=1, flags=re.M) if p.subtitle else src
                res += self.render(src)
        res = re.sub(r'<!-- rooms -->', lambda _: self.room_table(), res)
        return re.sub(r'<!-- figure: (\S+) -->', lambda m: f'<figure class="scroll">{(root/"docs"/m[1]).read_text(encoding="utf-8")}</figure>', res)

    def nav(self):
        def _item(p): return Li(A(p.title if p.url!='index.html' else cfg.title, href=self.page.rel(p.url), **({'aria_current':'page'} if p is self.page else {})))
        return xml(*[(Section(H2(g), Ul(*map(_item, ps)))) for g,ps in groupby(self.pages, 'group').items()])

    def toc(self):
        items = [Li(A(Code(t) if id==t.lower() and t in self.symbols else t, href=f'#{id}'), cls=f'l{lvl}') for lvl,t,id in self.page.toc if lvl<=3]
        return xml(Details(Summary('On this page'), Ul(*items), open=True, id='site-toc')) if items else ''

    def write(self, p, template):
        body,i = self.body(p),self.pages.index(p)
        def _step(o, rel, word): return A(Small(word), Span(o.title), href=p.rel(o.url), rel=rel) if o else Span()
        steps = xml(_step(self.pages[i-1] if i else None, 'prev', 'Previous'), _step(self.pages[i+1] if i+1<len(self.pages) else None, 'next', 'Next'))
        where = [Code(f'{cfg.lib_name}.{p.module}'), A('module', href=f'{blob}{cfg.lib_path}/{p.module}.py')] if p.module else []
        if p.nb: where.append(A('notebook', href=blob+str(p.src.relative_to(root))))
        if 'class="src' in body: where.append(Button('Unfold all source', type='button', cls='unfold', hidden=True))
        text = Template((root/'docs/page.html').read_text(encoding='utf-8')).substitute(
            title=html.escape(p.title if p.url=='index.html' else f'{p.title} – {cfg.title}'), description=html.escape(re.sub(r'[`*]', '', p.subtitle) or cfg.description),
            root=p.rel('.').removesuffix('.') if '/' not in p.url else '../', site=cfg.title, h1=self.inline(p.title, plain=True), top=p.new_id(slug(p.title)),
            subtitle=f'<p class="subtitle">{self.inline(p.subtitle)}</p>' if p.subtitle else '', where=xml(P(*where, cls='where no-index')) if where else '',
            body=body, nav=self.nav(), toc=self.toc(), steps=steps, git=cfg.git_url, license='Apache-2.0')
        (self.out/p.url).parent.mkdir(parents=True, exist_ok=True)
        (self.out/p.url).write_text(text, encoding='utf-8')
        return Scan(text)

    def check(self, scans):
        "Every link and anchor leads somewhere, every image is there, no id stands twice, nothing is loaded from elsewhere"
        for self.page in self.pages:
            s = scans[self.page.url]
            for o in s.problems: self.problem(o)
            for o in sorted({o for o in s.ids if s.ids.count(o)>1}): self.problem(f'id {o!r} stands twice')
            for o in s.srcs:
                if re.match(r'(https?:)?//', o): self.problem(f'loads {o}')
                elif not o.startswith('data:') and not (self.out/self.page.url).parent.joinpath(o).is_file(): self.problem(f'missing file {o}')
            for o in unique(s.links):
                path,_,id = o.partition('#')
                if re.match(r'(https?|mailto):', o): continue
                url = os.path.normpath(os.path.join(os.path.dirname(self.page.url), path)) if path else self.page.url
                if url in scans: ids = scans[url].ids
                elif (self.out/url).is_file(): continue
                else: self.problem(f'broken link {o}') or 0
                if url in scans and id and id not in ids: self.problem(f'broken anchor {o}')

    def search_index(self, scans):
        rows = [[re.sub(r'\s+', ' ', t).strip(' #'),p.url if kind=='h1' else f'{p.url}#{id}',kind,p.title,re.sub(r'\s+', ' ', x).strip()] for p in self.pages for id,kind,t,x in scans[p.url].sections]
        (self.out/'search.js').write_text('window.searchIndex=' + json.dumps(rows, ensure_ascii=False, separators=(',',':')), encoding='utf-8')

def build(out=root/cfg.doc_path):
    "Build the site into `out`; what is wrong with it, one line each"
    out = Path(out)
    if (out/'search.js').exists(): shutil.rmtree(out)  # only what an earlier build left
    out.mkdir(parents=True, exist_ok=True)
    site = Site(out)
    shutil.copy(root/'docs/site.js', out)
    (out/'site.css').write_text((root/'docs/site.css').read_text(encoding='utf-8') + token_css(), encoding='utf-8')
    (out/'.nojekyll').touch()
    (out/'search.js').touch()
    scans = {p.url:site.write(p, site) for p in site.pages}
    site.search_index(scans)
    site.check(scans)
    return site

if __name__=='__main__':
    site = build(*sys.argv[1:2])
    print(*site.problems, sep='\n', file=sys.stderr)
    print(f'{len(site.pages)} pages in {os.path.relpath(site.out)}' + (f', {len(site.problems)} problems' if site.problems else ': open index.html'))
    sys.exit(bool(site.problems))
