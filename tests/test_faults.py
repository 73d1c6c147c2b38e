"A small, fixed part of `make faults`, and the lock as Windows has it"
import errno,os,random,types
from pathlib import Path
import faults,pytest
import cifar_fast.runs as runs
from cifar_fast.core import CifarFastError
from cifar_fast.runs import hold

draws = True
forks = pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork on this system')

@pytest.fixture(scope='module')
def root(tmp_path_factory):
    faults.prepare(d := tmp_path_factory.mktemp('faults').resolve())
    return d

@forks
@pytest.mark.parametrize('part,n', [
    (lambda root, rng: faults.kills(root, ['plain'], rng, 2, 1, 1), 3),
    (lambda root, rng: faults.damage(root, rng, 1, 1, ('config.json','checkpoint.pt')), 16),
    (lambda root, rng: faults.values(root, rng, .1, 1), 100)], ids=['kills','damage','values'])
def test_a_part_of_the_campaign(root, part, n):
    rows = part(root, random.Random(1))
    assert len(rows)>=n and not [r for r in rows if r[2] not in ('','not seen')]

@forks
def test_it_sees_what_is_wrong(root, monkeypatch):
    "Without checksums, and with checkpoints that do not bring back the random numbers"
    class Anything(str):
        __ne__ = lambda self, other: False
    with monkeypatch.context() as m:
        m.setattr(runs, '_checksum', lambda tensors: Anything())
        m.setattr(faults, 'damaged', lambda b, how, rng: b[:-2000] + bytes([b[-2000]^64]) + b[-1999:])
        assert 'changed' in faults.pool([lambda: faults.hurt(root, 'model.safetensors', 'flip', 0)], 1)[0].values()
    monkeypatch.setattr(runs, 'set_random_states', lambda **states: None)
    whole = faults.pool([lambda: faults.undisturbed(root, 'plain')], 1)[0]
    said = faults.pool([lambda: faults.killed(root, 'plain', whole, 'planted', at=9)], 1)[0]
    assert 'model.safetensors' in said, said

@pytest.fixture
def windows(monkeypatch):
    "msvcrt in the place of fcntl, by a lock that belongs to the open file, too; no file is removed while it is open"
    flock = pytest.importorskip('fcntl').flock
    def locking(fd, mode, n):
        assert mode==2 and n==1 and os.lseek(fd, 0, os.SEEK_CUR)>os.fstat(fd).st_size  # the name in the file can be read
        try: flock(fd, 6)  # LOCK_EX|LOCK_NB
        except BlockingIOError: raise PermissionError(errno.EACCES, 'Permission denied') from None
    unlink,refused = Path.unlink,[]
    def _unlink(self, missing_ok=False):
        if self.name=='.lock' and self.exists():
            with open(self) as f:
                try: flock(f, 6)
                except BlockingIOError:
                    refused.append(self)
                    raise PermissionError(errno.EACCES, 'used by another process') from None
        unlink(self, missing_ok)
    monkeypatch.setattr(runs, 'fcntl', None)
    monkeypatch.setattr(runs, 'msvcrt', types.SimpleNamespace(LK_NBLCK=2, locking=locking))
    monkeypatch.setattr(Path, 'unlink', _unlink)
    return refused

def test_lock_of_windows(windows, tmp_path):
    with hold(tmp_path/'run'):
        with pytest.raises(CifarFastError, match=f'in use by process {os.getpid()} on'), hold(tmp_path/'run'): pass
        (tmp_path/'run'/'kept').touch()
    assert [o.name for o in (tmp_path/'run').iterdir()]==['kept']
    with hold(tmp_path/'new'): pass
    assert not (tmp_path/'new').exists() and len(windows)==2

def test_lock_on_a_full_disk(monkeypatch, tmp_path):
    "It keeps the folder without saying for whom, and leaves nothing"
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, 'write', full)
    with hold(tmp_path/'run'):
        if runs.fcntl: assert (tmp_path/'run'/'.lock').read_text()==''
    assert not (tmp_path/'run').exists()

def test_no_lock_at_all(monkeypatch, tmp_path):
    "Where the system has none, a folder is not kept, but all else goes on"
    for o in ('fcntl','msvcrt'): monkeypatch.setattr(runs, o, None)
    with hold(tmp_path/'run'), hold(tmp_path/'run'): assert (tmp_path/'run').exists()
    assert not (tmp_path/'run').exists()

@pytest.mark.skipif(not runs.fcntl, reason='no fcntl on this system')
def test_lock_that_was_removed_meanwhile(monkeypatch, tmp_path):
    "Who waits for a lock file that its holder then removes takes the next one, which others see"
    lock,tries = runs._lock_it,[]
    def _late(f):
        if not tries: (tmp_path/'.lock').unlink()  # the holder leaves between the opening and the lock
        tries.append(f)
        lock(f)
    monkeypatch.setattr(runs, '_lock_it', _late)
    with hold(tmp_path): assert len(tries)==2 and (tmp_path/'.lock').exists()
    assert not list(tmp_path.iterdir())
