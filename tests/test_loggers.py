"What TensorBoard, wandb and trackio are told of a run: the numbers of its tables, each once, and the figures of its report"
import importlib.util,os,sys
from functools import partial
from types import ModuleType
import numpy as np,pytest
from cifar_fast.all import *
from cifar_fast.cli import cifar_fast_train

def tables(run):
    "What the folder has, as tags with pairs of step and value"
    res = {}
    def add(kind, rows, ends):
        for n,r in zip(ends, rows):
            for k,v in r.items(): v is None or res.setdefault(f'{kind}/{k}', []).append((n,v))
    steps,epochs = run.read_table('steps.csv'),run.read_table('history.csv')
    add('step', steps, range(1, len(steps)+1))
    add('epoch', epochs, [len(steps)//len(epochs)*i for i in range(1, len(epochs)+1)])
    return res

def read_back(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    acc = EventAccumulator(str(run/'tensorboard'), size_guidance=dict(scalars=0, images=0))
    acc.Reload()
    return {k: [(o.step,o.value) for o in acc.Scalars(k)] for k in acc.Tags()['scalars']},acc.Tags()['images']

def same(told, run):
    want = tables(run)
    assert want.keys()=={k for k in told if not k.startswith('result/')}
    for k,v in want.items(): np.testing.assert_allclose(sorted(told[k]), v, rtol=1e-6, err_msg=k)

@pytest.fixture
def tiny(folder): return dict(data=str(folder), model_args=dict(width=2), bs=16, epochs=3, size=32)

def test_tensorboard(tiny, tmp_path, monkeypatch):
    "Interrupted after an epoch and resumed: every number of the tables once, the results, and the figures of the page"
    pytest.importorskip('tensorboard', reason="pip install 'cifar_fast[tensorboard]'")
    out,real = tmp_path/'run',TrimMemory.after_epoch
    def stop(self):
        if self.epoch==1: raise KeyboardInterrupt
    monkeypatch.setattr(TrimMemory, 'after_epoch', stop)
    with pytest.raises(KeyboardInterrupt): cifar_fast_train(out=str(out), quiet=True, log='tensorboard', **tiny)
    monkeypatch.setattr(TrimMemory, 'after_epoch', real)
    cifar_fast_train(resume=str(out), quiet=True)
    told,images = read_back(run := Run(out))
    same(told, run)
    assert told['result/test_accuracy']==[(len(run.read_table('steps.csv'))+1,pytest.approx(run_results(run)['test_accuracy']))]
    assert len(images)==len(page_figures(run/'report.html'))>10 and any('Confusion matrix' in o for o in images)

def test_same_weights(tiny, tmp_path):
    "A run that is told is the run that is not"
    pytest.importorskip('tensorboard', reason="pip install 'cifar_fast[tensorboard]'")
    recipe = get_recipe('fast').replace(**tiny, progressive_resizing=())
    for k in (None,'tensorboard'): train_recipe(recipe, tmp_path/str(k), quiet=True, log=k)
    a,b = (run_model(Run(tmp_path/str(k))).state_dict() for k in (None,'tensorboard'))
    assert all((a[k]==b[k]).all() for k in a)

@pytest.mark.parametrize('name', ['wandb','trackio'])
def test_trackers(tiny, tmp_path, monkeypatch, name):
    "In their own words, spoken to a stand-in"
    told,images,began,mod = {},[],[],ModuleType(name)
    def log(values, step):
        for k,v in values.items(): images.append(k) if isinstance(v, tuple) else told.setdefault(k, []).append((step,v))
    mod.init,mod.log,mod.finish,mod.Image = lambda **kw: began.append(kw),log,lambda: began.append('end'),lambda img: (img.size,)
    monkeypatch.setitem(sys.modules, name, mod)
    mod.__spec__ = importlib.util.spec_from_loader(name, None)
    cifar_fast_train(out=str(tmp_path/'run'), quiet=True, log=name, **tiny)
    same(told, run := Run(tmp_path/'run'))
    assert began[1::2]==['end','end'] and began[0]==began[2] and began[0]['config']==run.config
    assert began[0]['name'].split()==[f'{tmp_path.name}/run',run.config['log_id']]
    assert images==[k for k,_ in page_figures(run/'report.html')]
    began.clear()
    train_seeds(get_recipe('assignment').replace(**tiny), tmp_path/'seeds', 2, quiet=True, log=name)
    assert len({o['name'] for o in began[::2]})==2 and (name!='wandb' or len({o['id'] for o in began[::2]})==2)

@pytest.mark.parametrize('name', ['wandb','trackio'])
def test_real_trackers(tiny, tmp_path, monkeypatch, name):
    "The packages themselves, without a network, where they are installed"
    pytest.importorskip(name, reason=f"pip install 'cifar_fast[{name}]'")
    for k,v in dict(WANDB_MODE='offline', WANDB_SILENT='true', WANDB_CACHE_DIR=tmp_path, WANDB_CONFIG_DIR=tmp_path, WANDB_DATA_DIR=tmp_path,
                    TRACKIO_DIR=tmp_path/'trackio', HF_HUB_OFFLINE='1').items(): monkeypatch.setenv(k, str(v))
    for k in [k for k in sys.modules if k.split('.')[0]==name]: monkeypatch.delitem(sys.modules, k)  # it looks at these when it is imported
    train_recipe(get_recipe('assignment').replace(**tiny), tmp_path/'run', quiet=True, log=name)
    log_results(Run(tmp_path/'run'))
    found = [*(tmp_path/'run').glob('wandb/offline-run-*/*.wandb'), *tmp_path.glob('trackio/**/*.db')]
    assert found and all(o.stat().st_size for o in found)

def test_refused(tiny, tmp_path, monkeypatch):
    "Before anything is written"
    recipe = get_recipe('assignment').replace(**tiny)
    monkeypatch.setitem(sys.modules, 'wandb', None)
    for name,why in dict(tensorbord="did you mean 'tensorboard'", wandb=r"pip install 'cifar_fast\[wandb\]'").items():
        for f in (train_recipe,partial(train_seeds, n=2)):
            with pytest.raises(CifarFastError, match=why): f(recipe, tmp_path/'out', log=name)
    assert not os.listdir(tmp_path)

def test_said_in_a_line(run_script):
    (code,_,err), = run_script(['--log','tensorbord'])
    assert code==2 and len(err.splitlines())==1 and "did you mean 'tensorboard'" in err

def test_what_cannot_begin(tiny, tmp_path, monkeypatch):
    "A logger that fails is told in a line, and leaves no run behind"
    mod = ModuleType('wandb')
    def init(**kw): raise RuntimeError('api_key not configured\nmore')
    mod.init,mod.__spec__ = init,importlib.util.spec_from_loader('wandb', None)
    monkeypatch.setitem(sys.modules, 'wandb', mod)
    recipe = get_recipe('assignment').replace(**tiny)
    with pytest.raises(CifarFastError, match='api_key not configured'): train_recipe(recipe, tmp_path/'run', log='wandb')
    assert not (tmp_path/'run').exists()

def test_a_sweep_with_a_failure_goes_on(tiny, tmp_path):
    "What a logger had been told of a run that failed at once does not keep the same call from going on"
    pytest.importorskip('tensorboard', reason="pip install 'cifar_fast[tensorboard]'")
    r = get_recipe('assignment').replace(**dict(tiny, epochs=1))
    a,b = (train_sweep(r, dict(lr=[.01,1e30]), tmp_path/'s', quiet=True, log='tensorboard') for _ in range(2))
    assert a==b and 'nan' in a['lr=1e+30']['failed'] and [o.name for o in (tmp_path/'s').iterdir()]==['lr=0.01']
