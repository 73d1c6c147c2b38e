"""The project's accuracies, from one place: `python docs/tables.py [--machine TEXT] [--busy] [RUN...]`

`docs/results/runs.csv` has a row for every run that is told of, `docs/results/epochs.csv` one for each of their epochs. RUNs are
added to both. Then the tables between `<!-- table: NAME -->` and `<!-- end -->` are filled from the first, wherever they stand, and
the curves are drawn from the second."""
import json,re
from argparse import ArgumentParser
from pathlib import Path
import pandas as pd

root = Path(__file__).resolve().parent.parent
runs_csv,epochs_csv = (root/f'docs/results/{o}.csv' for o in ('runs','epochs'))
pages = 'docs/results.md','nbs/index.ipynb'
nets = dict(resnet9='ResNet-9', resnet18='ResNet-18', dilated_net='dilated net', speed_net='speed net')
copies = {'44c28a2a373a3177':'original pixels'}
claims = {  # of the five published systems, one run each: who, the net, epochs, batch size, accuracy
    's000': ('000, divyanshuraj6815 (EVA6)', 'ResNet-9 with all biases, 6,575,370', 24, 512, 91.23),
    's001': ('001, Madhur-1 (ERA-v1)', 'dilated net, 157,110', 25, 64, 85.43),
    's002': ('002, hardayaleva5 (EVA5)', 'ResNet-18, 11,173,962', 20, 32, 88.56),
    's003': ('003, ganeshkcs (EVA4)', 'ResNet-9, 6,573,120', 24, 512, 93.18),
    's004': ('004, Gilf641 (EVA4)', 'ResNet-9 with some biases, 6,574,090', 24, 512, 91.58)}
key = ['recipe','fingerprint','machine','seed']

def read(path): return pd.read_csv(path, dtype=dict(torch=str, python=str))

def add(paths, machine, busy):
    "Put finished runs into both files, in place of those of the same recipe, data, machine and seed"
    from cifar_fast.costs import run_flops
    from cifar_fast.runs import find_runs,run_results
    from cifar_fast.models import get_model
    rows,epochs = [],[]
    for run in find_runs(paths):
        c,res,flops = run.config,run_results(run),run_flops(run)/1e15
        if c['valid_pct']: raise SystemExit(f'{run}: trained without its validation images (valid_pct), which no figure here is')
        own = dict(recipe=c['recipe']['name'], fingerprint=c['data']['fingerprint'], machine=machine, seed=c['seed'])
        net = get_model(c['recipe']['model'], len(c['data']['classes']), **c['recipe']['model_args'])
        params = sum(p.numel() for n,p in net.named_parameters() if p.requires_grad and 'whiten' not in n)  # that are trained
        tta = round(100*res['tta_accuracy'], 2) if 'tta_accuracy' in res else None
        rows.append(dict(own, net=c['recipe']['model'], parameters=params, epochs=res['epochs'], pflop=round(flops[-1], 4),
                         accuracy=round(100*res['test_accuracy'], 2), tta=tta,
                         seconds=round(res['train_seconds']), busy=busy, precision=c['precision'], python=c['python'],
                         torch=c['versions']['torch'], fastai=c['versions']['fastai']))
        epochs += [dict(own, epoch=o['epoch'], pflop=round(f, 4), accuracy=round(100*o['test_accuracy'], 2))
                   for o,f in zip(run.read_table('history.csv'), flops)]
    for path,new in (runs_csv,rows),(epochs_csv,epochs):
        new,old = pd.DataFrame(new),read(path)
        old = old[~old.set_index(key).index.isin(new.set_index(key).index)]
        pd.concat([old, new] if len(old) else [new]).sort_values(key, kind='stable').to_csv(path, index=False)

def spread(xs, unit, digits=2):
    "Mean and, of several, standard deviation (n-1)"
    xs = xs.dropna()
    if not len(xs): return ''
    return f'{xs.mean():,.{digits}f}{f" ± {xs.std():,.{digits}f}" if len(xs)>1 else ""} {unit}'

def seconds(g):
    "Of the quiet runs, where there is one"
    quiet = g[~g.busy]
    return spread(quiet.seconds, 's', 0) if len(quiet) else spread(g.seconds, 's', 0)+', busy'

def markdown(rows):
    "Of dicts with the same keys; figures stand at the right"
    left = 'recipe','net, parameters','data','system','machine','precision','versions'
    lines = [list(rows[0]), ['---' if k in left else '--:' for k in rows[0]], *[o.values() for o in rows]]
    return '\n'.join('| '+' | '.join(map(str, o))+' |' for o in lines)

def tables():
    "All tables, by name"
    runs = read(runs_csv)
    runs['data'] = runs.fingerprint.map(copies)
    groups = [g for _,g in runs.groupby(['fingerprint','recipe','machine'])]
    def about(r):
        return {'recipe': f'`{r.recipe}`', 'net, parameters': f'{nets[r.net]}, {r.parameters:,}', 'epochs': r.epochs, 'data': r.data}
    def figures(g):
        return {'accuracy': spread(g.accuracy, '%'), 'with test-time augmentation': spread(g.tta, '%'),
                'FLOPs': f'{g.pflop.iloc[0]:.3g} PFLOP', 'training': seconds(g)}
    def claim(name, system, net, epochs, bs, claimed):
        g = runs[(runs.recipe==name)&(runs.data=='original pixels')]
        return {'system': system, 'recipe': f'`{name}`', 'net, parameters': net, 'epochs': epochs, 'batch': bs,
                '**claimed**': f'{claimed:.2f} %', 'reached here': spread(g.accuracy, '%'), 'n': len(g)}
    conditions = runs.groupby(['data','machine','precision','python','torch','fastai'], sort=False)
    return dict(
        summary=markdown([about(g.iloc[0])|{'n': len(g)}|figures(g) for g in groups]),
        runs=markdown([{'recipe': f'`{r.recipe}`', 'data': r.data, 'seed': r.seed}|figures(g.loc[[r.Index]])
                       for g in groups for r in g.itertuples()]),
        claims=markdown([claim(k, *o) for k,o in claims.items()]),
        conditions=markdown([{'recipe': ', '.join(f'`{o}`' for o in g.recipe.unique()), 'data': d, 'machine': m, 'precision': p,
                              'versions': f'Python {py}, torch {t}, fastai {f}'} for (d,m,p,py,t,f),g in conditions]))

def files():
    "The pages with their tables as they ought to be: names and texts"
    filled = tables()
    def fill(text):
        new = lambda m: f'<!-- table: {m[1]} -->\n\n{filled[m[1]]}\n\n<!-- end -->'
        return re.sub(r'<!-- table: (\w+) -->.*?<!-- end -->', new, text, flags=re.S)
    def page(text):
        if not text.startswith('{'): return fill(text)
        nb = json.loads(text)
        for c in nb['cells']:
            if c['cell_type']=='markdown': c['source'] = fill(''.join(c['source'])).splitlines(keepends=True)
        return json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True)+'\n'
    return {o: page((root/o).read_text(encoding='utf-8')) for o in pages}

def draw():
    "The curves of all runs on the original pixels"
    import matplotlib.pyplot as plt
    plt.rcParams.update({'svg.hashsalt':'results', 'svg.fonttype':'none', 'font.size':9})
    rows = read(epochs_csv)
    fig,axs = plt.subplots(1, 2, figsize=(8,3.2), sharey=True, layout='constrained')
    for i,(name,g) in enumerate(rows.groupby('recipe')):
        for j,(_,run) in enumerate(g.groupby(key)):
            for ax,x in zip(axs, ('epoch','pflop')): ax.plot(run[x], run.accuracy, 'o-', c=f'C{i}', ms=2, lw=1, label=None if j else name)
    axs[0].set(xlabel='epochs', ylabel='test accuracy, %', ylim=(60,96))
    axs[1].set(xlabel='FLOPs of the training, PFLOP (logarithmic)', xscale='log')
    axs[1].legend(loc='lower right')
    for ax in axs: ax.grid(alpha=.3)
    fig.savefig(root/'docs/images/results.svg', metadata=dict(Date=None))

if __name__=='__main__':
    p = ArgumentParser(description='Add finished runs to the project\'s figures, and fill its tables')
    p.add_argument('runs', nargs='*')
    p.add_argument('--machine', help='what they ran on, such as "two cores of an AMD EPYC"')
    p.add_argument('--busy', action='store_true', help='other work ran beside them')
    a = p.parse_args()
    if a.runs and not a.machine: p.error('--machine: what did they run on?')
    if a.runs:
        add(a.runs, a.machine, a.busy)
        draw()
    for name,text in files().items(): (root/name).write_text(text, encoding='utf-8')
