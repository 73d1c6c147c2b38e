"What makes a training faster changes nothing else"
import os,shutil
import pytest,torch
from fastai.basics import Callback
from safetensors.torch import load_file
from cifar_fast.data import load_images
from cifar_fast.recipes import get_recipe
from cifar_fast.runs import Run
from cifar_fast.train import recipe_learner,train_recipe

def trained(folder, out, **how):
    "Weights and losses of two epochs of a small ResNet-9"
    r = get_recipe('dawn10').replace(data=str(folder), epochs=2, bs=24, lr=.05, model_args=dict(width=8, scale=.125))
    train_recipe(r, out, precision='fp32', quiet=True, **how)
    return load_file(out/'model.safetensors'),[s['loss'] for s in Run(out).read_table('steps.csv')]

@pytest.mark.skipif(not (os.environ.get('CIFAR_FAST_SLOW') and shutil.which('g++')), reason='minutes of compiling: set CIFAR_FAST_SLOW=1')
def test_compile(folder, tmp_path):
    "Compiled arithmetic rounds differently, and no more than that"
    a,losses = trained(folder, tmp_path/'plain')
    b,compiled = trained(folder, tmp_path/'compiled', compile=True)
    assert compiled==pytest.approx(losses, abs=1e-4)
    for k in a: torch.testing.assert_close(a[k], b[k], atol=1e-3, rtol=1e-3)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('how', [dict(graph=True), dict(compile=True), dict(compile=True, graph=True)], ids=str)
def test_on_cuda(folder, tmp_path, how):
    "Graphs replay what was recorded, compiled or not"
    a,losses = trained(folder, tmp_path/'plain', device='cuda')
    b,fast = trained(folder, tmp_path/'fast', device='cuda', **how)
    assert fast==pytest.approx(losses, abs=1e-3)
    for k in a: torch.testing.assert_close(a[k], b[k], atol=1e-2, rtol=1e-2)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_no_batch_waits_on_cuda(folder, tmp_path):
    "PyTorch raises an error if anything between two batches waits for the GPU"
    class NoWaiting(Callback):
        order,run_valid = -100,False
        def before_batch(self):
            if self.iter==1: torch.cuda.set_sync_debug_mode('error')
        def after_train(self): torch.cuda.set_sync_debug_mode('default')
    learn = recipe_learner(get_recipe('dawn10').replace(bs=8, model_args=dict(width=8)), load_images(folder), device='cuda')
    try:
        with learn.no_bar(), learn.no_logging(): learn.fit(1, .01, cbs=NoWaiting())
    finally: torch.cuda.set_sync_debug_mode('default')
    assert len(learn.history.steps)==9
