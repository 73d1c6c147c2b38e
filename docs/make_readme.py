"Writes README.md from nbs/index.ipynb, its text outputs included: `python docs/make_readme.py`"
import json,re
from pathlib import Path

root = Path(__file__).resolve().parent.parent

def from_root(m):
    "A link of the index as a link of the README, which lies one folder higher"
    link = m[1]
    if re.match(r'\w+:|#', link): return m[0]
    return f"]({link.removeprefix('../') if link.startswith('../') else f'nbs/{link}'})"

def fenced(s, lang=''): return f'```{lang}\n{s.strip()}\n```'

def cell(c):
    src = ''.join(c['source'])
    if c['cell_type']=='markdown': return re.sub(r'\]\(([^)\s]+)\)', from_root, src)
    if src.startswith('#| hide'): return ''
    texts = [''.join(o['text']) for o in c['outputs'] if o.get('name')=='stdout']
    return '\n\n'.join([fenced(src, 'python'), *([fenced(''.join(texts))] if texts else [])])

def readme(): return '\n\n'.join(filter(None, map(cell, json.loads((root/'nbs/index.ipynb').read_text(encoding='utf-8'))['cells']))) + '\n'

if __name__=='__main__': (root/'README.md').write_text(readme(), encoding='utf-8')
