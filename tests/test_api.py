"The API as importers meet it"
import importlib,os,pkgutil,subprocess,sys
import cifar_fast

def run(code, **env): return subprocess.run([sys.executable,'-c',code], capture_output=True, text=True, env=dict(os.environ, **env))

def test_all_is_the_whole_api():
    everything = importlib.import_module('cifar_fast.all')
    for m in pkgutil.iter_modules(cifar_fast.__path__):
        if m.name in ('all','_modidx'): continue
        for name in importlib.import_module(f'cifar_fast.{m.name}').__all__: assert hasattr(everything, name), f'{m.name}.{name}'

def test_import_needs_no_network():
    "Importing opens no connection, and does not touch the memory allocator or matplotlib's backend"
    code = '''import socket
def no(*a, **k): raise SystemExit(f'a connection was attempted: {a[1:]}')
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = no
from cifar_fast.all import *
print(resnet9.__name__)'''
    r = run(code)
    assert r.returncode==0 and r.stdout.strip()=='resnet9', r.stderr + r.stdout

def test_order_of_rooms():
    "Data flows one way: a module imports only from modules whose notebooks come before its own"
    import re
    from pathlib import Path
    root = Path(cifar_fast.__file__).parent
    order = ('core shapes data augment device loaders models summary schedule learner tricks runs range_test gradcam '
             'localization interpret gallery gifs recipes report explain export bench cli').split()
    for f in root.glob('*.py'):
        if f.stem in ('all','__init__','_modidx'): continue
        used = re.findall(r'^from \.(\w+) import', f.read_text(), re.M)
        assert all(order.index(u)<order.index(f.stem) for u in used), (f.stem, used)
