"Do `nbdev_export`, `nbdev_clean` and the making of README.md leave everything as it is, and are saved outputs without warnings?"
import json,shutil,subprocess,sys,tempfile
from pathlib import Path

root,bin_dir = Path(__file__).resolve().parent.parent,Path(sys.executable).parent
kept = 'nbs','cifar_fast'

def contents(folder):
    files = [p for o in kept for p in (folder/o).rglob('*') if p.suffix in ('.py','.ipynb')]
    return {p.relative_to(folder): p.read_bytes() for p in files}

with tempfile.TemporaryDirectory() as d:
    copy = Path(d)/root.name
    rest = shutil.ignore_patterns('.git','.venv*','runs','__pycache__','*.egg-info','.ipynb_checkpoints','models')
    shutil.copytree(root, copy, symlinks=True, ignore=rest)
    for cmd in 'nbdev_export','nbdev_clean': subprocess.run([bin_dir/cmd], cwd=copy, check=True)
    before,after = contents(root),contents(copy)
differ = sorted(str(k) for k in before.keys()|after.keys() if before.get(k)!=after.get(k) and 'checkpoints' not in str(k))
if differ: sys.exit(f'run nbdev_export and nbdev_clean, then commit: they change {", ".join(differ)}')
sys.path.insert(0, str(root/'docs'))
import make_readme,tables
def stale(files): return [k for k,v in files.items() if not (root/k).exists() or (root/k).read_bytes()!=v]
if o := stale({k: v.encode() for k,v in tables.files().items()}):
    sys.exit(f'{" and ".join(o)}: not what docs/results/runs.csv says: run `python docs/tables.py`, then commit')
if o := stale(make_readme.files()):
    sys.exit(f'{" and ".join(o)}: not what nbs/index.ipynb says: run `python docs/make_readme.py`, then commit')
def outputs(nb): return [o for c in json.loads(nb.read_text(encoding='utf-8'))['cells'] for o in c.get('outputs', [])]
warned = [p.name for p in sorted((root/'nbs').rglob('*.ipynb')) if any(o.get('name')=='stderr' for o in outputs(p))]
if warned: sys.exit(f'outputs on stderr, warnings most likely, are saved in {", ".join(warned)}: mend the cause and run them again')
print(f'nbdev_export and nbdev_clean leave {len(before)} files as they are')
