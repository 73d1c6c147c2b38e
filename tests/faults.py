"""The campaign: kill every kind of run, damage every file of a run, give every option bad values; a table of what held

`make faults` runs the whole of it, `tests/test_faults.py` a small part. One process imports the libraries; each case is a fork of it, so a
training takes about a second. The seed decides every moment, place and value that is drawn; it is printed, and --seed repeats it."""
import no_bf16,argparse,collections,contextlib,hashlib,io,json,math,os,platform,random,shutil,signal,sys,tempfile,time,traceback  # noqa: F401
from datetime import date
from pathlib import Path
import matplotlib,torch
import cifar_fast.evaluate as evaluate,cifar_fast.report as report
from conftest import draw_folder
from cifar_fast.cli import ScriptParser,cifar_fast_train,main
from cifar_fast.core import CifarFastError
from cifar_fast.explain import explain
from cifar_fast.export import export_run
from cifar_fast.recipes import Recipe,get_recipe
from cifar_fast.runs import Run,compare_table,find_runs,load_tensors
from cifar_fast.train import resume_run,train_recipe

# --- Kinds of run: the arguments of the script, and those that end what was stopped

def kinds(d):
    "Name → (first command, the command that goes on)"
    some = ['--bs','16','--policy','flip_crop','--model_args','width=4,dropout=.1','--lr','.05','--quiet']
    train,out = ['cifar_fast_train','--data',d/'colors',*some,'--no_report'],d/'out'
    def run(*more, epochs=2):
        return [*train,'--epochs',epochs,*more,'--out',out],['cifar_fast_train','--resume',out,'--quiet','--no_report']
    def explained(o): return ['cifar_fast_explain',d/'done',d/'colors'/'test'/'ant','--out',d/'pages'/o]
    def again(*argv): return (list(argv),)*2
    speed = ['cifar_fast_train','--recipe','speedrun','--data',d/'colors','--size','32','--bs','16','--epochs','2','--quiet','--no_report',
             '--model_args','width=4','--progressive_resizing','((0,24),(.5,32))','--out',out]
    return dict(
        plain=run(), resumed=run(epochs=3), valid=run('--valid_pct','.25'), ema=run('--ema','.9'), speedrun=(speed, run()[1]),
        workers=run('--pipeline','item','--num_workers','2'), tta=run('--tta','--label_smoothing','.1'),
        seeds=again(*train,'--epochs','1','--seeds','2','--out',out),
        sweep=again(*train,'--epochs','1','--sweep','wd=0,.01','--valid_pct','.25','--out',out),
        labels=again('cifar_fast_labels',d/'colors',*some,'--epochs','1','--folds','2','--out',out),
        report=again('cifar_fast_report',d/'done','--quiet'), evaluate=again('cifar_fast_evaluate',d/'done','--corrupt','--quiet'),
        compare=again('cifar_fast_compare',d/'done','--out',d/'pages'/'compare.html'), gradcam=(explained('first'),explained('again')))

looks = 'report','evaluate','compare','gradcam'  # these look at a finished run, which they must not change

# --- Processes

def fork(f):
    "Its process number; `f` runs in a fork of this process, silently, and gives the exit code"
    if pid := os.fork(): return pid
    code = 99
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_WRONLY)
        for o in (1,2): os.dup2(null, o)
        code = f() or 0
    except BaseException: traceback.print_exc()
    finally: os._exit(code)

def ended(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def pool(cases, jobs):
    "The answer of each case, a function that gives something for JSON; so many at a time"
    with tempfile.TemporaryDirectory() as tmp:
        todo,running,res = list(enumerate(cases))[::-1],{},{}
        def _write(i, f):
            try: answer = f()
            except Exception as e: answer = f'{type(e).__name__}: {e}: {traceback.format_exc()[-600:]}'
            (Path(tmp)/f'{i}').write_text(json.dumps(answer))
        while todo or running:
            while todo and len(running)<jobs:
                i,f = todo.pop()
                running[fork(lambda i=i, f=f: _write(i, f))] = i
            pid,_ = os.wait()
            if pid not in running: continue
            i = running.pop(pid)
            res[i] = json.loads((Path(tmp)/f'{i}').read_text())
            if sys.stderr.isatty(): print(f'\r{len(res)} of {len(cases)} ', end='', file=sys.stderr)
        return [res[i] for i in range(len(cases))]

def script(argv):
    "Run a script in this process: its exit code and what it wrote to stderr"
    sys.argv,err,out = [str(o) for o in argv],io.StringIO(),io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
        try: code = main()
        except SystemExit as e: code = e.code or 0
        except BaseException: code = traceback.print_exc() or 1
    return code,err.getvalue()

# --- Kills

class Dying:
    "`os.fsync` and `os.replace` that count, and kill their process before call `at`"
    def __init__(self, at=None):
        self.n,self.at = 0,at
        for name in ('fsync','replace'): setattr(os, name, self.counted(getattr(os, name)))
    def counted(self, f):
        def _f(*args, **kwargs):
            self.n += 1
            if self.n==self.at: os.killpg(0, signal.SIGKILL)
            return f(*args, **kwargs)
        return _f

clock = ('_s','seconds','images_per_second')  # what no run repeats

def tensors(path): return {k: hashlib.sha256(v.numpy().tobytes()).hexdigest() for k,v in load_tensors(path, 'tensors').items()}

def left_by(path):
    "What is in the folder `path`, file by file, as far as a seed repeats it"
    res = {}
    for o in sorted(Path(path).rglob('*')):
        name = str(o.relative_to(path))
        if o.is_dir(): continue
        if o.suffix=='.safetensors': res[name] = tensors(o)
        elif o.name=='results.json': res[name] = {k: v for k,v in json.loads(o.read_text()).items() if not k.endswith(clock)}
        elif o.name in ('history.csv','steps.csv','labels.csv','corrupted.csv'):
            head,*rows = [l.split(',') for l in o.read_text().splitlines()]
            res[name] = [[v for k,v in zip(head, r) if not k.endswith(clock)] for r in rows]
        else: res[name] = o.stat().st_size>0
    return res

def differ(a, b): return [k for k in {**a,**b} if a.get(k)!=b.get(k)]

def world(d, name, root):
    "A folder for one case: its data are those of `root`, its finished run is a copy"
    d.mkdir()
    (d/'pages').mkdir()
    (d/'colors').symlink_to(root/'colors')
    if name in looks: shutil.copytree(root/'done', d/'done')
    return kinds(d)[name]

def place(d, name):
    "Where the result of the case is"
    if name=='gradcam': return next(o for o in (d/'pages'/'again',d/'pages'/'first') if o.exists())  # a new folder for each attempt
    return d/dict(report='done', evaluate='done', compare='pages').get(name, 'out')

def result(d, name): return left_by(place(d, name))

def undisturbed(root, name):
    "What the run comes to, its calls of fsync and replace, and its seconds"
    d = root/f'{name}-whole'
    first,_ = world(d, name, root)
    dying,start = Dying(),time.perf_counter()
    code,err = script(first)
    if code: raise AssertionError(f'{name} fails by itself: {err}')
    res = dict(left=result(d, name), calls=dying.n, seconds=time.perf_counter()-start)
    shutil.rmtree(d)
    return res

def killed(root, name, whole, i, at=None, after=None, again=None):
    "Kill the run before its call `at`, or `after` seconds, perhaps once more in its continuation; go on to the end: '' or what is wrong"
    d = root/f'{name}-{i}'
    first,then = world(d, name, root)
    def _die(argv, at, after):
        def _run():
            Dying(at)
            return script(argv)[0]
        pid = fork(_run)
        if after is not None:
            time.sleep(after)
            with contextlib.suppress(ProcessLookupError): os.killpg(pid, signal.SIGKILL)
        return ended(pid)==-signal.SIGKILL
    hit = _die(first, at, after)
    def _next(): return then if (d/'out'/'config.json').exists() or name in looks or first is then else first
    if again is not None and hit: hit = _die(_next(), again, None)
    finished = name not in looks and (d/'out'/'results.json').exists()
    if not (hit or finished or name in looks or first is then): return 'it was not killed, and is not finished'
    code,err = (0,'') if finished else script(_next())
    done_already = code==2 and 'finished' in err
    if code and not done_already: return f'exit code {code}: {err.strip()[-300:]}'
    if err.count('\n')>1 or 'Traceback' in err: return f'more than a line: {err[-300:]}'
    wrong = differ(json.loads(json.dumps(result(d, name))), whole['left'])
    if not finished: wrong += [str(o) for o in place(d, name).rglob('.*') if o.name.endswith(('.tmp','.lock'))]
    shutil.rmtree(d)
    return '' if not wrong else f'differ or are left over: {wrong}'

def kills(root, names, rng, every, moments, jobs):
    "Rows of the table, and what failed"
    wholes = dict(zip(names, pool([lambda k=k: undisturbed(root, k) for k in names], jobs)))
    cases = []
    for k,w in wholes.items():
        if not isinstance(w, dict): cases.append((k,'undisturbed',lambda w=w: w))
        points,moments = (range(1, w['calls']+1),moments) if isinstance(w, dict) else ((),0)
        for n in points if every is None else sorted(rng.sample(points, min(every, len(points)))):
            second = rng.randint(1, 12) if k=='resumed' else None
            cases.append((k,f'before call {n}'+f' and {second}'*bool(second),
                          lambda k=k, w=w, n=n, s=second: killed(root, k, w, f'c{n}', at=n, again=s)))
        for i in range(moments):
            t = rng.uniform(0, .95)*w['seconds']
            cases.append((k,f'after {t:.2f} s',lambda k=k, w=w, i=i, t=t: killed(root, k, w, f't{i}', after=t)))
    return [(f'killed: {k}',what,said) for (k,what,_),said in zip(cases, pool([o[2] for o in cases], jobs))]

# --- Damage

def damaged(b, how, rng):
    "The bytes `b` with a bit turned, their end cut off, 64 of them zero, or some more at the end"
    i = rng.randrange(len(b))
    if how=='flip': return b[:i] + bytes([b[i]^(1<<rng.randrange(8))]) + b[i+1:]
    if how=='truncate': return b[:i]
    if how=='zero': return b[:i] + bytes(len(b[i:i+64])) + b[i+64:]
    return b + rng.randbytes(1+rng.randrange(64))

def seen(v):
    "A value in a form that can be compared"
    if isinstance(v, dict): return {str(k): seen(o) for k,o in v.items()}
    if isinstance(v, (list,tuple)): return [seen(o) for o in v]
    if hasattr(v, 'logits'): return hashlib.sha256(v.logits.tobytes()+v.targs.tobytes()).hexdigest()
    return v if isinstance(v, (str,int,float,bool,type(None))) else str(type(v))

def pages(f):
    "What `f` would write on a page, with nothing drawn: predictions and rows"
    got = []
    def _keep(path, about, title, preds, texts, rows, parts, quiet): got.append((title,preds,rows))
    old = report.write_page,evaluate.write_page
    report.write_page = evaluate.write_page = _keep
    try: f()
    finally: report.write_page,evaluate.write_page = old
    return got

def readers(run, root):
    "What each command takes from a finished run"
    def _report():
        got = pages(lambda: report.report_run(Run(run), True))
        return [*got, Run(run).read_table('history.csv'), Run(run).read_table('steps.csv'), report.repeat_command(Run(run))]
    def _compare():
        rows = compare_table(find_runs([run]))
        return [[{k: v for k,v in r.items() if k!='runs'} for r in rows], Run(run).read_table('history.csv')]
    def _explain():
        with tempfile.TemporaryDirectory() as o: return [{k: v for k,v in r.items()} for r in explain(run, root/'one.png', Path(o)/'e')]
    def _evaluate():
        with tempfile.TemporaryDirectory() as o: return pages(lambda: evaluate.evaluate_run(run, root/'colors', Path(o)/'e', True))
    def _export():
        with tempfile.TemporaryDirectory() as o:
            export_run(run, Path(o)/'e', onnx=False)
            return tensors(Path(o)/'e'/'model.safetensors')
    return dict(report=_report, compare=_compare, explain=_explain, evaluate=_evaluate, export=_export)

reads = {'config.json':'report compare explain evaluate export', 'results.json':'report compare', 'history.csv':'report compare',
         'steps.csv':'report', 'model.safetensors':'report explain evaluate export', 'predictions.safetensors':'report'}
plain_text = 'config.json','results.json','history.csv','steps.csv'  # for people to read, without checksums

def answer(f):
    "What `f` gives; or the line with which it refuses"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try: return 'gives',seen(f())
        except CifarFastError as e: return 'refuses',str(e)
        except MemoryError: return 'refuses','the memory is too small'  # as `main` says it

def hurt(root, file, how, seed):
    "Damage a file of a finished run: {reader: held, changed or what is wrong}"
    run,rng,res = root/f'hurt-{file}-{how}-{seed}',random.Random(f'{file}{how}{seed}'),{}
    shutil.copytree(root/'done', run)
    (run/file).write_bytes(damaged((run/file).read_bytes(), how, rng))
    good = json.loads((root/'good.json').read_text())
    for name in reads.get(file, 'compare').split():
        try: kind,said = answer(readers(run, root)[name])
        except Exception as e: kind,said = 'fails',f'{type(e).__name__}: {e}: {traceback.format_exc()[-400:]}'
        if kind=='gives': said = json.loads(json.dumps(said).replace(str(run), str(root/'done')).replace(run.name, 'done'))
        if kind=='refuses': res[name] = '' if said.count('\n')==0 else f'more than a line: {said}'
        elif kind=='gives': res[name] = '' if said==good[name] else 'changed'
        else: res[name] = said
    shutil.rmtree(run)
    return res

def hurt_begun(root, file, how, seed):
    "Damage a file of an interrupted run, and resume it"
    run,rng = root/f'begun-{file}-{how}-{seed}',random.Random(f'{file}{how}{seed}')
    shutil.copytree(root/'begun', run)
    (run/file).write_bytes(damaged((run/file).read_bytes(), how, rng))
    try: kind,said = answer(lambda: resume_run(run, quiet=True) and None)
    except Exception as e: return dict(resume=f'{type(e).__name__}: {e}: {traceback.format_exc()[-400:]}')
    good = json.loads((root/'begun.json').read_text())
    wrong = kind=='gives' and [k for k in differ(json.loads(json.dumps(left_by(run))), good) if k!='config.json']
    shutil.rmtree(run)
    return dict(resume='changed' if wrong else '')

def damage(root, rng, places, jobs, files=None):
    "Rows of the table"
    seeds,hows = [rng.randrange(10**6) for _ in range(places)],('flip','truncate','zero','append')
    cases = [(f'damaged: {f.name}',hurt,f.name) for f in sorted((root/'done').iterdir())]
    cases += [(f'damaged, then resumed: {f.name}',hurt_begun,f.name) for f in sorted((root/'begun').iterdir())]
    todo = [(label,f'{how} {s}',lambda f=f, file=file, how=how, s=s: f(root, file, how, s))
            for label,f,file in cases for how in hows for s in seeds if not files or file in files]
    res = []
    for (label,what,_),said in zip(todo, pool([o[2] for o in todo], jobs)):
        bad = {'all':said} if isinstance(said, str) else {k: v for k,v in said.items() if v}
        text = label.split(': ')[1] in plain_text and set(bad.values())<={'changed'} and bad
        res.append((label, what, 'not seen' if text else '; '.join(f'{k}: {v}' for k,v in bad.items())))
    return res

# --- Bad values

def bad_values(rng):
    "For each option of the training script, values that it cannot have"
    def _word(): return ''.join(rng.choice('abcdefgxyz_-/. \t\x00é$(%') for _ in range(rng.randint(1, 12)))+'!'
    numbers = ['nan','inf','-inf','','9'*400,'1e999','1,5','0x1g',f'-{rng.randint(1, 10**6)}',_word()]
    res = []
    for a in ScriptParser(cifar_fast_train)._actions:
        k,f = a.dest,Recipe.__dataclass_fields__.get(a.dest)
        of = str(f.type) if f else {int:'int',float:'float'}.get(a.type, 'text')
        if k in ('help','quiet','report','list','compile','graph','deterministic','out','data','resume'): continue
        if a.const=='true' or 'bool' in of: vals = ['perhaps','2','-1','',_word()]
        elif 'dict' in of or 'Values' in of: vals = ['3','[1]','width','{1:2}','no_such=1',"{'a':","width='x'",'width=4,width=4',_word()]
        elif 'Sizes' in of or 'Momenta' in of or 'tuple' in of: vals = ['3','(1','((0,24,3),)','nan','{}','(.9,.8)','((2,16),)',_word()]
        elif 'Whole' in of or 'Pixels' in of or 'int' in of: vals = [*numbers,'1.5','1e3','9'*5000]
        elif 'Part' in of or 'Fraction' in of or 'float' in of or 'Float' in of: vals = numbers
        else: vals = [_word(),'no such thing']
        res += [(k,v) for v in vals]
    return [(k,v) for k,v in res if (k,v) not in {('label_smoothing','-0'),('labels','')}]

def refused(root, k, v, i):
    "One line, exit code 2, and nothing is written: '' or what is wrong"
    d = root/f'bad-{i}'
    d.mkdir()
    os.chdir(d)
    given = dict(data=root/'colors', model_args='width=4', epochs=1, bs=16, policy='none', lr=.05)
    if k=='sweep': given.pop('lr')
    argv = ['cifar_fast_train', *[f'--{a}={b}' for a,b in given.items() if a!=k and not (k=='model' and a=='model_args')],
            '--quiet','--no_report',f'--{k}={v}']
    code,err = script(argv)
    left = [o.name for o in d.rglob('*')]
    good = code==2 and err.startswith('cifar_fast_train: ') and err.count('\n')==1 and not left
    return '' if good else f'exit code {code}, left {left}, said {err[-300:]!r}'

odd = [None, True, -1, 0, .5, math.nan, math.inf, 10**400, '', 'x', '{', b'x', [], [1], {}, {1:2}, object(), 1j, (), ((),),
       ((.5,8),(0,16)), '\x00', '9'*5000, range(3), set()]

def no_recipe(k, v):
    "`Recipe.of` gives a recipe that checks, or a `CifarFastError` of one line; `ready` no less"
    try:
        r = Recipe.of(**{**vars(get_recipe('demo')), k: v})
        r.check()
    except CifarFastError as e: return '' if '\n' not in str(e) else f'more than a line: {e}'
    return ''

def values(root, rng, share, jobs):
    "Rows of the table"
    some = bad_values(rng)
    some = some if share==1 else rng.sample(some, int(share*len(some)))
    chunks = [some[i::jobs] for i in range(jobs)]
    def _all(n): return [refused(root, k, v, f'{n}-{i}') for i,(k,v) in enumerate(chunks[n])]
    answers = pool([lambda n=n: _all(n) for n in range(jobs)], jobs)
    rows = [('bad value: an option',f'--{k}={v[:40]!r}',s) for c,a in zip(chunks, answers)
            for (k,v),s in zip(c, a if isinstance(a, list) else [a]*len(c))]
    pairs = [(k,v) for k in Recipe.__dataclass_fields__ for v in odd]
    def _odd():
        res = []
        for k,v in pairs:
            try: res.append(no_recipe(k, v))
            except Exception as e: res.append(f'{type(e).__name__}: {e}')
        return res
    said = pool([_odd], 1)[0]
    said = said if isinstance(said, list) else [said]*len(pairs)
    return rows + [('odd value: Recipe.of',f'{k}={str(v)[:40]!r}' if v!=10**400 else k,s) for (k,v),s in zip(pairs, said)]

# --- The whole

def prepare(root):
    "Data, a finished run, and one that was interrupted after its second epoch of three"
    draw_folder(root/'colors')
    shutil.copy(root/'colors'/'test'/'ant'/'0.png', root/'one.png')
    r = get_recipe('demo').replace(data=str(root/'colors'), epochs=3, bs=16, policy='flip_crop', model_args=dict(width=4))
    train_recipe(r, root/'done', quiet=True, valid_pct=.25)
    def _half():
        from cifar_fast.runs import Checkpoint
        tables = Checkpoint.write_tables
        def _die(self):
            tables(self)
            if len(self.history.epochs)==2: os.killpg(0, signal.SIGKILL)
        Checkpoint.write_tables = _die
        train_recipe(r, root/'begun', quiet=True, valid_pct=.25)
    ended(fork(_half))
    (root/'begun'/'.lock').unlink(missing_ok=True)
    shutil.copytree(root/'begun', root/'ended')
    resume_run(root/'ended', quiet=True)
    (root/'begun.json').write_text(json.dumps(left_by(root/'ended')))
    good = {k: answer(f) for k,f in readers(root/'done', root).items()}
    assert all(kind=='gives' and said for kind,said in good.values()), good
    (root/'good.json').write_text(json.dumps({k: said for k,(_,said) in good.items()}))

def campaign(seed=0, every=None, moments=12, places=10, share=1, jobs=2, names=None, parts=('kills','damage','values')):
    "Rows (what, how, '' or 'not seen' or what is wrong)"
    rng,res = random.Random(seed),[]
    with tempfile.TemporaryDirectory() as tmp:
        root = Path(tmp).resolve()
        with contextlib.redirect_stdout(io.StringIO()): prepare(root)
        if 'kills' in parts: res += kills(root, names or [*kinds(root)], rng, every, moments, jobs)
        if 'damage' in parts: res += damage(root, rng, places, jobs)
        if 'values' in parts: res += values(root, rng, share, jobs)
    return res

def table(rows):
    "Tried, held, not promised, failed, as Markdown"
    count = collections.defaultdict(collections.Counter)
    for label,_,said in rows: count[label]['failed' if said not in ('','not seen') else said or 'held'] += 1
    count['all together'] = sum(count.values(), collections.Counter())
    lines = [f"| {k} | {sum(c.values())} | {c['held']} | {c['not seen']} | {c['failed']} |" for k,c in count.items()]
    return '\n'.join(['| | tried | held | not seen, and not promised | failed |','|--|--|--|--|--|',*lines])

if __name__=='__main__':
    p = argparse.ArgumentParser(description='Kill, damage, mislead: what holds?')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--every', type=int, help='kills before so many of the calls of each kind of run; all, if left out')
    p.add_argument('--moments', type=int, default=12, help='kills at random moments of each kind of run')
    p.add_argument('--places', type=int, default=10, help='places of each file')
    p.add_argument('--share', type=float, default=1, help='of the bad values')
    p.add_argument('--names', nargs='*', help='kinds of run')
    p.add_argument('--parts', nargs='*', default=['kills','damage','values'])
    o = vars(p.parse_args())
    torch.set_num_threads(1)
    matplotlib.use('Agg')
    start = time.perf_counter()
    rows = campaign(**o)
    for label,how,said in rows:
        if said not in ('','not seen'): print(f'FAILED {label}, {how}: {said}')
    versions = f'Python {platform.python_version()}, PyTorch {torch.__version__}'
    print(f'\nSeed {o["seed"]}, {date.today()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores, {versions}, '
          f'{(time.perf_counter()-start)/60:.1f} minutes\n\n{table(rows)}')
    sys.exit(any(said not in ('','not seen') for _,_,said in rows))
