"""Classes of very different sizes: `python docs/balance.py ARCHIVE` trains on an unbalanced copy of CIFAR-10 (2,000 images
of the first class, 40 of the last) as it is, with `--balance`, and with class weights in the loss; accuracy on 200 test images a class"""
import statistics,sys
import numpy as np,torch
from cifar_fast.data import ImageArrays,load_images
from cifar_fast.interpret import Predictions
from cifar_fast.parts import CrossEntropy
from cifar_fast.recipes import get_recipe
from cifar_fast.train import recipe_learner

ims,rng = load_images(sys.argv[1]),np.random.default_rng(0)
counts = [round(2000*(40/2000)**(i/9)) for i in range(10)]
def some(y, counts): return np.sort(np.concatenate([rng.permutation(np.flatnonzero(y==c))[:n] for c,n in enumerate(counts)]))
train,test = some(ims.train_y, counts),some(ims.test_y, [200]*10)
images = ImageArrays(ims.train_x[train], ims.train_y[train], ims.test_x[test], ims.test_y[test], ims.vocab, 'unbalanced')

def scores(way, seed):
    "Accuracy on all test images, and on those of the five rare classes"
    r = get_recipe('demo').replace(epochs=8, policy='flip_crop', balance=way=='--balance')
    learn = recipe_learner(r, images, seed=seed)
    weights = torch.tensor(sum(counts)/10/np.array(counts), dtype=torch.float32)
    if way=='class weights': learn.loss_func = CrossEntropy(weight=weights)
    with learn.no_bar(), learn.no_logging(): learn.fit_recipe(r)
    p = Predictions.from_learner(learn)
    return p.balanced_accuracy,p.correct[p.targs>4].mean()

print(images, counts)
for way in ('as it is','--balance','class weights'):
    both = [*zip(*(scores(way, seed) for seed in range(3)))]
    print(way, *(f'{statistics.mean(o):.1%} ± {statistics.stdev(o):.1%}' for o in both), flush=True)
