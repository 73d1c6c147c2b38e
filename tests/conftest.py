import json,os,signal,subprocess,sys
from pathlib import Path
import no_bf16,numpy as np,pytest  # noqa: F401, no_bf16 before any room is imported
from PIL import Image

os.environ.setdefault('MPLBACKEND', 'Agg')
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it starts with & ignore Ctrl-C
os.environ['TORCH_CPP_LOG_LEVEL'] = 'ERROR'  # as `cifar_fast.main` has it where several processes train
os.environ['OMP_NUM_THREADS'] = '1'  # nets this small are no faster with more, and much slower where others compute
from cifar_fast.train import Checkpoint,Learner,train_recipe  # here, since torch looks at the environment when it is imported

@pytest.fixture(scope='session', autouse=True)
def own_cache(tmp_path_factory):
    "Keep the tests' data out of the user's cache"
    os.environ['CIFAR_FAST_CACHE'] = str(tmp_path_factory.mktemp('cache'))

@pytest.fixture(scope='module', autouse=True)
def no_figures(request):
    "A run's figures take longer than trainings this short: drawn where a module says `draws = True`, or by other processes"
    with pytest.MonkeyPatch.context() as m:
        if not getattr(request.module, 'draws', False): m.setattr(Learner, 'save_figures', lambda self, run: None)
        yield

def draw_folder(path, classes=('ant','bee','cat'), n=24, n_test=8, size=16, seed=0):
    "A folder of small images, each class in a colour of its own with noise"
    rng,colors = np.random.default_rng(seed),np.eye(3)*150+50
    for part,k in (('train',n),('test',n_test)):
        for c,color in zip(classes, colors):
            d = Path(path)/part/c
            d.mkdir(parents=True)
            for i in range(k): Image.fromarray(np.clip(color+rng.normal(0, 40, (size,size,3)), 0, 255).astype('uint8')).save(d/f'{i}.png')
    return Path(path)

def interrupted(recipe, out, monkeypatch, after=0, **kwargs):
    "A run that was stopped when so many epochs after the first were written"
    write = Checkpoint.after_epoch
    def stop(self):
        write(self)
        if self.epoch==after: raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(Checkpoint, 'after_epoch', stop)
        with pytest.raises(KeyboardInterrupt): train_recipe(recipe, out, precision='fp32', quiet=True, **kwargs)
    return out

@pytest.fixture(scope='session')
def folder(tmp_path_factory): return draw_folder(tmp_path_factory.mktemp('images')/'colors')

@pytest.fixture(scope='module')
def browser():
    pytest.importorskip('playwright', reason='the browser is driven by playwright')
    from browser import Browser,chromium
    if not chromium: pytest.skip('no Chromium here: apt-get install chromium')
    with Browser() as b: yield b

@pytest.fixture(scope='session')
def run_script():
    "Run scripts as a user does, several in one process: (exit code, stdout, stderr) of each argument list; see drive.py"
    def _run(*argvs, **env):
        p = subprocess.run([sys.executable, Path(__file__).parent/'drive.py'], input=json.dumps([list(map(str, a)) for a in argvs]),
                           text=True, capture_output=True, env=dict(os.environ, **env))
        assert p.returncode==0, p.stderr
        return [tuple(o) for o in json.loads(p.stdout)]
    return _run
