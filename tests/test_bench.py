"`bench` runs, leaves its files, and survives a contender that does not; its figures are not looked at"
import json,os,signal,subprocess,sys,time
from functools import partialmethod
from pathlib import Path
import pytest,torch
from cifar_fast import bench as b
from cifar_fast.all import CifarFastError,get_recipe
from PIL import Image

tiny = get_recipe('assignment').replace(model_args=dict(width=4), bs=16)

@pytest.fixture(scope='module')
def ran(tmp_path_factory):
    out = tmp_path_factory.mktemp('bench')/'new'
    return out,b.bench(out, tiny, device='cpu', quick=True, contenders=['device','graph','loop','resident'])

def test_files(ran):
    out,res = ran
    assert sorted(o.name for o in out.iterdir()) == ['bench.json','bench.md','bench.png']
    assert json.loads((out/'bench.json').read_text()) == json.loads(json.dumps(res))
    Image.open(out/'bench.png').verify()
    md = (out/'bench.md').read_text()
    assert all(o in md for o in ('device pipeline', 'roofline', 'quick: ', 'torch ', f"{res['hardware']['cores']} cores"))

def test_figures(ran):
    res = ran[1]
    assert [len(c['rates']) for c in res['contenders']] == [3,0,3,3]
    assert all(c['error'] or min(c['rates'])>0 and c['memory']>50e6 for c in res['contenders'])
    e,rates = res['epoch'],sorted(res['contenders'][0]['rates'])
    assert min(e.values())>0 and e['data']+e['step']==pytest.approx(50_000/rates[1]), e

def test_failing_contender(ran):
    "CUDA graphs cannot be had on a CPU: a row that says so"
    out,res = ran
    assert 'CUDA' in res['contenders'][1]['error']
    assert 'failed: ' + res['contenders'][1]['error'] in (out/'bench.md').read_text()

spec = dict(recipe=tiny, n=64, n_test=32, device=torch.device('cpu'), precision='fp32', workers=0)

def test_killed_contender():
    dead = b._Child('loop', spec)
    with dead.pool:
        os.kill(dead.pid.result(), signal.SIGKILL)
        for _ in range(2):
            dead.error = None
            assert dead.ask('turn', warm=1, steps=1, epochs=1) is None and 'process has ended' in dead.error

def alive(pid):
    "Zombies, which wait for somebody to ask how they ended, are not"
    status = Path(f'/proc/{pid}/stat')
    return status.exists() and status.read_text().rpartition(')')[2].split()[0]!='Z'

@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='looks into /proc')
def test_orphans_end(tmp_path):
    "Nobody goes on computing for a parent that was killed"
    script = tmp_path/'parent.py'
    script.write_text("""import sys,time
from cifar_fast import bench as b
if __name__=='__main__':
    import torch
    child = b._Child('loop', dict(device=torch.device('cpu')))
    print(child.pid.result(), flush=True)
    child.ask(time.sleep, 600)
""")
    parent = subprocess.Popen([sys.executable,script], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.kill()
    parent.wait()
    start = time.monotonic()
    while alive(child) and time.monotonic()-start<30: time.sleep(.1)
    assert not alive(child)

def test_compiled_contender(monkeypatch):
    "Compiling asks for a batch of a loader that is made anew from the timed one"
    monkeypatch.setattr(torch.nn.Module, 'compile', partialmethod(torch.nn.Module.compile, backend='aot_eager'))
    learner = b._contender('compile', tiny, b.noise_images(64, 32, 32), torch.device('cpu'), 'fp32', 0)
    assert learner.turn(warm=1, steps=2, epochs=1)>0

def test_bad_input(tmp_path):
    (tmp_path/'mine').touch()
    with pytest.raises(CifarFastError, match='is not empty'): b.bench(tmp_path, tiny)
    for match,kwargs in {"did you mean 'assignment'": dict(recipe='asignment'), "did you mean 'device'": dict(contenders=['devise']),
                         'batch size is 100000': dict(bs=100_000), 'device': dict(device='abacus')}.items():
        with pytest.raises(CifarFastError, match=match): b.bench(tmp_path/'new', **kwargs)
    assert not (tmp_path/'new').exists()
