"What pages of the site are made of: highlighted code, formulas, what Python knows about a symbol, and a reader of finished pages"
import ast,html,inspect,re
from functools import cache
from html.parser import HTMLParser
from fastcore.xml import to_xml
from matplotlib import rc_context
from matplotlib.textpath import TextPath
from nbdev.doclinks import patch_name
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.styles import get_style_by_name
from pygments.token import STANDARD_TYPES
from pygments.util import ClassNotFound

def xml(*o): return ''.join(to_xml(x, indent=False) for x in o)
def slug(s): return re.sub(r'\s+', '-', re.sub(r'[^\w\s.-]', '', s.lower()).strip()) or 'section'

def code_html(src, lang='python', cls='hl'):
    "`src` highlighted; an unknown language is plain text"
    try: lexer = get_lexer_by_name(lang or 'text', stripnl=False)
    except ClassNotFound: lexer = get_lexer_by_name('text')
    return highlight(src, lexer, HtmlFormatter(cssclass=cls, wrapcode=True))

def token_css(styles=('xcode','github-dark')):
    "Colours of the tokens, each for the light and the dark theme"
    light,dark = ({t:s.style_for_token(t)['color'] for t in STANDARD_TYPES} for s in map(get_style_by_name, styles))
    def _col(c): return f'#{c}' if c else 'inherit'
    used = [(k,_col(light[t]),_col(dark[t])) for t,k in STANDARD_TYPES.items() if k and light[t]]
    return '\n'.join(f'.hl .{k} {{ color: light-dark({l}, {d}) }}' for k,l,d in used)

@cache
def tex_svg(tex):
    "A formula as a drawing, in the size and colour of the text around it"
    tex = re.sub(r'\\sqrt\s*(\\\w+)', r'\\sqrt{\1}', tex)  # matplotlib wants the braces
    with rc_context({'mathtext.fontset':'stix'}): p = TextPath((0,0), f'${tex}$', size=112)
    b,op = p.get_extents().padded(2),{1:'M',2:'L',3:'Q',4:'C',79:'Z'}
    d = ''.join(op[c] + ('' if c==79 else ' '.join(f'{v:.0f}' for v in (pts.reshape(-1,2)*(1,-1)).ravel())) for pts,c in p.iter_segments())
    return (f'<svg class="math" role="img" aria-label="{html.escape(tex)}" viewBox="{b.x0:.0f} {-b.y1:.0f} {b.width:.0f} {b.height:.0f}" '
            f'style="height:{b.height/100:.2f}em;vertical-align:{b.y0/100:.2f}em"><path d="{d}"/></svg>')

# --- Symbols

def public(name): return not any(o.startswith('_') for o in name.split('.'))

def defined(node):
    "Names that a statement of an exported cell defines: functions, classes, patched methods, constants"
    if isinstance(node, (ast.FunctionDef,ast.ClassDef)): return [patch_name(node)]
    if not isinstance(node, ast.Assign): return []
    return [n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]  # not a.b = …

def methods(node):
    "The public methods in the body of a class that have a docstring"
    return [o for o in getattr(node, 'body', []) if isinstance(node, ast.ClassDef) and isinstance(o, ast.FunctionDef)
            and public(o.name) and ast.get_docstring(o)]

def is_property(node): return any('prop' in ast.unparse(o) for o in getattr(node, 'decorator_list', []))

def find_object(module, name):
    "The function or class behind `name`, of a property its function"
    for o in name.split('.'): module = getattr(module, o)
    return getattr(module, 'fget', None) or getattr(module, '__func__', module)

def given(o): return o is not inspect.Parameter.empty
def show_anno(o):
    if not given(o): return ''
    res = (o if isinstance(o, str) else inspect.formatannotation(o)).replace(' | ', '|')
    return 'one or more str' if res.startswith('_several(') else res  # the words that a script takes
def show_value(o): return o.__name__ if callable(o) and hasattr(o, '__name__') else re.sub(r' at 0x\w+', '', repr(o))
def show_type(p): return show_anno(p.annotation) or (type(p.default).__name__ if given(p.default) and p.default is not None else '')
def show_param(p):
    star = {p.VAR_POSITIONAL:'*',p.VAR_KEYWORD:'**'}.get(p.kind, '')
    return f'{star}{p.name}={show_value(p.default)}' if given(p.default) else star+p.name
def needed(p): return not given(p.default) and p.kind not in (p.VAR_POSITIONAL,p.VAR_KEYWORD)

def signature(o):
    "The parameters as a caller sees them, and the type of what comes back"
    try: s = inspect.signature(o)
    except (TypeError,ValueError): return [],''
    return [p for k,p in s.parameters.items() if k not in ('self','cls')],'' if inspect.isclass(o) else show_anno(s.return_annotation)

# --- Finished pages

class Scan(HTMLParser):
    "What a finished page refers to, and its text by section: [id, kind, heading, text]"
    heads,mute = {'h1','h2','h3','h4','h5'},{'script','style','pre','svg','thead'}
    void = 'img meta link input br hr path rect circle source'.split()
    def __init__(self, text):
        super().__init__()
        self.ids,self.links,self.files,self.problems,self.sections,self.stack = [],[],[],[],[],[]
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if tag not in self.void: self.stack.append((tag,a.get('class', '')))
        if 'id' in a: self.ids.append(a['id'])
        if tag=='a' and 'href' in a: self.links.append(a['href'])
        self.files += [a[k] for k in ('src','poster','data') if k in a] + ([a['href']] if tag in ('link','use','image') else [])
        if tag=='img' and not a.get('alt'): self.problems.append(f"an image without alt text: {a.get('src', '')[:60]}")
        if tag in self.heads and 'id' in a: self.sections.append([a['id'],'symbol' if a.get('class')=='sym' else tag,'',''])

    def handle_endtag(self, tag):
        if tag in ('td','th','p','li') and self.sections: self.sections[-1][3] += ' '
        while self.stack and self.stack.pop()[0]!=tag: pass

    def handle_data(self, data):
        tags = {t for t,_ in self.stack}
        if self.sections and 'article' in tags and not self.mute & tags and not any('no-index' in c for _,c in self.stack):
            self.sections[-1][2 if self.heads & tags else 3] += data
