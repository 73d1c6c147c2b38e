"Are the modules and the notebooks what `nbdev_export` and `nbdev_clean` make of them, and the saved outputs without warnings?"
import json,shutil,subprocess,sys,tempfile
from pathlib import Path

root,bin_dir = Path(__file__).resolve().parent.parent,Path(sys.executable).parent
kept = 'nbs','cifar_fast'

def contents(folder): return {p.relative_to(folder): p.read_bytes() for o in kept for p in (folder/o).rglob('*') if p.suffix in ('.py','.ipynb')}

with tempfile.TemporaryDirectory() as d:
    copy = Path(d)/root.name
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns('.git','.venv*','runs','__pycache__','*.egg-info','.ipynb_checkpoints','models'))
    for cmd in 'nbdev_export','nbdev_clean': subprocess.run([bin_dir/cmd], cwd=copy, check=True)
    before,after = contents(root),contents(copy)
differ = sorted(str(k) for k in before.keys()|after.keys() if before.get(k)!=after.get(k) and 'checkpoints' not in str(k))
if differ: sys.exit(f'run nbdev_export and nbdev_clean, then commit: they change {", ".join(differ)}')
warned = [p.name for p in sorted((root/'nbs').rglob('*.ipynb')) if any(o.get('name')=='stderr' for c in json.loads(p.read_text())['cells'] for o in c.get('outputs', []))]
if warned: sys.exit(f'outputs on stderr, warnings most likely, are saved in {", ".join(warned)}: mend the cause and run them again')
print(f'nbdev_export and nbdev_clean leave {len(before)} files as they are')
