"The comparison of saved outputs with new ones: what it must see, and what it must not"
import json,subprocess,sys
from pathlib import Path
import pytest
pytest.importorskip('nbdev', reason='notebooks run where the authors\' tools are')
from check_outputs import printed,said,same

root = Path(__file__).parent.parent

@pytest.mark.parametrize('a,b', [
    ('accuracy 47.55%', 'accuracy 47.50%'), ('loss 1.3416', 'loss 1.3415'), ('differs by 7e-07', 'differs by 6e-07'),
    ("[0, 2.3012513054741754, '00:02']", "[0, 2.3012513054741999, '01:17']"), ('written to /tmp/a1/run', 'written to /home/me/run'),
    ('training time  5 s\n1,246 images/s', 'training time  17 s\n98 images/s'), ('torch 2.15.0', 'torch 2.16.1+cpu'),
    ("{'train_seconds': 7.47, 'n': 3}", "{'train_seconds': 11.2, 'n': 3}"), ('<A at 0x7f00aa11bb22>', '<A at 0x7f33aa11bb22>'),
    ('name  value\n-----------\na         9.99', 'name  value\n------------\na         10.00'),
    ('made on 2026-11-21 15:56', 'made on 2027-01-02 08:01')])
def test_what_may_vary(a, b): assert same(a, b)

@pytest.mark.parametrize('a,b', [
    ('accuracy 47.55%', 'accuracy 49.55%'), ('2000 maps, 0 of them empty', '2000 maps, 1 of them empty'), ('true', 'false'), ('', 'new'),
    ('cat 0.91', 'dog 0.91'), ('[1, 2]', '[1, 2, 3]'), ('flipped: 0.505', 'flipped: -0.505'), ('(9ff294040caa0822)', '(9ff294040caa0823)'),
    ('6,573,120 parameters', '6,573,121 parameters'), ('differs by 7e-07', 'differs by 7e-04'),
    ('32×32', '28×28'), ('training time 5 s', 'validation time 5 s')])
def test_what_must_not(a, b): assert not same(a, b)

def test_after_training_words_count():
    a,b = 'accuracy 47.55%, most often star for cross','accuracy 57.30%, most often ring for arrow'
    assert same(a, b, trained=True) and not same(a, b)
    assert not same(a, 'loss 57.30%, most often ring for arrow', trained=True) and not same(a, 'accuracy 57.30%', trained=True)

def test_text_of_outputs():
    "Streams are joined, results sorted, bars and pictures left out, Markdown read where there is nothing else"
    outs = [dict(output_type='stream', name='stdout', text=['█\r\r |----| 0.00% [0/1 00:00<?]\r |████| 100.00%\r      \r', 'one\n']),
            dict(output_type='display_data', data={'image/png':'aGk=','text/plain':['<Figure size 700x390 with 18 Axes>']}),
            dict(output_type='stream', name='stderr', text='a warning'), dict(output_type='stream', name='stdout', text='two\n'),
            dict(output_type='execute_result', data={'text/plain':['b']}), dict(output_type='display_data', data={'text/plain':['a']}),
            dict(output_type='display_data', data={'text/plain':['<IPython.core.display.HTML object>'],'text/html':['<div>']}),
            dict(output_type='execute_result', data={'text/plain':['  c \\\n0  1 '],'text/html':['<table><td>c 0 1</td></table>']}),
            dict(output_type='display_data', data={'text/plain':['<IPython.core.display.Markdown object>'],'text/markdown':['| x |']})]
    assert said(outs).split()=='one two c 0 1 a b | x |'.split()
    assert printed('epoch     train_loss  valid_loss  time    \n0         2.317289    2.306665    00:04     \nend') == 'end'

def notebook(*cells):
    "Cells are source and what it printed"
    outs = [[dict(output_type='stream', name='stdout', text=o)] if o else [] for _,o in cells]
    cells = [dict(cell_type='code', metadata={}, source=s, execution_count=None, outputs=o) for (s,_),o in zip(cells, outs)]
    kernel = dict(display_name='python3', language='python', name='python3')
    return json.dumps(dict(cells=cells, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5))

@pytest.fixture
def check(tmp_path):
    "Check one notebook, in a repository that has a tutorial too"
    for o in ('settings.ini','pyproject.toml'): (tmp_path/o).write_text((root/o).read_text(encoding='utf-8'))
    for o in ('nbs/tutorials','cifar_fast'): (tmp_path/o).mkdir(parents=True)
    (tmp_path/'nbs/tutorials/01_b.ipynb').write_text(notebook(('images = load_images("cifar10")', 'no\n')))
    def _check(*cells):
        (tmp_path/'nbs/00_a.ipynb').write_text(notebook(*cells))
        p = subprocess.run([sys.executable, root/'tests'/'check_outputs.py'], cwd=tmp_path/'nbs', capture_output=True, text=True)
        return p.returncode,p.stdout+p.stderr
    return _check

good = ('x = 6*7\nprint(x)', '42\n')

def test_what_is_current_passes(check):
    "Measured times, accuracies after training, and a tutorial whose images are not there do no harm"
    fit = 'from types import SimpleNamespace\nlearn = SimpleNamespace(fit=print)\nlearn.fit(.3)'
    code,said = check(good, ('#| measured\nimport time\nprint(time.time())', 'yesterday\n'), (fit, '0.9\n'))
    assert code==0 and 'nbs/tutorials/01_b.ipynb is not run: it needs the images of CIFAR-10' in said, said

def test_a_planted_change_fails(check):
    "From end to end: the notebook and the cell are named, both texts are shown, and how to mend it"
    code,said = check(good, ('print("the answer is", x)', 'the answer is 54\n'), ('x', None), ('pass', 'gone\n'))
    assert code==1
    for o in ('00_a.ipynb, cell 2','-the answer is 54','+the answer is 42','00_a.ipynb, cell 3','+42','00_a.ipynb, cell 4','-gone',
              'execute --inplace nbs/00_a.ipynb'): assert o in said, said

def test_an_error_fails(check):
    code,said = check(good, ('1/0', None))
    assert code==1 and 'ZeroDivisionError' in said
