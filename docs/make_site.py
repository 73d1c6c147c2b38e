"Builds the site from the notebooks' saved outputs and docs/*.md: no notebook runs, no network, and what is broken is an error"
import ast,base64,html,importlib,io,json,os,re,shutil,string,sys
from configparser import ConfigParser
from pathlib import Path
from fastcore.all import *
from fastcore.docments import docments
from fastcore.xml import *
from markdown_it import MarkdownIt
from PIL import Image
from parts import *

root = Path(__file__).resolve().parent.parent
config = ConfigParser(delimiters=['='])
config.read(root/'settings.ini', encoding='utf-8')
cfg = AttrDict(config['DEFAULT'])
blob = f'{cfg.git_url}/blob/{cfg.branch}/'

def read(*path): return root.joinpath(*path).read_text(encoding='utf-8')
def grab(pat, s, default=''): return first(re.findall(pat, s, re.M)) or default
def anchor(id): return f'<a class="anchor no-index" href="#{id}" aria-label="Link to this section">#</a>'
def fold(title, body, cls='code'): return f'<details class="{cls}"><summary>{title}</summary>{body}</details>'
def table(head, rows, cls=''): return xml(Div(Table(Thead(Tr(*map(Th, head))), Tbody(*rows)), cls=f'scroll {cls}'.strip()))

class Page:
    "One page: where it comes from, where it goes, and what is on it"
    def __init__(self, src, url, group):
        store_attr()
        text = src.read_text(encoding='utf-8')
        self.is_nb = src.suffix=='.ipynb'
        cells = json.loads(text)['cells'] if self.is_nb else [dict(cell_type='markdown', source=text)]
        self.cells = [(c['cell_type'],''.join(c['source']),c.get('outputs', [])) for c in cells]
        head = next((s for k,s,_ in self.cells if k=='markdown'), '')
        self.title,self.subtitle = grab('^# (.+)$', head, src.stem),grab('^> (.+)$', head)
        self.module = grab(r'^#\|\s*default_exp (\S+)', '\n'.join(s for _,s,_ in self.cells)) if self.is_nb else ''
        self.ids,self.toc,self.level,self.n_img = {f'site-{o}' for o in 'main nav search hits toc'.split()},[],1,0

    def exported(self):
        "Syntax trees of the statements in the exported cells"
        return [o for k,s,_ in self.cells if k=='code' and re.match(r'#\|\s*exports?\s*$', s.partition('\n')[0]) for o in ast.parse(s).body]

    def rel(self, url): return os.path.relpath(url, os.path.dirname(self.url) or '.')
    def new_id(self, s):
        "`s`, with a number behind it if the page has it already"
        s = next(o for o in (s, *(f'{s}-{i}' for i in range(1,1000))) if o not in self.ids)
        self.ids.add(s)
        return s

class Site:
    "All pages, and where each name is documented"
    def __init__(self, out):
        self.out,self.problems,self.page,self.pages,self.symbols,self.lines = Path(out),[],None,[],{},{}
        nbs = root/cfg.nbs_path
        self.add('Overview', [nbs/cfg.readme_nb, *sorted((root/'docs').glob('*.md')),
                              *sorted(o for o in root.glob('*.md') if o.name!='README.md')])
        for o in ('tutorials','explanations'): self.add(o.capitalize(), sorted((nbs/o).glob('*.ipynb')), f'{o}/')
        self.add('Modules', sorted(o for o in nbs.glob('*.ipynb') if o.name!=cfg.readme_nb))
        self.sources,self.rooms = {p.src:p for p in self.pages},[p for p in self.pages if p.module]
        self.sources[root/'README.md'] = self.pages[0]
        for p in self.rooms: self.add_symbols(p)
        self.links = {**self.symbols, **{k:(p,'') for p in self.rooms for k in (p.src.stem,f'{cfg.lib_name}.{p.module}')}}
        for k,v in groupby([o for o in self.symbols if '.' in o], lambda o: o.split('.')[-1]).items():
            if len(v)==1 and '_' in k: self.links.setdefault(k, self.symbols[v[0]])  # a method that no other class has
        self.others = self.fastai_links()
        self.md = self.markdown()

    def add(self, group, files, folder=''):
        def _name(f): return re.sub(r'^\d+[a-z]?_', '', f.stem).lower()
        self.pages += [Page(f, f'{folder}{_name(f)}.html', group) for f in files]

    def add_symbols(self, p):
        "Where the symbols of a room are documented, and the lines of the module where they are defined"
        names = [(n,o) for o in p.exported() for n in defined(o)]
        names += [(f'{n}.{m.name}',m) for n,o in names for m in methods(o)]
        self.symbols.update({n:(p,p.new_id(n.lower())) for n,_ in names if public(n)})
        self.lines.update({(p.module,n):o.lineno for o in ast.parse(read(cfg.lib_path, f'{p.module}.py')).body for n in defined(o)})

    def fastai_links(self):
        "Pages of fastai's and fastcore's documentation, for names that cannot be taken for a word"
        res = {}
        for lib in ('fastcore','fastai'):
            d = importlib.import_module(f'{lib}._modidx').d
            host = d['settings']['doc_host'] + d['settings']['doc_baseurl'].rstrip('/')
            names = {k[len(m)+1:]:f'{host}/{v[0]}' for m,syms in d['syms'].items() for k,v in syms.items()}
            names.update({k[8:]:v for k,v in names.items() if k.startswith('Learner.')})
            res.update({k:v for k,v in names.items() if public(k) and re.search('[A-Z_]', k) and len(k)>2})
        return res

    def problem(self, msg):
        self.problems.append(f"{self.page.src.relative_to(root)}: {' '.join(msg.split())}")
        return ''

    # --- Markdown

    def markdown(self):
        "A parser whose names, links, pictures and formulas become those of the site"
        md = MarkdownIt('commonmark').enable(['table','strikethrough'])
        def math(state, silent):
            m = re.compile(r'\$\$(.+?)\$\$|\$(?=\S)([^$\n]+?)(?<=\S)\$(?!\w)', re.S).match(state.src, state.pos)
            if m and not silent: state.push('math', '', 0).content = m[0]
            if m: state.pos = m.end()
            return bool(m)
        md.inline.ruler.before('escape', 'math', math)
        def _rule(name, f): md.add_render_rule(name, lambda _, toks, i, opts, env: f(toks, i))
        _rule('math', lambda toks, i: self.formula(toks[i].content))
        _rule('fence', lambda toks, i: code_html(toks[i].content, toks[i].info.strip(' {}.').split(' ')[0]))
        _rule('code_inline', lambda toks, i: self.name(toks[i].content, sum(o.nesting for o in toks[:i] if o.type.startswith('link_'))))
        _rule('heading_open', self.heading)
        _rule('heading_close', lambda toks, i: f' {anchor(self.page.toc[-1][2])}</{toks[i].tag}>\n')
        _rule('link_open', lambda toks, i: f'<a href="{html.escape(self.href(toks[i].attrs["href"]))}">')
        _rule('image', lambda toks, i: self.image(toks[i].attrs['src'], toks[i].content))
        _rule('table_open', lambda toks, i: '<div class="scroll"><table>\n')
        _rule('table_close', lambda toks, i: '</table></div>\n')
        return md

    def render(self, text):
        "Markdown to HTML, with Quarto's callouts"
        text = re.sub(r'^:::+\s*\{\.callout-(\w+)[^}]*\}\s*$', r'<aside class="callout \1">\n', text, flags=re.M)
        text = re.sub(r'^:::+\s*$', '\n</aside>', text, flags=re.M)
        prose = re.sub(r'```.*?```|`[^`\n]*`', '', text, flags=re.S)
        for o in re.findall(r'^:::.*|\[\^\w+\]', prose, re.M): self.problem(f'{o!r} is not something that this site can show')
        return self.md.render(text)

    def inline(self, text): return self.md.renderInline(text)

    def formula(self, src):
        try: svg = tex_svg(' '.join(src.strip('$').split()))
        except ValueError as e: return self.problem(f'formula {src}: {e}')
        return f'<span class="display">{svg}</span>' if src.startswith('$$') else svg

    def heading(self, toks, i):
        "Opens a heading with an id of its own, or the one that stands in `{#braces}` behind it"
        text,own = toks[i+1].children,grab(r'\{#([\w.-]+)[^}]*\}\s*$', toks[i+1].content)
        if own: text[-1].content = re.sub(r'\s*\{#[^}]*\}\s*$', '', text[-1].content)
        plain = ''.join(o.content for o in text)
        id,self.page.level = own or self.page.new_id(slug(plain)),int(toks[i].tag[1])
        self.page.toc.append((self.page.level,plain,id))
        return f'<{toks[i].tag} id="{id}">'

    def name(self, code, linked=False):
        "Inline code; a link if it names something that is documented"
        key,res,url = re.sub(r'\(.*\)$', '', code),f'<code>{html.escape(code)}</code>',None
        if key in self.links:
            p,id = self.links[key]
            url = ('' if p is self.page else self.page.rel(p.url)) + (f'#{id}' if id else '') or None
        url = url or self.others.get(key)
        return f'<a href="{url}">{res}</a>' if url and not linked else res

    def href(self, link):
        "A link of a source as a link of the site: to a page, to the repository, or as it is"
        path,_,id = link.partition('#')
        if not path or re.match(r'\w+:', link): return link
        f,end = (self.page.src.parent/path).resolve(),f'#{id}' if id else ''
        if f in self.sources: return self.page.rel(self.sources[f].url) + end.lower()
        return f'{blob}{f.relative_to(root)}{end}' if f.exists() and f.is_relative_to(root) else link

    def image(self, src, alt, data=None):
        "An `img` of the file `src` beside the page's source, or of `data`, copied to img/"
        if data is None:
            f = (self.page.src.parent/src).resolve()
            if not f.is_file(): return self.problem(f'missing image {src}')
            data,src = f.read_bytes(),f.name
        (self.out/'img').mkdir(exist_ok=True)
        (self.out/'img'/src).write_bytes(data)
        size = '' if src.endswith('.svg') else 'width="{}" height="{}" '.format(*Image.open(io.BytesIO(data)).size)
        return f'<img src="{self.page.rel(f"img/{src}")}" {size}loading="lazy" alt="{html.escape(alt)}">'

    # --- Cells

    def code_cell(self, src, outputs):
        "Code and outputs as the directives want them; exported code as its documentation"
        lines = src.splitlines()
        dirs = dict(m.groups() for m in map(re.compile(r'#\s*\|\s*([\w-]+):?\s*"?(.*?)"?\s*$').match, lines) if m)
        src = '\n'.join(o for o in lines if not re.match(r'#\s*\|', o)).strip('\n')
        if {'hide','default_exp'} & set(dirs) or dirs.get('include')=='false': return ''
        if {'export','exports'} & set(dirs): return self.export_cell(src, 'exports' in dirs)
        code = '' if 'hide_input' in dirs or dirs.get('echo')=='false' or not src else code_html(src)
        if code and dirs.get('code-fold')=='true': code = fold(dirs.get('code-summary', 'Code'), code)
        if 'hide_output' in dirs or dirs.get('output')=='false': return code
        alt,cap = dirs.get('fig-alt') or dirs.get('fig-cap') or self.alt(src),dirs.get('fig-cap')
        cap = f'<figcaption>{self.inline(cap)}</figcaption>' if cap else ''
        return code + ''.join(self.output(o, alt, cap) for o in outputs)

    def alt(self, src):
        "Words for a picture that has none: its section, and the call that drew it"
        lines = [l.strip(' ;') for l in src.splitlines() if l.strip()] or ['the cell']
        call = next((l for l in lines if re.search(r'(plot|show|draw)\w*\(', l)), lines[-1])
        return f'{next((t for l,t,_ in reversed(self.page.toc) if l==2), self.page.title)}: the picture that {call} draws'

    def output(self, o, alt, cap):
        "One saved output; progress bars and warnings leave nothing"
        if o['output_type']=='error': return self.problem(f"a cell ends in {o['ename']}")
        if o['output_type']=='stream': return self.text('' if o['name']=='stderr' else ''.join(o['text']))
        d = {k:''.join(v) for k,v in o['data'].items()}
        if 'text/html' in d:
            s = re.sub(r'<style.*?</style>|<progress.*?</progress>', '', d['text/html'], flags=re.S).replace(' border="1"', '')
            s = re.sub(r'<img (?![^>]*\balt=)', f'<img alt="{html.escape(alt)}" ', s)
            return f'<div class="out scroll">{s}</div>' if re.search('<img|<svg', s) or re.sub(r'<.*?>|\s', '', s) else ''
        for k,ext in (('image/png','png'),('image/jpeg','jpg'),('image/gif','gif')):
            if k not in d: continue
            self.page.n_img += 1
            name = f"{self.page.url.removesuffix('.html').replace('/', '-')}-{self.page.n_img}.{ext}"
            return f'<figure>{self.image(name, alt, base64.b64decode(d[k]))}{cap}</figure>'
        if 'image/svg+xml' in d: return f"<figure>{d['image/svg+xml']}{cap}</figure>"
        if 'text/markdown' in d: return f'<div class="out">{self.render(d["text/markdown"])}</div>'
        return self.text(d.get('text/plain', ''))

    def text(self, s):
        s = re.sub(r'\x1b\[[\d;]*[A-Za-z]', '', s).rstrip()
        return f'<pre class="out">{html.escape(s)}</pre>' if s else ''

    def export_cell(self, src, shown=False):
        "The documentation of what the cell exports, and its source to unfold"
        nodes = [(n,o) for o in ast.parse(src).body for n in defined(o)]
        entries = ''.join(self.entry(n, o, src) for n,o in nodes if public(n))
        if shown: return entries + code_html(src)
        if entries and all(isinstance(o, ast.Assign) for _,o in nodes): return entries
        title = 'Source' if entries else 'Source of ' + ', '.join(f'<code>{n}</code>' for n,_ in nodes) if nodes else 'Imports'
        return entries + fold(title, code_html(src), 'src no-index')

    def entry(self, name, node, src, within=False):
        "Heading, signature, docstring and table of one symbol, and of the methods within a class"
        p,(_,id),level = self.page,self.symbols[name],min(self.page.level+1+within, 5)
        p.toc.append((3+within,name,id))
        url = f'{blob}{cfg.lib_path}/{p.module}.py#L{self.lines.get((p.module,name))}'
        link = '' if within else f'<a class="source no-index" href="{url}" aria-label="Source of {name}">source</a>'
        res = f'<h{level} class="sym" id="{id}"><code>{html.escape(name)}</code> {anchor(id)}{link}</h{level}>'
        if isinstance(node, ast.Assign): return f'<section class="api">{res}{code_html(ast.get_source_segment(src, node))}</section>'
        obj = find_object(importlib.import_module(f'{cfg.lib_name}.{p.module}'), name)
        is_cls = isinstance(node, ast.ClassDef)
        as_base = is_cls and not {'__init__','__new__'} & set(vars(obj))  # it is made as its base is: say so, in place of twenty arguments
        (params,ret),docs = (([],''),{}) if as_base else (signature(obj),docments(obj, args_kwargs=True))
        if is_cls and hasattr(obj, '_fields'): docs = dict(re.findall(r'^ +(\w+):.*?# *(.*)$', src, re.M))  # docments reads no NamedTuple
        args = ', '.join(map(ast.unparse, node.bases) if as_base else map(show_param, params))
        sig = f"{'class ' if is_cls else ''}{name}({args}){' -> ' if ret else ''}{ret}"
        if not is_property(node) and (params or not within): res += code_html(sig, cls='hl sig')
        if doc := ast.get_docstring(node): res += self.render(doc)
        def _row(nm, typ, default, doc):
            return Tr(Td(nm), Td(Code(typ) if typ else '', cls='no-index'), Td(default, cls='no-index'), Td(NotStr(self.inline(doc or ''))))
        def _default(o): return Em('required') if needed(o) else Code(show_value(o.default)) if given(o.default) else ''
        rows = [_row(Code(o.name), show_type(o), _default(o), docs.get(o.name)) for o in params]
        if docs.get('return'): rows.append(_row(Em('returns'), ret, '', docs['return']))
        if any(docs.values()): res += table(['Parameter','Type','Default','Meaning'], rows)
        return f'<section class="api">{res}{"".join(self.entry(f"{name}.{m.name}", m, src, True) for m in methods(node))}</section>'

    # --- Whole pages

    def room_table(self):
        "The rooms as the notebooks themselves have them: title, subtitle, and whom they import"
        by_name,rows = {p.module:p for p in self.rooms},[]
        for p in self.rooms:
            froms = [o.module for o in p.exported() if isinstance(o, ast.ImportFrom)]
            mods = [o.split('.')[1] for o in froms if o.startswith(f'{cfg.lib_name}.')]
            imports = [xml(A(Code(o), href=self.page.rel(by_name[o].url))) for o in uniqueify(mods)]
            holds,imports = NotStr(self.inline(p.subtitle)),NotStr(', '.join(imports) or '–')
            rows.append(Tr(*map(Td, (A(p.title, href=self.page.rel(p.url)), p.src.name[:2], Code(p.module), holds, imports))))
        return table(['Room','Number','Module','Holds','Imports'], rows, 'rooms')

    def body(self):
        "The cells of the page without its title, and what the comments in docs/*.md ask for"
        res,top = '',True
        for kind,src,outputs in self.page.cells:
            if kind=='code': res += self.code_cell(src, outputs)
            if kind!='markdown': continue
            if top: src = re.sub(r'\A\s*# .+\n*(> .+)?', '', src)
            res,top = res+self.render(src),False
        res = re.sub('<!-- rooms -->', lambda _: self.room_table(), res)
        return re.sub(r'<!-- figure: (\S+) -->', lambda m: f'<figure class="scroll">{read("docs", m[1])}</figure>', res)

    def nav(self):
        def _item(p):
            here = {'aria_current':'page'} if p is self.page else {}
            return Li(A(cfg.title if p.url=='index.html' else p.title, href=self.page.rel(p.url), **here))
        return xml(*[Section(H2(g), Ul(*map(_item, ps))) for g,ps in groupby(self.pages, 'group').items()])

    def toc(self):
        def _text(t, id): return Code(NotStr(t.replace('.', '.<wbr>'))) if self.symbols.get(t, (0,0))[1]==id else t
        items = [Li(A(_text(t, id), href=f'#{id}'), cls=f'l{level}') for level,t,id in self.page.toc if level<=3]
        return xml(Details(Summary('On this page'), Ul(*items), open=True, id='site-toc')) if items else ''

    def where(self, body):
        "The line below the title: the module, the notebook, a button"
        p = self.page
        res = [Code(f'{cfg.lib_name}.{p.module}'),A('module', href=f'{blob}{cfg.lib_path}/{p.module}.py')] if p.module else []
        if p.is_nb: res.append(A('notebook', href=f'{blob}{p.src.relative_to(root)}'))
        if 'class="src' in body: res.append(Button('Unfold all source', type='button', cls='unfold', hidden=True))
        return xml(P(*res, cls='where no-index')) if res else ''

    def write(self, p):
        "Write the page `p`; what a scan of it finds"
        self.page,top,i = p,p.new_id(slug(p.title)),self.pages.index(p)
        body,esc = self.body(),html.escape
        def _step(o, rel, word): return xml(A(Small(word), Span(o.title), href=p.rel(o.url), rel=rel)) if o else '<span></span>'
        steps = _step(self.pages[i-1] if i else None, 'prev', 'Previous') + _step(first(self.pages[i+1:]), 'next', 'Next')
        text = string.Template(read('docs/page.html')).substitute(
            title=esc(cfg.title if p.url=='index.html' else f'{p.title} – {cfg.title}'), h1=self.inline(p.title), top=top, body=body,
            steps=steps, description=esc(re.sub('[`*]', '', p.subtitle) or cfg.description), root='../'*p.url.count('/'),
            site=cfg.title, git=cfg.git_url, subtitle=f'<p class="subtitle">{self.inline(p.subtitle)}</p>' if p.subtitle else '',
            where=self.where(body), nav=self.nav(), toc=self.toc())
        (self.out/p.url).parent.mkdir(exist_ok=True)
        (self.out/p.url).write_text(text, encoding='utf-8')
        return Scan(text)

    def check(self, scans):
        "Every link and anchor leads somewhere, every file is there, no id stands twice, nothing is loaded from elsewhere"
        for p in self.pages:
            self.page,s,folder = p,scans[p.url],os.path.dirname(p.url)
            for o in s.problems: self.problem(o)
            for o in sorted({o for o in s.ids if s.ids.count(o)>1}): self.problem(f'id {o!r} stands twice')
            for o in uniqueify(s.files):
                if re.match(r'(https?:)?//', o): self.problem(f'loads {o}')
                elif not o.startswith('data:') and not (self.out/folder/o).is_file(): self.problem(f'missing file {o}')
            for o in uniqueify(s.links):
                path,_,id = o.partition('#')
                if re.match(r'(https?|mailto):', o): continue
                url = os.path.normpath(os.path.join(folder, path)) if path else p.url
                if url not in scans and not (self.out/url).is_file(): self.problem(f'broken link {o}')
                elif id and url in scans and id not in scans[url].ids: self.problem(f'broken anchor {o}')

    def write_index(self, scans):
        "The search index, as a script because a page opened from a folder may not read JSON"
        def _clean(s): return re.sub(r'\s+', ' ', s).strip(' #')
        rows = [[_clean(head),p.url if kind=='h1' else f'{p.url}#{id}',kind,p.title,_clean(text)]
                for p in self.pages for id,kind,head,text in scans[p.url].sections]
        index = json.dumps(rows, ensure_ascii=False, separators=(',',':'))
        (self.out/'search.js').write_text(f'window.searchIndex={index}', encoding='utf-8')

def build(out=None):
    "Build the site into `out`, by default where settings.ini says; what is wrong with it is in its `problems`"
    out = Path(out or root/cfg.doc_path)
    if (out/'search.js').exists(): shutil.rmtree(out)  # only what an earlier build left
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(root/'docs/site.js', out)
    for f in ('search.js','.nojekyll'): (out/f).touch()
    (out/'site.css').write_text(read('docs/site.css') + token_css(), encoding='utf-8')
    site = Site(out)
    scans = {p.url:site.write(p) for p in site.pages}
    site.write_index(scans)
    site.check(scans)
    return site

def main(out=None):
    "Build, say what is wrong or where the site is; the exit code"
    site = build(out)
    for o in site.problems: print(o, file=sys.stderr)
    print(f"{len(site.pages)} pages: {site.out/'index.html'}" if not site.problems else f'{len(site.problems)} problems')
    return int(bool(site.problems))

if __name__=='__main__': sys.exit(main(*sys.argv[1:2]))
