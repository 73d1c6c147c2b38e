"The site, by Sphinx, MyST-NB and furo from the notebooks as they were saved: nothing runs, nothing is fetched"
import ast,html,importlib,inspect,json,re
from pathlib import Path
from docutils import nodes
from fastcore.docments import docments
from latex2mathml.converter import convert
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup,patch_name
from nbformat.v4 import new_markdown_cell
from sphinx import addnodes
from sphinx.builders.html import StandaloneHTMLBuilder
from sphinx.util.inspect import object_description,stringify_signature

here = Path(__file__).resolve().parent
cfg = get_config(path=here.parent)
lib,blob = cfg.lib_name,f'{cfg.git_url}/blob/{cfg.branch}/{cfg.lib_name}'
project,author,copyright,html_title,root_doc,html_theme = cfg.title,cfg.author,cfg.copyright,cfg.title,'nbs/index','furo'
extensions = ['myst_nb','sphinx_copybutton','sphinx.ext.linkcode']
include_patterns,exclude_patterns = ['nbs/**.ipynb','docs/*.md','C*.md'],['**.ipynb_checkpoints']
html_static_path,html_css_files,html_favicon,html_copy_source = ['site.css'],['site.css'],'images/icon.svg',False
html_baseurl = cfg.doc_host + cfg.doc_baseurl.rstrip('/')
html_theme_options = dict(source_repository=cfg.git_url, source_branch=cfg.branch, source_directory='')
nb_execution_mode,nb_merge_streams,html_math_renderer,suppress_warnings = 'off',True,'mathml',['myst.header']
myst_enable_extensions,myst_heading_anchors = ['colon_fence','dollarmath'],4
groups = dict(Overview='self /docs/architecture /docs/promises /docs/results /docs/speed /CHANGELOG /CONTRIBUTING', Tutorials='tutorials/*',
              Explanations='explanations/*', Modules='[0-9]*')
fastai = NbdevLookup(incl_libs=('fastai','fastcore'), strip_libs=('fastai','fastcore'))
rooms,objects,heads = {},{},{}  # of a module its page and imports, of a name its object, of a page its title and subtitle

# --- What is told of a symbol

def public(name): return not any(o.startswith('_') for o in name.split('.'))
def code(s): return '`' + s.replace('|', '\\|') + '`' if s else ''
def plain(s): return re.sub(r"<(?:built-in )?(?:function|method|class) '?(?:[\w.]+\.)?(\w+).*?>", r'\1', s)
def anno(o): return '' if o is inspect.Parameter.empty else (o if isinstance(o, str) else inspect.formatannotation(o)).replace(' | ', '|')

def defined(o):
    "The names that a statement defines: a function, a class, a patched method, constants"
    if isinstance(o, (ast.FunctionDef,ast.ClassDef)): return [patch_name(o)]
    stored = [n for t in o.targets for n in ast.walk(t)] if isinstance(o, ast.Assign) else []
    return [n.id for n in stored if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]  # not a.b = …

def table(params, docs, ret):
    "The parameters in Markdown, if something is said of them"
    def _row(p):
        default = code(plain(object_description(p.default))) if p.default is not p.empty else '*required*' if p.kind<=1 else ''
        return f'| {code(p.name)} | {code(anno(p.annotation))} | {default} | {docs.get(p.name) or ""} |'
    rows = [*map(_row, params), *([f'| *returns* | {code(ret)} | | {docs["return"]} |'] if docs.get('return') else [])]
    return '\n'.join(['| Parameter | Type | Default | Meaning |\n|--|--|--|--|', *rows]) if any(docs.values()) else ''

def entry(mod, name, node, src, fence='::::::'):
    "Signature, docstring and table of a symbol as a directive, with those of the methods within a class"
    if isinstance(node, ast.Assign): return f'{fence}{{py:data}} {name}\n{fence}\n'
    obj,is_cls = mod,isinstance(node, ast.ClassDef)
    for o in name.split('.'): obj = getattr(obj, o)
    obj = objects[name] = getattr(obj, 'fget', None) or getattr(obj, '__func__', obj)
    kind = 'class' if is_cls else 'property' if any('prop' in ast.unparse(o) for o in node.decorator_list) else 'function'
    if is_cls and not {'__init__','__new__'} & set(vars(obj)):  # it is made as its base is: say so, in place of twenty arguments
        tab,head = '',f'{name}({", ".join(map(ast.unparse, node.bases))})'
    else:
        sig = inspect.signature(obj)
        sig = sig.replace(parameters=[p for k,p in sig.parameters.items() if '.' not in name or k not in ('self','cls')])
        args,ret = plain(stringify_signature(sig, show_annotation=False)),'' if is_cls else anno(sig.return_annotation)
        docs = dict(re.findall(r'^ +(\w+):.*?# *(.*)$', src, re.M)) if hasattr(obj, '_fields') else docments(obj, args_kwargs=True)
        tab,head = table(sig.parameters.values(), docs, ret),name if kind=='property' else name+args+(f' -> {ret}' if ret else '')
    methods = [o for o in node.body if is_cls and isinstance(o, ast.FunctionDef) and public(o.name) and ast.get_docstring(o)]
    inner = '\n'.join(entry(mod, f'{name}.{o.name}', o, src, fence[1:]) for o in methods)
    return f'{fence}{{py:{kind}}} {head}\n{ast.get_docstring(node) or ""}\n\n{tab}\n\n{inner}\n{fence}\n'

# --- What becomes of a source when it is read

def code_cell(c, src, alt, mod):
    "What a code cell is on the page: nothing, itself, or its documentation and its source to unfold"
    dirs = dict(re.findall(r'^#\| *([\w-]+):? *(.*)$', src, re.M))
    if {'hide','default_exp'} & set(dirs): return []
    src = re.sub(r'^#\|.*\n?', '', src, flags=re.M)
    shown = [(n,o) for o in ast.parse(src).body for n in defined(o)] if 'export' in dirs else []
    docs = ''.join(entry(mod, n, o, src) for n,o in shown if public(n))
    title = 'Source' if docs else 'Source of '+', '.join(n for n,_ in shown) if shown else 'Imports' if 'export' in dirs else 'Code'
    tags = ['remove-input']*(dirs.get('echo')=='false') + ['hide-input']*bool({'export','code-fold'} & set(dirs))
    meta = dict(tags=tags, mystnb=dict(image=dict(alt=alt), code_prompt_show=title, code_prompt_hide=title))
    for o in [o['data'] for o in c['outputs'] if 'text/html' in o.get('data', {})]:
        s = re.sub(r'(?s)<style.*?</style>', '', ''.join(o['text/html']))  # the theme has its own
        o['text/html'] = re.sub(r'<img (?![^>]*\balt=)', f'<img alt="{html.escape(alt)}" ', s)
    return [*([new_markdown_cell(docs)] if docs else []), dict(c, source=src, metadata=meta)]

def notebook(docname, nb):
    "The cells as MyST-NB shall show them"
    srcs,cells,alt = [''.join(c['source']) for c in nb['cells']],[],''
    name = next((m[1] for s in srcs if (m := re.match(r'#\| default_exp (\w+)', s))), None)
    mod,exports = name and importlib.import_module(f'{lib}.{name}'),'\n'.join(s for s in srcs if s.startswith('#| export'))
    used = [o.module.removeprefix(f'{lib}.') for o in ast.parse(exports).body if isinstance(o, ast.ImportFrom) and f'{lib}.' in o.module]
    if mod: rooms[name] = docname,dict.fromkeys(used)
    for c,s in zip(nb['cells'], srcs):
        if c['cell_type']=='code': cells += code_cell(c, s, f'Figure in the section “{alt}”', mod)
        else:
            if mod and not alt: s = re.sub(r'^> .+$', rf'\g<0>\n\n[`{lib}.{name}`]({blob}/{name}.py)', s, count=1, flags=re.M)
            alt = re.sub('[`*]', '', (re.findall(r'^#+ (.+)$', s, re.M) or [alt])[-1])
            cells.append(dict(c, source=s))
    tocs = [f'```{{toctree}}\n:hidden:\n:glob:\n:caption: {k}\n' + '\n'.join(v.split()) + '\n```' for k,v in groups.items()]
    return json.dumps(dict(nb, cells=cells + [new_markdown_cell('\n\n'.join(tocs))]*(docname==root_doc)))

def architecture(s):
    "The page with its figure, which then has the theme's colours and links, and with the table of rooms"
    link = r'<a href="\1.html">\g<0></a>'
    svg = re.sub(rf'<text class="name"[^>]*>({"|".join(rooms)})</text>', link, (here/'dataflow.svg').read_text(encoding='utf-8'))
    def _row(k, d, used):
        return f'| [{heads[d][0]}](/{d}.ipynb) | {d[4:].split("_")[0]} | `{k}` | {heads[d][1]} | {", ".join(map(code, used)) or "–"} |'
    table = '\n'.join(['| Room | Number | Module | Holds | Imports |\n|--|--|--|--|--|', *[_row(k, *o) for k,o in rooms.items()]])
    s = re.sub(r'!\[.*\]\(dataflow.svg\)', lambda _: f'```{{raw}} html\n<div class="wide">{svg}</div>\n```', s)
    return s.replace('<!-- rooms -->', table)

def source_read(app, docname, source):
    nb = json.loads(source[0]) if source[0].startswith('{') else None
    s = next(''.join(c['source']) for c in nb['cells'] if c['cell_type']=='markdown') if nb else source[0]
    heads[docname] = [next(iter(re.findall(rf'^{o} (.+)$', s, re.M)), '') for o in '#>']
    source[0] = notebook(docname, nb) if nb else architecture(s)

# --- What becomes of a page when all are read

def resolved(app, tree, docname):
    "Inline code that names what is documented, here or by fastai, becomes a link; the links of nbdev find their anchors"
    own = {k: (o.docname,f'#{o.node_id}') for k,o in app.env.domains['py'].objects.items()}
    own |= {k[8:]: v for k,v in own.items() if k[:8]=='Learner.'} | {k: (d,'') for o,(d,_) in rooms.items() for k in [o,f'{lib}.{o}']}
    for o in list(tree.findall(nodes.literal)):
        name = re.sub(r'\(.*\)$', '', o.astext())
        if isinstance(o.parent, (nodes.reference,nodes.title)): continue
        if name in own: to = app.builder.get_relative_uri(docname, own[name][0]) + own[name][1]
        else: to = re.search('[A-Z_]', name) and len(name)>2 and (fastai.doc(name) or fastai.doc(f'Learner.{name}'))
        if to: o.replace_self(nodes.reference('', '', o.deepcopy(), internal=name in own, refuri=to))
    for o in tree.findall(addnodes.desc_signature): o['ids'] += {i.lower() for i in o['ids']} - set(tree.ids)

def linkcode_resolve(domain, info):
    if obj := inspect.unwrap(objects.get(info['fullname'])):
        return f"{blob}/{obj.__module__.split('.')[-1]}.py#L{inspect.getsourcelines(obj)[1]}"

def math(self, node):
    self.body.append(convert(node.astext(), 'block' if isinstance(node, nodes.math_block) else 'inline'))
    raise nodes.SkipNode

class Site(StandaloneHTMLBuilder):
    "Pages named as nbdev links to them: schedule.html of nbs/08_schedule.ipynb"
    name = 'html'
    def get_target_uri(self, docname, typ=None): return re.sub(r'^(nbs|docs)/|(?<=/)\d+[a-z]?_', '', docname).lower() + '.html'
    def get_output_path(self, page): return self.outdir/self.get_target_uri(page)

def finish(app, error):
    "The search learns the names of the pages; llms.txt lists them"
    if error: return
    uri,index = app.builder.get_target_uri,app.outdir/'searchindex.js'
    def _names(m): return '"docnames":' + json.dumps([uri(o)[:-5] for o in json.loads(m[1])])
    index.write_text(re.sub(r'"docnames":(\[.*?\])', _names, index.read_text(encoding='utf-8')), encoding='utf-8')
    def _line(d): return '- [{}]({}/{}): {}'.format(heads[d][0], html_baseurl, uri(d), heads[d][1])
    text = ['# {}'.format(heads[root_doc][0]),'> {}'.format(heads[root_doc][1])]
    for o in app.env.get_doctree(root_doc).findall(addnodes.toctree):
        text += [f"## {o['caption']}",'\n'.join(_line(root_doc if d=='self' else d) for _,d in o['entries'])]
    (app.outdir/'llms.txt').write_text('\n\n'.join(text)+'\n', encoding='utf-8')

def setup(app):
    app.add_builder(Site, override=True)
    app.add_html_math_renderer('mathml', (math,None), (math,None))
    app.connect('env-before-read-docs', lambda app, env, names: names.sort(key=lambda o: o[:3]!='nbs'))  # before their table
    for k,f in {'source-read':source_read, 'doctree-resolved':resolved, 'build-finished':finish}.items(): app.connect(k, f)
