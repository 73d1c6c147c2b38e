"""Images per second, side by side: `python docs/bench.py loader` or `gradcam`; training is measured by `cifar_fast_bench`

Run it on an idle machine."""
import os,platform,statistics,sys,time
from functools import partial
from itertools import product
from importlib.metadata import version

bs,repeats = 512,5

def show(title, rates, base):
    versions = ', '.join(f'{o} {version(o)}' for o in ('torch','fastai','albumentations'))
    print(f'\n{title}\n{platform.machine()}, {os.cpu_count()} cores; {versions}')
    for k,v in rates.items():
        ratio = statistics.median(a/b for a,b in zip(v, rates[base]))
        print(f'{k:<44}{statistics.median(v):9.1f} images/s  ({min(v):.1f} to {max(v):.1f})  {ratio:6.2f} of {base}')

def race(ways, n):
    "Images per second of each of `ways`, functions that take `n` images; all in turn, the first round to warm up"
    rates = {k: [] for k in ways}
    for i in range(repeats+1):
        for name,f in ways.items():
            start = time.perf_counter()
            f()
            if i: rates[name].append(n/(time.perf_counter()-start))
    return rates

# --- the item pipeline against the bare Compose ---------------------------------------------------------------------

def loader(n=8*bs):
    import torch
    from cifar_fast.all import cifar_dls,get_policy,get_recipe
    from cifar_fast.bench import noise_images,stock_learner
    import albumentations as A
    torch.set_num_threads(1)
    ims,compose,cpu = noise_images(n, bs, 32),A.Compose(get_policy('assignment'), strict=True),torch.device('cpu')
    stock = stock_learner(get_recipe('assignment'), ims, cpu).dls.train
    items,whole = (cifar_dls(ims, bs=bs, policy='assignment', device=cpu, pipeline=o).train for o in ('item','device'))
    def bare():
        for x in ims.train_x: compose(image=x)
    def drain(dl):
        for b in dl: pass
    ways = {'bare A.Compose': bare, 'cifar_dls, one by one, 0 workers': lambda: drain(items),
            'cifar_dls, whole batches': lambda: drain(whole), 'fastai with PIL images': lambda: drain(stock)}
    show('Augmented, normalised batches of 512 (policy: assignment), one thread', race(ways, n), 'bare A.Compose')

# --- Grad-CAM against the grad-cam package --------------------------------------------------------------------------

def gradcam(n=64):
    import torch
    from cifar_fast.all import cam_layers,grad_cam,resnet9
    from pytorch_grad_cam import GradCAM
    torch.manual_seed(0)
    net,xs = resnet9().eval(),torch.randn(n,3,32,32)
    def package(x, layers):
        for k in layers:
            with GradCAM(model=net, target_layers=[net.get_submodule(k)]) as cam: cam(input_tensor=x, targets=None)
    last = xs.to(memory_format=torch.channels_last)
    layouts = {'channels first, as PyTorch makes them': xs, 'channels last, as image_batch gives them': last}
    for (layout,x),layers in product(layouts.items(), (['res2'],cam_layers(net, xs))):
        ways = {'grad_cam': partial(grad_cam, net, x, layers), 'the package grad-cam': partial(package, x, layers)}
        title = f"Grad-CAM of {n} images by ResNet-9 at {', '.join(layers)}; fp32, {torch.get_num_threads()} threads\n{layout}"
        show(title, race(ways, n), 'the package grad-cam')

if __name__=='__main__': dict(loader=loader, gradcam=gradcam)[sys.argv[1]]()
