"The site, by Sphinx, MyST-NB and furo from the notebooks as they were saved: nothing runs, nothing is fetched"
import ast,inspect,json,pkgutil,re
from pathlib import Path
from docutils import nodes
from docutils.writers.html5_polyglot import HTMLTranslator
from fastcore.docments import docments
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
    return [n.id for t in getattr(o, 'targets', []) for n in ast.walk(t) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]

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
    obj,is_cls = pkgutil.resolve_name(f'{mod}:{name}'),isinstance(node, ast.ClassDef)
    obj = objects[name] = getattr(obj, 'fget', None) or getattr(obj, '__func__', obj)
    kind = 'class' if is_cls else 'property' if any('prop' in ast.unparse(o) for o in node.decorator_list) else 'function'
    if is_cls and not {'__init__','__new__'} & set(vars(obj)):  # it is made as its base is: say so, in place of twenty arguments
        tab,head = '',f'{name}({", ".join(map(ast.unparse, node.bases))})'
    else:
        sig = inspect.signature(obj)
        sig = sig.replace(parameters=[*sig.parameters.values()]['.' in name:])  # a method without its self
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
    for o in c['outputs']:
        if page := o.get('data', {}).get('text/html'): o['data']['text/html'] = re.sub(r'(?s)<style.*?</style>', '', ''.join(page))
    return [*([new_markdown_cell(docs)] if docs else []), dict(c, source=src, metadata=meta)]

def notebook(docname, nb):
    "The cells as MyST-NB shall show them"
    cells,alt,room = [],'',re.match(r'#\| default_exp (\w+)', ''.join(nb['cells'][0]['source']))
    name = room and room[1]
    if name: rooms[name] = docname,dict.fromkeys(re.findall(r'^from \.(\w+)', (here.parent/lib/f'{name}.py').read_text('utf-8'), re.M))
    for c in nb['cells']:
        s = ''.join(c['source'])
        if c['cell_type']=='code': cells += code_cell(c, s, f'Figure in the section “{alt}”', f'{lib}.{name}')
        else:
            if name and not alt: s = re.sub(r'^> .+$', rf'\g<0>\n\n[`{lib}.{name}`]({blob}/{name}.py)', s, count=1, flags=re.M)
            alt = re.sub('[`*]', '', (re.findall(r'^#+ (.+)$', s, re.M) or [alt])[-1])
            cells.append(dict(c, source=s))
    tocs = [f'```{{toctree}}\n:hidden:\n:glob:\n:caption: {k}\n' + '\n'.join(v.split()) + '\n```' for k,v in groups.items()]
    return json.dumps(dict(nb, cells=cells + [new_markdown_cell('\n\n'.join(tocs))]*(docname==root_doc)))

def architecture(s):
    "The page with its figure within it, which then has the theme's colours and links, and with the rows of the table of rooms"
    rows = [f'| [{heads[d][0]}](/{d}.ipynb) | {d[4:].split("_")[0]} | `{k}` | {heads[d][1]} | {", ".join(map(code, used)) or "–"} |'
            for k,(d,used) in rooms.items()]
    svg = (here/'dataflow.svg').read_text(encoding='utf-8')
    s = re.sub(r'!\[.*\]\(dataflow.svg\)', lambda _: f'```{{raw}} html\n<div class="wide">{svg}</div>\n```', s)
    return s.replace('<!-- rooms -->', '\n'.join(rows))

def source_read(app, docname, source):
    nb = json.loads(source[0]) if source[0].startswith('{') else None
    s = next(''.join(c['source']) for c in nb['cells'] if c['cell_type']=='markdown') if nb else source[0]
    heads[docname] = [next(iter(re.findall(rf'^{o} (.+)$', s, re.M)), '') for o in '#>']
    source[0] = notebook(docname, nb) if nb else architecture(s)

# --- What becomes of a page when all are read

def resolved(app, tree, docname):
    "Inline code that names what is documented, here or by fastai, becomes a link; the links of nbdev find their anchors"
    uri,symbols = app.builder.get_relative_uri,app.env.domains['py'].objects
    for o in [o for o in tree.findall(nodes.literal) if not isinstance(o.parent, (nodes.reference,nodes.title))]:
        name = re.sub(r'\(.*\)$', '', o.astext())
        if room := rooms.get(name.removeprefix(f'{lib}.')): to = uri(docname, room[0])
        elif own := symbols.get(f'Learner.{name}') or symbols.get(name): to = f'{uri(docname, own.docname)}#{own.node_id}'
        else: to = re.search('[A-Z_]', name) and len(name)>2 and (fastai.doc(name) or fastai.doc(f'Learner.{name}'))
        if to: o.replace_self(nodes.reference('', '', o.deepcopy(), internal='://' not in to, refuri=to))
    for o in tree.findall(addnodes.desc_signature): o['ids'] += {i.lower() for i in o['ids']} - set(tree.ids)

def linkcode_resolve(domain, info):
    if obj := inspect.unwrap(objects.get(info['fullname'])):
        return f"{blob}/{obj.__module__.split('.')[-1]}.py#L{inspect.getsourcelines(obj)[1]}"

class Site(StandaloneHTMLBuilder):
    "Pages named as nbdev links to them: schedule.html of nbs/08_schedule.ipynb; the search learns the names, and llms.txt lists them"
    name = 'html'
    def get_target_uri(self, docname, typ=None): return re.sub(r'^(nbs|docs)/|(?<=/)\d+[a-z]?_', '', docname).lower() + '.html'
    def get_output_path(self, page): return self.outdir/self.get_target_uri(page)
    def handle_finish(self):
        super().handle_finish()
        def _names(m): return '"docnames":' + json.dumps([self.get_target_uri(o)[:-5] for o in json.loads(m[1])])
        def _line(d): return '- [{}]({}/{}): {}'.format(heads[d][0], html_baseurl, self.get_target_uri(d), heads[d][1])
        index,text = self.outdir/self.searchindex_filename,['# {}\n\n> {}'.format(*heads[root_doc])]
        index.write_text(re.sub(r'"docnames":(\[.*?\])', _names, index.read_text(encoding='utf-8')), encoding='utf-8')
        for o in self.env.get_doctree(root_doc).findall(addnodes.toctree):
            text += [f"## {o['caption']}",'\n'.join(_line(root_doc if d=='self' else d) for _,d in o['entries'])]
        (self.outdir/'llms.txt').write_text('\n\n'.join(text)+'\n', encoding='utf-8')

def setup(app):
    app.add_builder(Site, override=True)
    app.add_html_math_renderer('mathml', *[(HTMLTranslator.visit_math,None)]*2)  # see docutils.conf
    app.connect('env-before-read-docs', lambda app, env, names: names.sort(key=lambda o: o[:3]!='nbs'))  # before their table
    app.connect('source-read', source_read)
    app.connect('doctree-resolved', resolved)
