"""Draws docs/images/results.svg, the curves of docs/results.md, from the folders of real runs: `python docs/plot_results.py [RUNS]`

RUNS holds `fast`, `dawn10`, `dilated_best` and `speedrun/seed0…2`, as `cifar_fast_train` left them. One more recipe is a line in `runs`."""
import sys
from pathlib import Path
import matplotlib.pyplot as plt
from fastcore.all import *
from cifar_fast.bench import training_flops
from cifar_fast.recipes import run_model,run_recipe
from cifar_fast.runs import Run

root = Path(__file__).resolve().parent
runs = dict(speedrun='speedrun/seed*', fast='fast', dawn10='dawn10', dilated_best='dilated_best')
plt.rcParams.update({'svg.hashsalt':'results', 'svg.fonttype':'none', 'font.size':9})

def arithmetic(run):
    "PFLOP of training at the end of each epoch"
    r,model = run_recipe(run),run_model(run)
    if hasattr(model, 'whiten'): model.whiten.requires_grad_(False)
    def side(epoch): return ([32]+[s for at,s in r.sizes if at<=epoch/r.epochs])[-1]
    sides = L(run.read_table('steps.csv')).map(lambda o: (int(o['epoch']+1e-6),side(o['epoch'])))
    cost = {s: training_flops(model, s)*r.bs/1e15 for s in {s for _,s in sides}}
    return [sum(cost[s] for e,s in sides if e<=i) for i in range(r.epochs)]

def draw(folder):
    fig,axs = plt.subplots(1, 2, figsize=(8,3.2), sharey=True, layout='constrained')
    for (name,pat),c in zip(runs.items(), ('tab:blue','tab:orange','tab:green','tab:red','tab:purple')):
        for i,path in enumerate(sorted(Path(folder).glob(pat))):
            run = Run(path)
            rows = run.read_table('history.csv')
            accs,label = [100*o['test_accuracy'] for o in rows],name if i==0 else None
            for ax,xs in zip(axs, ([o['epoch'] for o in rows],arithmetic(run))): ax.plot(xs, accs, 'o-', c=c, ms=2, lw=1, label=label)
    axs[0].set(xlabel='epochs', ylabel='test accuracy, %', ylim=(50,92))
    axs[1].set(xlabel='arithmetic of the training, PFLOP (logarithmic)', xscale='log')
    axs[1].legend(loc='lower right')
    for ax in axs: ax.grid(alpha=.3)
    return fig

if __name__=='__main__':
    fig = draw(sys.argv[1] if len(sys.argv)>1 else root.parent/'nbs/tutorials/runs')
    fig.savefig(root/'images/results.svg', metadata=dict(Date=None))
