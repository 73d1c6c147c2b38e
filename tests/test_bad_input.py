"What a person can mend gets one line that says how, and exit code 2; nothing that was there is touched"
import errno,json,math,shlex,shutil,sys
from pathlib import Path
import pytest,torch
from fastai.basics import Learner
from cifar_fast import __version__,train
from cifar_fast.cli import main
from cifar_fast.core import CifarFastError
from cifar_fast.recipes import get_recipe
from cifar_fast.train import resume_run,train_recipe

@pytest.fixture(scope='module')
def answers(folder, run_script, tmp_path_factory):
    "Every bad call in one process: name -> (exit code, stdout, stderr)"
    d = tmp_path_factory.mktemp('bad')
    (d/'kept').mkdir()
    (d/'kept'/'thesis.txt').write_text('three years')
    (d/'empty').mkdir()
    (d/'none').mkdir()
    (d/'none'/'notes.txt').write_text('')
    (d/'other').mkdir()
    (d/'other'/'config.json').write_text('{}')
    (d/'damaged').mkdir()
    (d/'damaged'/'config.json').write_text('{"recipe": {')
    few = ['--data',folder,'--policy','none','--quiet','--no_report']
    base = [*few,'--epochs',1,'--bs',16,'--model_args','width=4','--out']
    calls = dict(
        recipe=['--recipe','assignmet'], literal=[*few,'--moms','(.9if 1else 2)'],
        talks=[*few,'--model','torchvision/googlenet','--bs',16],
        model=['--model','resnet8'], policy=['--policy','assignmnt'],
        precision=[*base,d/'p','--precision','bf61'],
        no_folder=['--data',d/'nowhere'], empty=['--data',d/'empty'], no_images=['--data',d/'none'],
        bs=[*few,'--out',d/'bs','--bs',500], bs_zero=['--bs',0], epochs=['--epochs',0], peak=['--epochs',3,'--peak_epoch',5],
        lr_negative=['--lr',-.1], lr_zero=['--lr',0],
        lr_nan=['--lr','nan'], smoothing=[*base,d/'s','--label_smoothing',2], valid=[*base,d/'v','--valid_pct',1.5],
        model_args=['--model_args','width 4'],
        model_arg=[*few,'--model_args','wide=4'], kept=[*base,d/'kept'], other=[*base,d/'other'], file=[*base,d/'kept'/'thesis.txt'],
        resume_none=['--resume',d/'nowhere'], resume_empty=['--resume',d/'empty'], resume_damaged=['--resume',d/'damaged'],
        resume_other=['--resume',d/'other'], resume_lr=['--resume',d/'other','--lr',.1],
        nan=[*few,'--out',d/'nan','--lr',1e30,'--epochs',3,'--bs',16], device=[*base,d/'d','--device','gpu'],
        no_cuda=[*base,d/'c','--device','cuda:99'],
        graph=[*base,d/'g','--graph','--device','cpu'],
        pipeline=[*base,d/'i','--pipeline','itme'], workers=[*base,d/'w','--num_workers',2])
    return d,dict(zip(calls, run_script(*calls.values())))

@pytest.mark.parametrize('name,message', dict(
    recipe="did you mean 'assignment'", literal='moms is',
    talks='gives a GoogLeNetOutputs',
    model="or 'resnet9'", policy="did you mean 'assignment'?", precision="did you mean 'bf16'?",
    no_folder='nowhere', empty='empty', no_images='none', bs='72', bs_zero='bs is', epochs='epochs is', peak='peak',
    lr_negative='learning rate', lr_zero='learning rate', lr_nan='lr is nan', smoothing='label_smoothing is', valid='1.5',
    model_args='a valid dictionary', model_arg='wide', kept='not empty', other='another run', file='is a file',
    resume_none='nowhere', resume_empty='config.json', resume_damaged='config.json is damaged',
    resume_other='another version', resume_lr='leave out what sets its lr',
    nan='learning rate was', device="no device 'gpu' here: choose from cpu", no_cuda="no device 'cuda:99' here", graph='leave out --graph',
    pipeline="did you mean 'item'", workers="pipeline='item'").items())
def test_one_line(answers, name, message):
    code,out,err = answers[1][name]
    assert code==2, (out,err)
    assert err.startswith('cifar_fast_train: ') and err.count('\n')==1 and message in err, err

def test_nothing_is_lost(answers):
    assert (answers[0]/'kept'/'thesis.txt').read_text()=='three years'
    assert (answers[0]/'other'/'config.json').read_text()=='{}'

def test_nan_names_step_and_lr(answers):
    err = answers[1]['nan'][2]
    assert 'at step ' in err and '(epoch ' in err

@pytest.fixture
def begun(folder, tmp_path):
    "A run with a checkpoint and no results"
    r = get_recipe('demo').replace(data=str(folder), epochs=2, bs=16, policy='none', model_args=dict(width=4))
    train_recipe(r, tmp_path/'run', quiet=True)
    (tmp_path/'run'/'results.json').unlink()
    return tmp_path/'run'

def test_checkpoint_of_another_model(begun):
    c = json.loads((begun/'config.json').read_text())
    c['recipe']['model_args'] = dict(width=8)
    (begun/'config.json').write_text(json.dumps(c))
    with pytest.raises(CifarFastError, match='another model'): resume_run(begun, quiet=True)

def test_damaged_checkpoint(begun):
    f = begun/'checkpoint.pt'
    f.write_bytes(f.read_bytes()[:1000])
    with pytest.raises(CifarFastError, match='damaged'): resume_run(begun, quiet=True)

def test_checkpoint_that_runs_code(begun, tmp_path):
    "A checkpoint is opened without building objects"
    class Evil:
        def __reduce__(self): return (open, (str(tmp_path/'ran'),'w'))
    torch.save(dict(model=Evil()), begun/'checkpoint.pt')
    with pytest.raises(CifarFastError, match='damaged'): resume_run(begun, quiet=True)
    assert not (tmp_path/'ran').exists()

def test_changed_data(begun):
    c = json.loads((begun/'config.json').read_text())
    c['data']['fingerprint'] = 'of something else'
    (begun/'config.json').write_text(json.dumps(c))
    with pytest.raises(CifarFastError, match='is not what it was'): resume_run(begun, quiet=True)

def test_full_disk(begun, monkeypatch):
    "No space for a checkpoint: one line, and the last whole one is still there"
    c = torch.load(begun/'checkpoint.pt')
    c.update(epoch=1, epochs=c['epochs'][:1], steps=c['steps'][:4])
    torch.save(c, begun/'checkpoint.pt')
    before,write = (begun/'checkpoint.pt').read_bytes(),Path.write_bytes
    def full(path, data):
        write(path, bytes(data)[:100])
        if 'checkpoint.pt' in path.name: raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(Path, 'write_bytes', full)
    with pytest.raises(CifarFastError, match='checkpoint.pt: No space left on device'): resume_run(begun, quiet=True)
    assert (begun/'checkpoint.pt').read_bytes()==before and not list(begun.glob('.*'))

def test_full_disk_in_the_first_epoch(folder, tmp_path, monkeypatch):
    "The weights of the best epoch were written, the checkpoint was not: the folder is free again"
    r = get_recipe('demo').replace(data=str(folder), epochs=1, bs=16, policy='none', model_args=dict(width=4))
    with monkeypatch.context() as m:
        def full(self, *args): raise OSError(errno.ENOSPC, 'No space left on device')
        m.setattr(torch, 'save', full)
        with pytest.raises(OSError): train_recipe(r, tmp_path/'run', quiet=True, valid_pct=.25)
    assert not (tmp_path/'run').exists()

def test_it_did_not_begin(folder, tmp_path):
    "A training that fails in its first epoch does not block its folder, nor leave one"
    r = get_recipe('demo').replace(data=str(folder), epochs=1, bs=16, policy='none', model_args=dict(width=4), lr=1e30)
    for _ in range(2):
        with pytest.raises(CifarFastError, match='learning rate was'): train_recipe(r, tmp_path/'run', quiet=True)
    assert not (tmp_path/'run').exists()

@pytest.fixture
def call(monkeypatch, capsys):
    "Run a script in this process: (exit code, stderr)"
    def _call(*argv):
        monkeypatch.setattr(sys, 'argv', list(map(str, argv)))
        return main(),capsys.readouterr().err
    return _call

bad_values = """
lr nan | lr inf | lr -1 | lr 0 | lr high | lr '' | lr 9{400} | lr_min 2 | lr_end -1 | lr_end nan | epochs 0 | epochs -3 | epochs 2.5
epochs 1e3 | epochs 9{400} | epochs 9{5000} | peak_epoch -1 | peak_epoch 99 | peak_epoch nan | step_epochs 3 | gamma .5 | gamma nan
schedule cosine | moms .9 | moms (.9,.8) | moms (.9,.8,1) | moms ((.9,),.8,.9) | moms ({9000} | mom 1 | mom -.1 | nesterov perhaps
wd -1 | wd inf | l1 -1 | l1 nan | label_smoothing 1 | label_smoothing two | bs 0 | bs -1 | bs 1.5 | bs 9{400} | bs 500 | size 0
size 7 | size 10000 | size 9{400} | size large | policy flipcrop | model resnet8 | model_args 3 | model_args width
model_args width=0 | model_args width=4.5 | model_args width=9{400} | model_args width='4' | model_args width=4,width=8
model_args {1:2} | model_args {'width':4,'width':8} | model_args dropout=1 | model_args scale=0 | model_args scale=1e999
model_args fc_bias=2 | model_args conv_bias='inner' | model_args n_classes=3 | model_args [1,2] | opt adam | opt_args mom=.1
opt_args lr=1,wd=3 | opt_args bias_lr=2 | alternating_flip 2 | progressive_resizing 3 | progressive_resizing (0,24)
progressive_resizing ((0,-4),) | progressive_resizing ((.5,8),(0,16)) | progressive_resizing ((0,4),(.5,16))
progressive_resizing ((0,16),(.5,32))
mixup -1 | mixup inf | mixup 1e-50 | cutmix 1e-9 | cutmix nan | cutmix much | patience 0 | patience 2 | patience two
progressive_resizing ((0,24,3),) | ema 1 | ema -1 | tta maybe | seed -1 | seed 4294967296 | seed 9{400} | seed 1.5 | seeds 1
seeds -2 | seeds 9{400} | precision fp16 | pipeline gpu | num_workers -1 | num_workers 2 | num_workers 100000 | valid_pct 1
valid_pct -.1 | valid_pct nan | valid_pct .001 | device gpu | device cuda:99 | device '' | device meta | device 9{400}
moms (0x1{5000},.8,.9) | start '' | labels '' | out '' | model_args ''
recipe nothing | recipe '' | data x{5000} | out x{5000} | out /dev/null/run | resume x{5000} | resume '' | lerning_rate 3 | list yes"""
bad_values = [' '.join(o.split()) for line in bad_values.split('\n') for o in line.split('|') if o.strip()]

@pytest.mark.parametrize('bad', bad_values + ['lr .1 --lr .2', 'seed 1 --seeds 2', 'list --lr 3', 'graph --device cpu',
    'opt muon --opt_args momentum=.1', 'opt muon --nesterov False', 'opt muon --opt_args bias_lr=-1', 'schedule step_decay --lr_min .1',
    'schedule step_decay --gamma -1', 'model dilated_net --size 8', 'bs 1 --size 8', 'model resnet18 --model_args width=4',
    'tta true --size 1 --model resnet18 --model_args {}',
    'mom .5 --moms (.9,.8,.9)', 'lr_min .01 --peak_epoch 0 --lr_end 0', 'lr_end .01 --peak_epoch 1'])
def test_value(call, folder, tmp_path, monkeypatch, bad):
    "Whatever a value is: one line, exit code 2, and nothing is written"
    import re
    monkeypatch.chdir(tmp_path)
    words = shlex.split(re.sub(r'(.)\{(\d+)\}', lambda m: m[1]*int(m[2]), bad.replace("'4'", '"\'4\'"').replace("'inner'", '"\'inner\'"')
                               .replace("{'width':4,'width':8}", '"{\'width\':4,\'width\':8}"')))
    given = dict(data=folder, model_args='width=4', epochs=1, bs=16, policy='none', lr=.05, recipe='assignment')
    base = [w for k,v in given.items() if f'--{k}' not in ['--'+words[0],*words] and 'resume' not in words[0] and 'list' not in words[0]
            and not (k=='model_args' and words[0]=='model') for w in (f'--{k}',v)]
    code,err = call('cifar_fast_train', *base, '--quiet', '--no_report', '--'+words[0], *words[1:])
    assert code==2 and err.startswith('cifar_fast_train: ') and err.count('\n')==1, (code, err)
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('script,bad', [o.split(' ', 1) for o in (
    'lr_find --start 0', 'lr_find --start nan', 'lr_find --end .00001', 'lr_find --steps 3', 'lr_find --steps many',
    'lr_find --steps 9999999999', 'lr_find --epochs 5', 'lr_find --lr .3', 'lr_find --patience 2', 'lr_find --tta',
    'lr_find --seed -1', 'lr_find --size 7', 'bench --bs 0', 'bench --bs 99999', 'bench --device gpu',
    'bench --recipe x', 'bench --limit nan', 'bench --limit 0', 'bench --limit inf', 'bench --data x', 'bench --start x',
    'report nowhere', 'compare nowhere', 'explain nowhere x.png', 'export nowhere', 'report ', 'explain x', 'bench --contenders all')])
def test_value_of_others(call, folder, tmp_path, monkeypatch, script, bad):
    monkeypatch.chdir(tmp_path)
    base = ['--data',folder,'--bs',16,'--policy','none','--model_args','width=4','--quiet'] if script=='lr_find' else []
    code,err = call(f'cifar_fast_{script}', *base, *bad.split())
    assert code==2 and err.startswith(f'cifar_fast_{script}: ') and err.count('\n')==1, (code, err)
    assert not list(tmp_path.iterdir())

@pytest.fixture(scope='module')
def whole(folder, tmp_path_factory):
    "A finished run"
    r = get_recipe('demo').replace(data=str(folder), epochs=2, bs=16, policy='none', model_args=dict(width=4))
    train_recipe(r, out := tmp_path_factory.mktemp('whole')/'run', quiet=True)
    return out

def edited(name, **values): return lambda b: json.dumps({**json.loads(b), **values}).encode()
def without(key): return lambda b: json.dumps({k: v for k,v in json.loads(b).items() if k!=key}).encode()
def data(**values): return lambda b: json.dumps({**(c := json.loads(b)), 'data': {**c['data'], **values}}).encode()
def recipe(**values): return lambda b: json.dumps({**(c := json.loads(b)), 'recipe': {**c['recipe'], **values}}).encode()
def flipped(at): return lambda b: b[:int(at*len(b))] + bytes([b[int(at*len(b))]^64]) + b[int(at*len(b))+1:]
damage = [(f,o) for f in ('config.json','results.json') for o in (
    b'', b'{', b'[]', b'3', b'null', b'\xff\xfe', b'['*50_000, b'{"recipe": {}, "data": [], "test_accuracy": "1"}',
    lambda b: b[:len(b)//2])]
damage += [('config.json',o) for o in (
    edited('c', recipe=[]), edited('c', recipe={}), edited('c', recipe=dict(name='a', lr='x')), edited('c', data=3),
    edited('c', seed='one'), edited('c', seed=2**40), edited('c', num_workers=999), data(size=10**6), data(std=[0,1,1]),
    recipe(epochs='x'), recipe(epochs=None), edited('c', precision='fp64'), edited('c', compile=1), edited('c', valid_pct=2),
    without('recipe'), without('data'), without('seed'),
    without('pipeline'), data(classes='abc'), data(classes=[1,2,3]), data(classes=[]), data(mean=[1]),
    data(std=['a','b','c']), data(size=-1), data(train=None), data(name=[]), data(fingerprint=3))]
damage += [('results.json',o) for o in (edited('r', test_accuracy=None), edited('r', test_accuracy=7), edited('r', epochs=[2]),
    edited('r', train_seconds='x'), edited('r', test_loss={}), edited('r', cam_localization=3), edited('r', cam_localization=[{}]),
    edited('r', temperature='x'), edited('r', temperature=0), edited('r', ece=[1]), edited('r', ece_scaled=2),
    edited('r', train_seconds=math.inf), without('test_accuracy'))]
damage += [(f,o) for f in ('history.csv','steps.csv') for o in (
    b'', b'epoch', b'\xff\xfe\x00', b'epoch,lr\n', b'a,b\n1,2\n', lambda b: b[:len(b)//2].rstrip(), lambda b: b.replace(b'1', b'x'),
    lambda b: b''.join(b.splitlines(True)[:-1]),
    lambda b: b+b'1,2\n', lambda b: b+b'nan'+b','*b.split(b'\n')[0].count(b',')+b'\n')]
damage += [('corrupted.csv',o) for o in (b'noise\n.5\n.5\n', b'strength\n0\n1\n', *(b'strength,noise\n0,.5\n'+o for o in (
    b'', b'1,\n', b'1,7\n', b'inf,.5\n', b',.5\n')))]
damage += [('model.safetensors',o) for o in (b'', b'half', *map(flipped, (0, .3, .5, .7, .99)), lambda b: b[:-9], lambda b: b+b'0')]

@pytest.mark.parametrize('i', range(len(damage)))
def test_damaged_file(call, whole, tmp_path, i):
    "A file of a run that is not what was written: one line that names it, from the scripts that read it"
    file,how = damage[i]
    shutil.copytree(whole, run := tmp_path/'run')
    b = (run/file).read_bytes() if (run/file).exists() else b''
    (run/file).write_bytes(how if isinstance(how, bytes) else how(b))
    page = file.endswith(('.csv','.safetensors')) or b'cam_loc' in (run/file).read_bytes() or b'cam_loc' not in b
    scripts = dict(report=['cifar_fast_report',run,'--quiet'])
    if file not in ('model.safetensors','corrupted.csv'): scripts['compare'] = ['cifar_fast_compare',run,'--out',tmp_path/'c.html']
    if file in ('config.json','model.safetensors'): scripts['explain'] = ['cifar_fast_explain',run,'x.png','--out',tmp_path/'e']
    answers = {k: call(*o) for k,o in scripts.items()}
    assert all(code in (0,2) for code,_ in answers.values())
    errs = [err for code,err in answers.values() if code==2]
    assert errs and all(e.count('\n')==1 for e in errs) and page, answers
    assert any(file in e for e in errs), errs

@pytest.mark.parametrize('at', [0, .1, .2, .3, .4, .5, .6, .7, .8, .9, .97, .999])
def test_damaged_bit_of_a_checkpoint(begun, at):
    "Found, or harmless"
    f = begun/'checkpoint.pt'
    model = (begun/'model.safetensors').read_bytes()
    f.write_bytes(flipped(at)(f.read_bytes()))
    try: resume_run(begun, quiet=True)
    except CifarFastError as e: assert 'checkpoint.pt is damaged' in str(e)
    else: assert (begun/'model.safetensors').read_bytes()==model

@pytest.mark.parametrize('content', [[], 3, {}, dict(epoch=1), dict(epoch='a', epochs=[]), dict(model={}, epoch=1, epochs=[{}], random={})])
def test_odd_checkpoint(begun, content):
    torch.save(content, begun/'checkpoint.pt')
    with pytest.raises(CifarFastError, match='checkpoint.pt is damaged'): resume_run(begun, quiet=True)

@pytest.mark.parametrize('change', [dict(epochs=[{},{}]), dict(epochs=[3,3]), dict(steps=[]), dict(steps=None), dict(steps=[{}]*8),
    lambda c: dict(epochs=[{**o,'train_s':None} for o in c['epochs']]), lambda c: dict(steps=[{**o,'lr':'x'} for o in c['steps']]),
    lambda c: dict(steps=c['steps'][1:])])
def test_odd_rows_of_a_checkpoint(begun, change):
    "The rows that it would go on with: lost, or of other kinds"
    c = torch.load(begun/'checkpoint.pt')
    torch.save({**c, **(change(c) if callable(change) else change)}, begun/'checkpoint.pt')
    with pytest.raises(CifarFastError, match='checkpoint.pt is damaged'): resume_run(begun, quiet=True)

def test_no_memory_on_the_card(monkeypatch, call, folder, tmp_path):
    "Another process has it all; or the training wants too much, in whatever words that is said; or what comes after it does"
    monkeypatch.chdir(tmp_path)
    few = '--bs 16 --policy none --model_args width=4 --epochs 1 --quiet --no_report --out r --data'.split()
    def run(message, target, name, e):
        def full(*args, **kwargs): raise e
        with monkeypatch.context() as m:
            m.setattr(target, name, full)
            code,err = call('cifar_fast_train', *few, folder)
        assert code==2 and message in err and err.count('\n')==1, err
    run('no memory is left on cpu: wait', torch, 'empty', RuntimeError('CUDA error: out of memory\nCompile with'))
    for e in (torch.OutOfMemoryError('CUDA out of memory. Tried'),RuntimeError('cuDNN error: CUDNN_STATUS_ALLOC_FAILED')):
        run('a batch of 16 images does not fit into the memory of cpu: try half, --bs 8', Learner, '_step', e)
    run('the memory is too small', train, 'get_model', RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried\nto"))
    assert not list(tmp_path.iterdir())
    run('the memory is too small', train.Predictions, 'from_learner', torch.OutOfMemoryError('CUDA out of memory. Tried'))

def test_other_device(begun, capsys):
    "What decides about cuDNN is the device of now; and where a seed repeats nearly, the one who resumes is told"
    c,cudnn = torch.load(begun/'checkpoint.pt'),torch.backends.cudnn
    c['random'].update(torch_deterministic=False, torch_benchmark=True)
    torch.save(c, begun/'checkpoint.pt')
    conf = json.loads((begun/'config.json').read_text())
    (begun/'config.json').write_text(json.dumps(dict(conf, device='a card')))
    with cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        resume_run(begun)
        assert (cudnn.benchmark,cudnn.deterministic)==(False,True)
    assert 'the convolutions of the a card do not repeat to the bit' in capsys.readouterr().out

def test_its_own_version(folder, tmp_path, monkeypatch):
    "A package that lies on the path, and was never installed, has one too"
    def version(name): return '1' if name!='cifar_fast' else (_ for _ in ()).throw(ModuleNotFoundError(name))
    monkeypatch.setattr(train, 'version', version)
    r = get_recipe('demo').replace(data=str(folder), epochs=1, bs=16, policy='none', model_args=dict(width=4))
    train_recipe(r, tmp_path/'run', quiet=True)
    assert json.loads((tmp_path/'run'/'config.json').read_text())['versions']['cifar_fast']==__version__

def test_fewer_gpus(begun):
    "Random states of GPUs that are not here are left out"
    c = torch.load(begun/'checkpoint.pt')
    c['random']['torch_cuda_state'] = [torch.zeros(16, dtype=torch.uint8)]*(torch.cuda.device_count()+2)
    torch.save(c, begun/'checkpoint.pt')
    if not torch.cuda.is_available(): assert resume_run(begun, quiet=True)['epochs']==2
