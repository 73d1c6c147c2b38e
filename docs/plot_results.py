"""Draws docs/images/results.svg, the curves of docs/results.md, from the folders of real runs: `python docs/plot_results.py [RUNS]`

RUNS holds `dawn10`, `dilated_best`, and `speedrun` and `fast` with a folder for each seed, as `cifar_fast_train` left them. One more recipe
is a line in `runs`."""
import sys
from pathlib import Path
import matplotlib.pyplot as plt
from fastcore.all import *
from cifar_fast.bench import run_flops
from cifar_fast.runs import Run

root = Path(__file__).resolve().parent
runs = dict(speedrun='speedrun/seed*', fast='fast/seed*', dawn10='dawn10', dilated_best='dilated_best')
plt.rcParams.update({'svg.hashsalt':'results', 'svg.fonttype':'none', 'font.size':9})

def draw(folder):
    fig,axs = plt.subplots(1, 2, figsize=(8,3.2), sharey=True, layout='constrained')
    for (name,pat),c in zip(runs.items(), ('tab:blue','tab:orange','tab:green','tab:red','tab:purple')):
        for i,path in enumerate(sorted(Path(folder).glob(pat))):
            run = Run(path)
            rows = run.read_table('history.csv')
            accs,label = [100*o['test_accuracy'] for o in rows],name if i==0 else None
            for ax,xs in zip(axs, ([o['epoch'] for o in rows],run_flops(run)/1e15)): ax.plot(xs, accs, 'o-', c=c, ms=2, lw=1, label=label)
    axs[0].set(xlabel='epochs', ylabel='test accuracy, %', ylim=(50,92))
    axs[1].set(xlabel='FLOPs of the training, PFLOP (logarithmic)', xscale='log')
    axs[1].legend(loc='lower right')
    for ax in axs: ax.grid(alpha=.3)
    return fig

if __name__=='__main__':
    fig = draw(sys.argv[1] if len(sys.argv)>1 else root.parent/'nbs/tutorials/runs')
    fig.savefig(root/'images/results.svg', metadata=dict(Date=None))
