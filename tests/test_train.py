"`cifar_fast_train` as its user meets it: what it leaves, what it repeats, what it survives"
import csv,json,os,shutil,signal,subprocess,sys,time
from pathlib import Path
import numpy as np,pytest,torch
from safetensors.torch import load_file
import cifar_fast.cli as cli
from cifar_fast.cli import main
from cifar_fast.core import CifarFastError
from cifar_fast.recipes import recipes
from cifar_fast.runs import Run,hold
from cifar_fast.train import resume_run

draws = True
script = Path(sys.executable).parent/'cifar_fast_train'
small = ['--bs','16','--policy','flip_crop','--model_args','width=4,dropout=.1','--lr','.05','--size','16','--no_report']

def weights(run): return load_file(Path(run)/'model.safetensors')
def same(a, b): return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)
def rows(path):
    with open(path) as f: return list(csv.DictReader(f))

@pytest.fixture(scope='module')
def runs(folder, run_script, tmp_path_factory):
    "Two runs alike, one of another seed, one with a validation split"
    d = tmp_path_factory.mktemp('runs')
    args = ['--data',folder,*small,'--epochs','4','--out']
    res = run_script([*args,d/'a'], [*args,d/'b','--quiet'], [*args,d/'seed','--seed','1','--quiet'],
                     [*args,d/'valid','--valid_pct','.25','--quiet'],
                     *([*args,d/f'workers{i}','--num_workers','2','--pipeline','item','--quiet'] for i in range(2)), ['--list'])
    assert [r[0] for r in res]==[0]*7, res
    return d,res

def test_run_folder(runs):
    d,res = runs
    assert {p.name for p in (d/'a').iterdir()}==set(
        'config.json history.csv steps.csv checkpoint.pt model.safetensors predictions.safetensors results.json '
        'curves.png schedule.png batch.png'.split())
    c = json.loads((d/'a'/'config.json').read_text())
    assert c['recipe']['lr']==.05 and c['recipe']['model_args']==dict(width=4, dropout=.1) and c['data']['classes']==['ant','bee','cat']
    assert c['versions']['torch']==torch.__version__.split('+')[0]
    assert str(d/'a') in res[0][1] and 'test accuracy' in res[0][1]

def test_history_and_steps(runs):
    h,s = rows(runs[0]/'a'/'history.csv'),rows(runs[0]/'a'/'steps.csv')
    n = 72//16
    assert len(h)==4 and len(s)==4*n
    peak = 5*4/24
    want = np.interp(np.arange(4*n)/n, [0,peak,4], [.005,.05,.005])
    np.testing.assert_allclose([float(r['lr']) for r in s], want, atol=1e-6)
    for e in range(4): np.testing.assert_allclose(float(h[e]['train_loss']), np.mean([float(r['loss']) for r in s[e*n:(e+1)*n]]), rtol=1e-5)
    assert float(h[-1]['test_accuracy'])==json.loads((runs[0]/'a'/'results.json').read_text())['test_accuracy']

def test_seed_decides(runs):
    d = runs[0]
    assert same(weights(d/'a'), weights(d/'b')) and not same(weights(d/'a'), weights(d/'seed'))

def test_workers_repeat(runs):
    "With two workers a seed repeats too, with other augmentations than without"
    d = runs[0]
    assert same(weights(d/'workers0'), weights(d/'workers1')) and not same(weights(d/'workers0'), weights(d/'a'))

def test_list(runs):
    out = runs[1][-1][1]
    assert all(name in out for name in recipes)

def test_quiet(runs):
    loud,quiet = runs[1][0][1],runs[1][1][1]
    assert 'train_loss' in loud and 'train_loss' not in quiet and 'test accuracy' in quiet

def test_validation_split(runs):
    r = json.loads((runs[0]/'valid'/'results.json').read_text())
    best = max(rows(runs[0]/'valid'/'history.csv'), key=lambda o: float(o['valid_accuracy']))
    assert r['best_epoch']==int(best['epoch']) and r['best_valid_accuracy']==float(best['valid_accuracy'])
    assert (runs[0]/'valid'/'best.safetensors').exists() and 0<=r['best_test_accuracy']<=1

def test_finished_is_not_resumed(runs, run_script):
    [(code,_,err)] = run_script(['--resume',runs[0]/'a','--no_report'])
    assert code==2 and 'finished' in err

def test_umask(runs):
    "Files can be read by whom the system lets read"
    mask = os.umask(0)
    os.umask(mask)
    assert {p.stat().st_mode&0o777 for p in (runs[0]/'a').iterdir()}=={0o666&~mask}

@pytest.fixture(scope='module')
def long(folder, run_script, tmp_path_factory):
    "What an undisturbed run of 24 epochs gives, and the arguments that start it"
    out = tmp_path_factory.mktemp('long')/'run'
    args = ['--data',folder,*small,'--epochs','24','--quiet','--out']
    assert run_script([*args,out])[0][0]==0
    return out,args

def test_it_learns(long): assert json.loads((long[0]/'results.json').read_text())['test_accuracy']>.9

def test_killed_before_its_results(runs, tmp_path):
    "All epochs done, but the process died before it wrote the results: resuming writes them"
    whole,out = runs[0]/'valid',tmp_path/'run'
    shutil.copytree(whole, out, ignore=shutil.ignore_patterns('results.json','model.safetensors','*.png'))
    resume_run(out, quiet=True)
    assert same(weights(out), weights(whole)) and (out/'curves.png').exists()
    a,b = (json.loads((o/'results.json').read_text()) for o in (out,whole))
    assert a==b

def test_killed_before_its_last_tables(runs, tmp_path):
    "The last checkpoint was written, its tables were not: resuming writes them"
    whole,out = runs[0]/'a',tmp_path/'run'
    shutil.copytree(whole, out)
    (out/'results.json').unlink()
    for name,n in (('history.csv',3),('steps.csv',12)):
        (out/name).write_text(''.join((whole/name).read_text().splitlines(keepends=True)[:n+1]))
    resume_run(out, quiet=True)
    for name in ('history.csv','steps.csv'): assert (out/name).read_text()==(whole/name).read_text()

def wait_and_signal(p, out, epochs, sig):
    "Send the process `p` a signal once the run in `out` has recorded that many epochs; its exit code"
    seen = lambda: (out/'config.json').exists() and (not epochs or (out/'history.csv').exists() and len(rows(out/'history.csv'))>=epochs)
    while not seen() and p.poll() is None: time.sleep(.002)
    p.send_signal(sig)
    while p.poll() is None:
        p.wait(20)
    assert not (out/'results.json').exists(), 'it had finished before it was stopped'
    return p.returncode

def same_run(out, whole):
    "Equal weights and tables, but for the clock"
    assert same(weights(out), weights(whole))
    assert rows(out/'steps.csv')==rows(whole/'steps.csv')
    assert [o['train_loss'] for o in rows(out/'history.csv')]==[o['train_loss'] for o in rows(whole/'history.csv')]

class Fork:
    "This process once more, running the script: it need not import anything again"
    returncode = None
    def __init__(self, argv, err=os.devnull, f=main):
        self.pid = os.fork()
        if self.pid: return
        os.setsid()  # a group of its own, all of which gets the signals, as from a terminal
        os.dup2(os.open(err, os.O_WRONLY|os.O_CREAT), 2)
        sys.argv = ['cifar_fast_train',*map(str, argv)]
        os._exit(f() or 0)
    def send_signal(self, sig): os.killpg(self.pid, sig)
    def poll(self):
        pid,status = os.waitpid(self.pid, os.WNOHANG) if self.returncode is None else (0,0)
        if pid: self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode
    def wait(self, seconds):
        end = time.monotonic()+seconds
        while self.poll() is None:
            if time.monotonic()>end: raise subprocess.TimeoutExpired('fork', seconds)
            time.sleep(.005)

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork on this system')
@pytest.mark.parametrize('epochs', [0, 5, 18])
def test_sigkill_and_resume(long, tmp_path, epochs):
    "Killed before its first checkpoint or later, and resumed: bit-equal weights and tables"
    out = tmp_path/'run'
    assert wait_and_signal(Fork([*long[1],out]), out, epochs, signal.SIGKILL)==-signal.SIGKILL
    resume_run(out, quiet=True)
    same_run(out, long[0])

def test_ctrl_c(long, tmp_path):
    "Ctrl-C: no traceback, and what it prints works, with a row for each epoch, the earlier ones too"
    out = tmp_path/'run'
    p = subprocess.Popen([script,*long[1],out], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    code,err = wait_and_signal(p, out, 3, signal.SIGINT),p.stderr.read()
    assert code==130 and 'Traceback' not in err and f'cifar_fast_train --resume {out}' in err
    r = subprocess.run([script,'--resume',out,'--no_report'], capture_output=True, text=True)
    assert r.returncode==0, r.stderr
    same_run(out, long[0])
    assert len([l for l in r.stdout.splitlines() if l.split()[:1] and l.split()[0].isdigit()])==24

forks = pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork on this system')

@forks
@pytest.mark.parametrize('sig,more', [(signal.SIGINT,['--pipeline','item','--num_workers','2']), (signal.SIGTERM,[])])
def test_stopped(long, tmp_path, sig, more):
    "By Ctrl-C or `kill`, with workers or without: one line that says how to go on, and the exit code of the signal"
    out,err = tmp_path/'run',tmp_path/'err'
    assert wait_and_signal(Fork([*long[1],out,*more], err), out, 2, sig)==128+sig
    said = [l for l in err.read_text().splitlines() if l]
    assert said==[f'stopped. To go on after the last whole epoch: cifar_fast_train --resume {out}'] and not list(out.glob('.*.tmp'))

@forks
def test_stopped_in_its_report(runs, tmp_path, monkeypatch, capsys):
    "The line names the report, and --resume makes it"
    shutil.copytree(runs[0]/'a', out := tmp_path/'run')
    with monkeypatch.context() as m:
        m.setattr(cli, 'report_run', lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGINT))
        p = Fork(['--resume',out], tmp_path/'err')
        p.wait(20)
    assert p.returncode==130 and (tmp_path/'err').read_text().strip().endswith(f'cifar_fast_report {out}')
    monkeypatch.setattr(sys, 'argv', ['cifar_fast_train','--resume',str(out),'--quiet'])
    assert main()==0 and (out/'report.html').exists()
    assert main()==2 and 'finished' in capsys.readouterr().err

def test_stopped_while_importing(tmp_path):
    code = 'import cifar_fast,sys; print(1, flush=True); sys.exit(cifar_fast.main())'
    p = subprocess.Popen([sys.executable,'-c',code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    p.stdout.readline()
    time.sleep(.3)
    p.send_signal(signal.SIGINT)
    assert p.communicate(timeout=20)[1].strip()=='stopped before anything began: give the same command again' and p.returncode==130

@forks
def test_held(runs, tmp_path):
    "The second process on a run is told who the first is; one that is killed leaves nothing that blocks"
    shutil.copytree(runs[0]/'a', out := tmp_path/'run')
    (out/'results.json').unlink()
    (out/'.checkpoint.pt.123.tmp').touch()
    def keep():
        with hold(out):
            (tmp_path/'held').touch()
            time.sleep(60)
    p = Fork([], f=keep)
    while not (tmp_path/'held').exists(): time.sleep(.01)
    with pytest.raises(CifarFastError, match=f'in use by process {p.pid} on'): resume_run(out, quiet=True)
    p.send_signal(signal.SIGKILL)
    p.wait(20)
    resume_run(out, quiet=True)
    assert Run(out).finished and not list(out.glob('.*'))
