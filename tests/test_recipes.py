"Every recipe from end to end on a handful of images, every value saved and restored, several seeds"
import csv,dataclasses,json,os
import pytest,torch
from safetensors.torch import load_file
from cifar_fast.core import CifarFastError
from cifar_fast.models import get_model
from cifar_fast.recipes import Recipe,get_recipe,recipes
from cifar_fast.runs import Checkpoint,Run
from cifar_fast.train import resume_run,run_learner,run_model,run_recipe,train_recipe,train_seeds,train_sweep

def rows(path):
    with open(path) as f: return [{k: float(v) for k,v in r.items()} for r in csv.DictReader(f)]

@pytest.mark.parametrize('pipeline', ['device','item'])
@pytest.mark.parametrize('name', recipes)
def test_trains_as_it_says(folder, tmp_path, name, pipeline):
    "One epoch of three steps, with the recipe's own net, narrower: what was recorded is what the recipe promises"
    r = get_recipe(name)
    if r.model in ('resnet9','speed_net'): r = r.replace(model_args=dict(r.model_args, width=8))
    r = r.replace(data=str(folder), epochs=1, bs=24, size=16).sized(16)
    results = train_recipe(r, tmp_path/'run', precision='fp32', quiet=True, pipeline=pipeline)
    run,f = Run(tmp_path/'run'),r.scheds()
    assert run_recipe(run)==r and 0<=results['test_accuracy']<=1 and results['epochs']==1
    steps = rows(run/'steps.csv')
    assert [s['lr'] for s in steps]==pytest.approx([f['lr'](i/3) for i in range(3)])
    assert [s['mom'] for s in steps]==pytest.approx([f['mom'](i/3) if 'mom' in f else r.mom for i in range(3)])
    shapes = {k: v.shape for k,v in get_model(r.model, 3, **r.model_args).state_dict().items()}
    assert {k: v.shape for k,v in load_file(run/'model.safetensors').items()}==shapes

def test_l1_shrinks_weights(folder, tmp_path):
    "The L1 penalty of a recipe reaches the weights, and stays out of the losses that are recorded"
    base = get_recipe('s004').replace(data=str(folder), epochs=2, bs=24, lr=.01, policy='none', model_args=dict(width=4))
    total,first = {},{}
    for l1 in (0.,.05):
        train_recipe(base.replace(l1=l1), tmp_path/str(l1), precision='fp32', quiet=True)
        total[l1] = sum(p.abs().sum().item() for p in run_model(Run(tmp_path/str(l1))).parameters())
        first[l1] = rows(tmp_path/str(l1)/'steps.csv')[0]['loss']
    assert total[.05]<total[0.] and first[.05]==first[0.]

changed = dict(name='mine', about='another', data='shapes10', size=24, test=.3, labels='labels.csv', skip_broken=True,
               balance=True, policy='none',
               model='dilated_net', pretrained=True, start='runs/first', model_args=dict(dropout=.1), epochs=7, bs=3,
               schedule='step_decay', lr=.3, lr_min=.01, lr_end=.02,
               peak_epoch=1.5, step_epochs=2, gamma=.5, mom=.8,
               moms=(.9,.8,.7), nesterov=False, wd=1e-3, l1=1e-6, label_smoothing=.2, mixup=.4, cutmix=1.,
               opt='muon', opt_args=dict(bias_lr=2.5),
               alternating_flip=True, progressive_resizing=((0,24),(.5,32)), ema=.9, tta=True, notes=('one','two'))

needs = dict(opt_args=dict(opt='muon'), pretrained=dict(model='torchvision/resnet18'))

@pytest.mark.parametrize('field', [f.name for f in dataclasses.fields(Recipe)])
def test_every_value_can_be_changed_and_is_saved(tmp_path, field):
    r = get_recipe('assignment').replace(**{field: changed[field]}, **needs.get(field, {}))
    run = Run.create(tmp_path/'run', dict(recipe=dataclasses.asdict(r)))
    assert getattr(r, field)==changed[field]!=getattr(get_recipe('assignment'), field)
    assert run_recipe(Run(run.path))==r

def test_mean_of_few_steps(tiny, tmp_path):
    "Of three steps the mean is the net after them, and not what it was before"
    kw = dict(precision='fp32', quiet=True)
    for ema in (0.,.9): train_recipe(tiny.replace(epochs=1, ema=ema), tmp_path/str(ema), **kw)
    a,b = (load_file(tmp_path/str(o)/'model.safetensors') for o in (0.,.9))
    assert all(torch.equal(a[k], b[k]) for k in a)

def test_arguments_of_a_net_come_back_as_they_were():
    "From the command line as a tuple, from config.json as a list: one recipe, so that several seeds go on; what JSON lacks is refused"
    r = get_recipe('assignment').replace(model='torchvision/resnet50', model_args='replace_stride_with_dilation=(False,False,True)')
    assert Recipe.of(**json.loads(json.dumps(dataclasses.asdict(r))))==r
    for bad in ('zero_init_residual={1,2}','width_per_group=1e999','groups=1j',"groups=b'1'"):
        with pytest.raises(CifarFastError, match='model_args is') as e: r.replace(model_args=bad)
        assert '\n' not in str(e.value)

def test_resumes_with_all_tricks(folder, tmp_path, monkeypatch):
    "Muon's momentum, the running mean, the side an image is seen from and the size it has: a resumed run ends where a whole one does"
    r = get_recipe('speedrun').replace(data=str(folder), epochs=4, bs=24, size=16, progressive_resizing=((0,12),(.6,16)), ema=.8,
                                       model_args=dict(width=8))
    whole = train_recipe(r, tmp_path/'whole', precision='fp32', quiet=True)
    write = Checkpoint.after_epoch
    def stop(self):
        write(self)
        if self.epoch==1: raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(Checkpoint, 'after_epoch', stop)
        with pytest.raises(KeyboardInterrupt): train_recipe(r, tmp_path/'parts', precision='fp32', quiet=True)
    parts = resume_run(tmp_path/'parts', quiet=True)
    a,b = (load_file(tmp_path/o/'model.safetensors') for o in ('whole','parts'))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert {k: v for k,v in whole.items() if 'second' not in k}=={k: v for k,v in parts.items() if 'second' not in k}

@pytest.mark.parametrize('name', recipes)
def test_more_epochs_keep_the_shape(name):
    "Three times the epochs: the same learning rate and momentum at the same part of the training"
    whole = get_recipe(name)
    f,g = (r.scheds() for r in (whole,whole.replace(epochs=3*whole.epochs)))
    if whole.schedule=='step_decay': assert whole.replace(epochs=3*whole.epochs).step_epochs==3*whole.step_epochs
    assert [g[k](i/40) for k in f for i in range(40)]==pytest.approx([f[k](i/40) for k in f for i in range(40)])

def test_ends_stay_ends():
    "Whatever the rounding: a peak in the last epoch, and a rate that does not move, with other epochs and other rates"
    r = Recipe('flat', epochs=7, peak_epoch=7., lr=.01, lr_min=.01, lr_end=.01)
    for n in range(1, 150):
        s = r.replace(epochs=n, lr=n/100)
        assert (s.peak_epoch,s.lr_min,s.lr_end)==(pytest.approx(n),n/100,n/100)

@pytest.mark.parametrize('change,kept', [(dict(mom=.8), dict(moms=())), (dict(model='dilated_net'), dict(model_args={})),
                                         (dict(lr=.02), dict(lr_min=.0008, lr_end=8e-8)), (dict(epochs=12), dict(peak_epoch=1.8)),
                                         (dict(epochs=12, peak_epoch=5.), dict(peak_epoch=5.))])
def test_what_moves_along(change, kept):
    r = get_recipe('s000').replace(**change)
    for k,v in kept.items(): assert getattr(r, k)==(pytest.approx(v) if isinstance(v, float) else v)

@pytest.fixture(scope='module')
def tiny(folder): return get_recipe('demo').replace(data=str(folder), epochs=2, bs=24, policy='flip_crop', model_args=dict(width=4))

def test_seeds(tiny, tmp_path):
    "Several seeds are the single runs; an interrupted one is resumed, a finished one is left alone"
    kw = dict(precision='fp32', quiet=True)
    res = train_seeds(tiny, tmp_path/'s', 2, **kw)
    assert [r['test_accuracy'] for r in res['runs']]==[train_recipe(tiny, tmp_path/f'{i}', seed=i, **kw)['test_accuracy'] for i in range(2)]
    a,b = (r['test_accuracy'] for r in res['runs'])
    assert res['mean']==pytest.approx((a+b)/2) and res['sd']==pytest.approx(abs(a-b)/2**.5)
    weights = (tmp_path/'s'/'seed1'/'model.safetensors').read_bytes()
    begun = (tmp_path/'s'/'seed0'/'config.json').stat().st_mtime_ns
    for f in ('results.json','model.safetensors'): (tmp_path/'s'/'seed1'/f).unlink()
    again = train_seeds(tiny, tmp_path/'s', 3, **kw)
    assert len(again['runs'])==3 and again['runs'][:2]==res['runs'] and (tmp_path/'s'/'seed1'/'model.safetensors').read_bytes()==weights
    assert (tmp_path/'s'/'seed0'/'config.json').stat().st_mtime_ns==begun

def test_seeds_refuse_what_is_not_theirs(tiny, tmp_path):
    train_recipe(tiny, tmp_path/'s'/'seed1', precision='fp32', quiet=True)
    with pytest.raises(CifarFastError, match='seed1 holds a run with another seed'):
        train_seeds(tiny, tmp_path/'s', 2, precision='fp32', quiet=True)
    assert not (tmp_path/'s'/'seed0').exists()  # before anything was trained
    with pytest.raises(CifarFastError, match='is a run itself'): train_seeds(tiny, tmp_path/'s'/'seed1', 2)
    with pytest.raises(CifarFastError, match='at least 2'): train_seeds(tiny, tmp_path/'t', 1)

def folders(path): return sorted(str(o.parent.relative_to(path)) for o in path.rglob('config.json'))

def test_sweep(tiny, tmp_path):
    "Every combination with every seed is a run of its own; the same call again, or one with more values, trains what is missing"
    kw = dict(precision='fp32', quiet=True, valid_pct=.25)
    out,grid = tmp_path/'s',dict(lr=[.01,'.1'], bs=[24])
    res = train_sweep(tiny, grid, out, 2, **kw)
    assert folders(out)==[f'lr={lr}/seed{i}' for lr in (.01,.1) for i in (0,1)]
    alone = [train_recipe(tiny.replace(lr=.1), tmp_path/f'{i}', seed=i, **kw)['valid_accuracy'] for i in (0,1)]
    assert res['lr=0.1']['valid_mean']==pytest.approx(sum(alone)/2) and res['lr=0.1']['n']==2
    means = [r['valid_mean'] for r in res.values()]
    assert means==sorted(means, reverse=True)
    weights = (out/'lr=0.1/seed1/model.safetensors').read_bytes()
    begun = {o: o.stat().st_mtime_ns for o in out.rglob('config.json')}
    for f in ('results.json','model.safetensors'): (out/'lr=0.1/seed1'/f).unlink()
    more = train_sweep(tiny, dict(grid, lr=[.01,.1,.02]), out, 2, **kw)
    assert {k: v for k,v in more.items() if k!='lr=0.02'}==res and len(folders(out))==6
    assert (out/'lr=0.1/seed1/model.safetensors').read_bytes()==weights
    assert {o: o.stat().st_mtime_ns for o in begun}==begun

def test_a_failing_run_is_named(tiny, tmp_path, capsys):
    "Of several seeds, and in a sweep"
    with pytest.raises(CifarFastError, match='^seed0: the loss became'): train_seeds(tiny.replace(lr=1e30), tmp_path/'s', 2, quiet=True)
    res = train_sweep(tiny, dict(lr=[1e30,.1]), tmp_path/'w', quiet=True)
    assert res['lr=1e+30']['failed'].startswith('seed0: the loss became')

def test_sweep_refuses_before_it_trains(tiny, tmp_path):
    "The last combination is wrong, too large for the data, or has a folder that holds something else: the first is not begun"
    kw = dict(precision='fp32', quiet=True)
    for grid,why in ((dict(lr=[.1,-1]), 'learning rate'), (dict(bs=[24,500]), 'batch size 500'), (dict(lr=[.1,.10]), 'twice'),
                     (dict(lr=[]), 'a list'), (dict(seed=[0,1]), "'seed'"), (dict(policy=['none','crpo']), "'crop'"),
                     (dict(model_args=['width=4',dict(width=4)]), 'twice')):
        with pytest.raises(CifarFastError, match=why): train_sweep(tiny, grid, tmp_path/'s', **kw)
        assert not (tmp_path/'s').exists()
    train_recipe(tiny, tmp_path/'s/lr=0.2/seed0', precision='fp32', quiet=True)
    with pytest.raises(CifarFastError, match='lr=0.2/seed0 holds a run with another recipe'):
        train_sweep(tiny, dict(lr=[.1,.2], bs=[12]), tmp_path/'s', **kw)
    assert folders(tmp_path/'s')==['lr=0.2/seed0']
    with pytest.raises(CifarFastError, match='is a run itself'): train_sweep(tiny, dict(lr=[.1,.2]), tmp_path/'s/lr=0.2/seed0', **kw)

def test_sweep_goes_on_after_a_failure(tiny, tmp_path, capsys):
    "A learning rate that breaks the training does not end the sweep; by the test set nothing is sorted, and that is said in a line"
    res = train_sweep(tiny, dict(lr=[1e30,.01,.1]), tmp_path/'s', precision='fp32', quiet=True)
    assert [*res]==['lr=0.01','lr=0.1','lr=1e+30'] and 'nan' in res['lr=1e+30']['failed']
    out = capsys.readouterr().out
    assert out.count('\n')==1 and 'would choose by the test set' in out
    with pytest.raises(CifarFastError, match='every combination failed'):
        train_sweep(tiny, dict(lr=[1e30,1e29]), tmp_path/'t', quiet=True)

@pytest.mark.parametrize('name', recipes)
def test_recipe_of_a_run(tmp_path, name):
    "A run's folder, or its config.json, is its recipe"
    run = Run.create(tmp_path/'run', dict(recipe=dataclasses.asdict(get_recipe(name))))
    assert get_recipe(run.path)==get_recipe(run/'config.json')==get_recipe(str(run.path))==get_recipe(name)

def test_recipe_in_a_file(tmp_path):
    path = tmp_path/'mine.toml'
    path.write_text("""
        model = 'speed_net'
        opt = 'muon'
        lr = 0.3
        progressive_resizing = [[0, 24], [0.5, 32]]
        moms = [0.9, 0.8, 0.9]
        notes = ['one', 'two']
        [model_args]
        width = 16
        """)
    assert get_recipe(str(path))==Recipe('mine', model='speed_net', opt='muon', lr=.3, progressive_resizing=((0,24),(.5,32)),
                                         moms=(.9,.8,.9), notes=('one','two'), model_args=dict(width=16))

@pytest.mark.parametrize('text,why', [
    ('gama = 0.1', "unknown value of a recipe 'gama': did you mean 'gamma'"), ('lr = ', 'no TOML file'),
    ('lr = "high"', "lr is 'high'"), ('lr = nan', 'lr is nan'), ('model = "resnt9"', "did you mean 'resnet9'"), ('cls = 1', 'cls'),
    ('[recipe]\nlr = 0.1', "'recipe'"), ('epochs = 3\npeak_epoch = 5', 'peak_epoch'), ('a = ' + '['*9999, 'no TOML file'),
    ('\udcff', 'no TOML file'), ('lr = true', 'lr is True: choose a value that is neither'), ('tta = 1', 'tta is 1: choose true or false'),
    ('moms = [0.9, false, 0.9]', 'moms is'), ('moms = "(.9, False, .9)"', 'moms is'), ('progressive_resizing = [[0, true]]', 'neither'),
    ('notes = [1979-05-27]', 'notes.0 is'), ('notes = [nan]', 'notes.0 is nan'),
    ('start = ""', "start is ''"), ('labels = ""', "labels is ''"),
    ('epochs = 0x'+'f'*5000, 'epochs is longer than'), ('[model_args]\nwidth = 0x'+'f'*5000, 'longer than Python writes numbers'),
    ("""model_args = 'width=open("here","w").fileno()'""", 'model_args is')])
def test_bad_recipe_file(tmp_path, monkeypatch, text, why):
    "One line with the file's name; nothing in it is executed"
    monkeypatch.chdir(tmp_path)
    (tmp_path/'mine.toml').write_bytes(text.encode(errors='surrogateescape'))
    with pytest.raises(CifarFastError) as e: get_recipe('mine.toml')
    assert e.value.msg.startswith('mine.toml') and why in e.value.msg and '\n' not in e.value.msg
    assert [o.name for o in tmp_path.iterdir()]==['mine.toml']

def test_no_recipe_file(tmp_path):
    for name,why in ((tmp_path/'none.toml','cannot read'), (tmp_path,'config.json'), ('demmo',"did you mean 'demo'")):
        with pytest.raises(CifarFastError, match=why): get_recipe(name)
    if hasattr(os, 'mkfifo'):
        os.mkfifo(tmp_path/'pipe.toml')
        with pytest.raises(CifarFastError, match='not a plain file'): get_recipe(tmp_path/'pipe.toml')
    (tmp_path/'config.json').write_text('{"recipe": [1]}')
    with pytest.raises(CifarFastError, match='names and values'): get_recipe(tmp_path)

def test_run_learner(tiny, tmp_path):
    "The learner of a finished run scores what its results say"
    res = train_recipe(tiny, tmp_path/'run', precision='fp32', quiet=True)
    learn = run_learner(Run(tmp_path/'run'))
    with learn.no_bar(), learn.no_logging(): loss,acc = learn.validate()
    assert acc==pytest.approx(res['test_accuracy']) and loss==pytest.approx(res['test_loss'], rel=1e-4)

def test_run_of_another_version(tiny, tmp_path):
    "A value that this version does not know is refused, when a run is read and when it is resumed"
    r = dataclasses.asdict(tiny)
    run = Run.create(tmp_path/'run', dict(recipe=dict(r, teacher=.9)))
    for f in (run_recipe,run_model,run_learner): pytest.raises(CifarFastError, f, run).match("another version of cifar_fast: .*'teacher'")
    pytest.raises(CifarFastError, resume_run, run.path).match("'teacher'")
    older = Run.create(tmp_path/'older', dict(recipe={k: v for k,v in r.items() if k not in ('moms','l1','notes')}))
    assert run_recipe(older)==tiny and json.loads((older/'config.json').read_text())['recipe'].keys()<r.keys()

def test_compare_of_a_sweep_with_a_failure(tiny, tmp_path, capsys, monkeypatch):
    "What is finished is compared; what is not is named"
    from cifar_fast.cli import main
    train_sweep(tiny, dict(lr=[.05,.1]), tmp_path/'s', quiet=True)
    (tmp_path/'s/lr=0.1/seed0/results.json').unlink()
    monkeypatch.setattr('sys.argv', ['cifar_fast_compare',str(tmp_path/'s'),'--out',str(tmp_path/'c.html')])
    assert main()==0 and f"left out, as not finished: {tmp_path/'s/lr=0.1/seed0'}" in capsys.readouterr().out
    assert (tmp_path/'c.html').exists()
