"Every global name that the modules' code reads is there: behind star imports a linter cannot tell"
import builtins,dis,importlib,pkgutil,types
from pathlib import Path
import pytest
import cifar_fast

def codes(c):
    "A code object, and all within it"
    yield c
    for o in c.co_consts:
        if isinstance(o, types.CodeType): yield from codes(o)

def unknown(source, names):
    "Globals that `source` reads and neither `names` nor Python has"
    read = {i.argval for c in codes(compile(source, '?', 'exec')) for i in dis.get_instructions(c) if i.opname=='LOAD_GLOBAL'}
    return read - names.keys() - vars(builtins).keys()

@pytest.mark.parametrize('name', [m.name for m in pkgutil.iter_modules(cifar_fast.__path__) if m.name!='_modidx'])
def test_every_name_is_there(name):
    m = importlib.import_module(f'cifar_fast.{name}')
    assert unknown(Path(m.__file__).read_text(encoding='utf-8'), vars(m))==set()

def test_a_wrong_name_is_found():
    source = 'def f(x):\n    if x: return [missing_here for _ in range(3)]\n    return given\n'
    assert unknown(source, dict(given=1))=={'missing_here'}
