"What a person can mend gets one line that says how, and exit code 2; nothing that was there is touched"
import errno,json
import pytest,torch
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
    base = ['--data',folder,'--epochs',1,'--bs',16,'--policy','none','--model_args','width=4','--quiet','--no_report','--out']
    calls = dict(
        recipe=['--recipe','assignmet'], model=['--model','resnet8'], policy=['--policy','assignmnt'],
        precision=[*base,d/'p','--precision','bf61'],
        no_folder=['--data',d/'nowhere'], empty=['--data',d/'empty'], no_images=['--data',d/'none'],
        bs=[*base,d/'bs','--bs',500], bs_zero=['--bs',0], epochs=['--epochs',0], peak=['--epochs',3,'--peak_epoch',5],
        lr_negative=['--lr',-.1], lr_zero=['--lr',0],
        lr_nan=['--lr','nan'], smoothing=[*base,d/'s','--label_smoothing',2], valid=[*base,d/'v','--valid_pct',1.5],
        model_args=['--model_args','width 4'],
        model_arg=[*base,d/'m','--model_args','wide=4'], kept=[*base,d/'kept'], other=[*base,d/'other'], file=[*base,d/'kept'/'thesis.txt'],
        resume_none=['--resume',d/'nowhere'], resume_empty=['--resume',d/'empty'], resume_damaged=['--resume',d/'damaged'],
        resume_other=['--resume',d/'other'], resume_lr=['--resume',d/'other','--lr',.1],
        nan=[*base,d/'nan','--lr',1e30,'--epochs',3], device=[*base,d/'d','--device','gpu'], no_cuda=[*base,d/'c','--device','cuda:99'],
        graph=[*base,d/'g','--graph','--device','cpu'],
        pipeline=[*base,d/'i','--pipeline','itme'], workers=[*base,d/'w','--num_workers',2])
    return d,dict(zip(calls, run_script(*calls.values())))

@pytest.mark.parametrize('name,message', dict(
    recipe="did you mean 'assignment'", model="or 'resnet9'", policy="did you mean 'assignment'?", precision="did you mean 'bf16'?",
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

def test_full_disk(begun, folder, tmp_path, monkeypatch):
    "No space for a checkpoint: one line, and the last whole one is still there"
    def full(obj, path):
        open(path,'wb').write(b'half')
        raise OSError(errno.ENOSPC, 'No space left on device')
    before = (begun/'checkpoint.pt').read_bytes()
    monkeypatch.setattr(torch, 'save', full)
    r = get_recipe('demo').replace(data=str(folder), epochs=2, bs=16, policy='none', model_args=dict(width=4))
    with pytest.raises(CifarFastError, match='No space left on device'): train_recipe(r, tmp_path/'full', quiet=True)
    assert not (tmp_path/'full'/'checkpoint.pt').exists() and not list((tmp_path/'full').glob('.*'))
    assert (begun/'checkpoint.pt').read_bytes()==before
