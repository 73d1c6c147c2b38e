"`bench` runs, leaves its files, and survives a contender that does not; its figures are not looked at"
import dataclasses,json
import pytest
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

def test_killed_contender():
    spec = dict(recipe=dataclasses.asdict(tiny), n=64, n_test=32, device='cpu', precision='fp32', workers=0)
    with b._Child('loop', spec) as dead:
        dead.proc.kill()
        assert 'signal 9' in dead.answer()['error']
        assert 'signal 9' in dead.ask('turn', warm=1, steps=1, epochs=1)['error']

def test_bad_input(tmp_path):
    (tmp_path/'mine').touch()
    with pytest.raises(CifarFastError, match='is not empty'): b.bench(tmp_path, tiny)
    for match,kwargs in {"did you mean 'assignment'": dict(recipe='asignment'), "did you mean 'device'": dict(contenders=['devise']),
                         'batch size is 100000': dict(bs=100_000), 'device': dict(device='abacus')}.items():
        with pytest.raises(CifarFastError, match=match): b.bench(tmp_path/'new', **kwargs)
    assert not (tmp_path/'new').exists()
