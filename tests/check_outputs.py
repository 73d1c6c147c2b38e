"""`nbdev_test`, and a look at what each cell says now beside what is saved in the notebook: every notebook runs once for both

Text is compared (what is printed, and results as text), pictures and progress bars are not. Times, speeds, dates, versions, addresses and
paths are left out. Numbers that are not whole may differ by 2 %, by one in the last digit shown, or by the rounding of fp32: sums of floats
depend on the processor and its number of threads. Training makes more of that (one notebook ended at 47.55 % and, with the instructions
of another processor, at 57.30 %), so from the first cell that trains only the words count, without the names of classes. A cell whose words
cannot repeat either, since it measures this machine, says so with `#| measured`."""
import no_bf16,difflib,multiprocessing,os,re,sys  # noqa: F401, no_bf16 before any room is imported
import nbdev.test,pandas
from execnb.shell import CaptureShell

slow,needs = ('tutorials','explanations'),r'load_images\(["\']cifar10'  # such of these as need images that are not in the repository
mend = '''If what comes out now is right, run the notebook and save it; `#| measured` is for a cell that cannot say the same twice:
    OMP_NUM_THREADS=1 jupyter execute --inplace {0} && nbdev_clean'''
number = r'[-+]?\d[\d,]*(?:\.\d*)?(?:e[-+]?\d+)?'
rtol,atol = .02,1e-5
trains = r'\.fit\w*\(|lr_find\(|range_test\(|train\w*\('
classes = r'\b(arrow|circle|crescent|cross|heart|hourglass|ring|square|star|triangle)\b'
varies = [re.compile(o) for o in (
    r'0x[0-9a-f]{6,}', r'\d{4}-\d\d-\d\d', r'\d+:\d\d(?::\d\d)?', r'\d+\.\d+\.\d+[\w+.]*', r'(?<![\w.])~?(?:/[\w.+-]+){2,}',  # /a/path
    rf'{number}(?= ?(?:s|ms|µs|min|seconds?|minutes?|images/s)\b)', rf'(?<=second\': ){number}', rf'(?<=seconds\': ){number}')]
bar = r'(?m)^epoch +train_loss.*\n|^\d+(?: +\d+\.\d+)+ +\d+:\d\d *\n'  # the table that fastai prints where it cannot draw one

def printed(s):
    "What is left of a text that goes back over its own lines"
    return re.sub(bar, '', re.sub(r'[^\n]*\r', '', s))

def shown(data):
    "The text of a result: of tables as HTML has it, which does not break lines; of pictures, bars and widgets none"
    d = {k: ''.join(v) for k,v in data.items() if k.startswith('text/')}
    plain = d.get('text/plain', '')
    if plain.startswith(('<Figure ','<PIL.','<div>')): return ''
    if plain.startswith('<IPython.core.display'): return d.get('text/markdown', '')
    return re.sub(r'(?s)<style.*?</style>|<[^>]+>', ' ', d['text/html']) if '<table' in d.get('text/html', '') else plain

def said(outputs):
    "What a cell printed, then its results as text, in an order that figures do not change"
    text = printed(''.join(''.join(o['text']) for o in outputs if o['output_type']=='stream' and o['name']=='stdout'))
    return '\n'.join(filter(None, [text.strip(), *sorted(shown(o['data']) for o in outputs if 'data' in o)]))

def parts(s):
    "Words, and numbers as (value, one unit of the last digit that is shown; 0 for whole numbers)"
    for o in varies: s = o.sub('…', s)
    words = re.split(rf'(?<![\w.])({number})(?!\w)', re.sub(r'[\s─-]*\n\s*|\s+', ' ', s))
    def unit(n):
        digits,_,e = n.partition('e')
        return 10.**(int(e or 0)-len(digits.partition('.')[2])) if '.' in n or e else 0
    return [o.strip() for o in words[::2]],[(float(o.replace(',', '')), unit(o)) for o in words[1::2]]

def same(a, b, trained=False):
    "Do two texts say the same, as far as they can?"
    if trained: a,b = (re.sub(classes, '…', o) for o in (a,b))
    (words,xs),(others,ys) = parts(a),parts(b)
    near = (abs(x-y)<=(max(atol, u, v, rtol*max(abs(x), abs(y))) if u or v else 0) for (x,u),(y,v) in zip(xs, ys))
    return words==others and (trained or all(near))

class Compared(CaptureShell):
    "A shell that keeps what differs from the outputs that its notebook had"
    def __init__(self, path):
        self.name,self.differ,self.trained = os.path.relpath(path, nbdev.test.get_config().config_path),[],False
        super().__init__(path)

    def run_all(self, nb, **kwargs):
        code,saved = [c for c in nb.cells if c.cell_type=='code'],{}
        found = self.name.split('/')[-2] in slow and re.search(needs, '\n'.join(c.source for c in code))
        if found: return print(f'{self.name} is not run: it needs the images of CIFAR-10')
        for c in code: saved[c.idx_],c.outputs = c.get('outputs', []),[]
        def _compare(c):
            if self.exc or c.cell_type!='code': return
            directives = c.directives_ or {}
            self.trained |= 'export' not in directives and bool(re.search(trains, c.source))
            old,new = said(saved[c.idx_]),said(c.outputs)
            if 'measured' in directives or same(old, new, self.trained): return
            lines = difflib.unified_diff(old.splitlines(), new.splitlines(), 'saved', 'now', lineterm='', n=1)
            self.differ.append('\n'.join([f'{self.name}, cell {c.idx_+1}, says something else than what is saved in it:', *lines]))
        super().run_all(nb, postproc=_compare, **kwargs)
        if self.differ: raise AssertionError

    def prettytb(self, fname=None): return '\n\n'.join([*self.differ, mend.format(self.name)]) if self.differ else super().prettytb(fname)

if __name__=='__main__':
    multiprocessing.set_start_method('fork', force=True)  # so that the processes have this shell too
    pandas.set_option('display.max_columns', 20)  # as in Jupyter
    nbdev.test.CaptureShell = Compared
    nbdev.test.nbdev_test(*sys.argv[1:2], n_workers=2, ignore_fname='')
