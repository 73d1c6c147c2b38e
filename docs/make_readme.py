"Writes README.md and its figure from nbs/index.ipynb and the outputs saved there: `python docs/make_readme.py`"
import base64,json,re
from pathlib import Path

root = Path(__file__).resolve().parent.parent
actions = 'https://github.com/cifar-fast/cifar_fast/actions/workflows'
badges = ' '.join(f'[![{k}]({actions}/{o}.yml/badge.svg)]({actions}/{o}.yml)' for k,o in dict(tests='test', site='docs').items())
figure,alt = 'docs/images/index.png','Ten mistakes on drawn shapes, each beside its Grad-CAM'

def from_root(m):
    "A link of the index as a link of the README, which lies one folder higher"
    link = m[1]
    if re.match(r'\w+:|#', link): return m[0]
    return f"]({link.removeprefix('../') if link.startswith('../') else f'nbs/{link}'})"

def fenced(s, lang=''): return f'```{lang}\n{s.strip()}\n```'
def data(c, kind): return [''.join(o['data'][kind]) for o in c['outputs'] if kind in o.get('data', {})]

def cell(c):
    src = ''.join(c['source'])
    if c['cell_type']=='markdown': return re.sub(r'\]\(([^)\s]+)\)', from_root, src)
    if src.startswith('#| hide'): return ''
    texts = [fenced(''.join(o['text'])) for o in c['outputs'] if o.get('name')=='stdout']
    return '\n\n'.join([fenced(src, 'python'), *texts, *[f'![{alt}]({figure})' for _ in data(c, 'image/png')]])

def files():
    "What is written: names in the repository, and bytes"
    cells = json.loads((root/'nbs/index.ipynb').read_text(encoding='utf-8'))['cells']
    png, = [o for c in cells if c['cell_type']=='code' for o in data(c, 'image/png')]
    title,rest = '\n\n'.join(filter(None, map(cell, cells))).split('\n\n', 1)
    return {'README.md': f'{title}\n\n{badges}\n\n{rest}\n'.encode(), figure: base64.b64decode(png)}

if __name__=='__main__':
    for name,content in files().items(): (root/name).write_bytes(content)
