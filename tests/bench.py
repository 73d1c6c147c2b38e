"""Images per second, side by side: `python tests/bench.py loader` or `gradcam`; training is measured by `cifar_fast_bench`

A benchmark, not a test: run it on an idle machine."""
import os,platform,statistics,sys,time
from itertools import product
from importlib.metadata import version
import numpy as np

bs,repeats = 512,5

def images(n):
    from cifar_fast.data import ImageArrays
    rng = np.random.default_rng(0)
    x,y = rng.integers(0, 256, (n,32,32,3), dtype=np.uint8),np.arange(n)%10
    return ImageArrays(x, y, x[:bs], y[:bs], [str(i) for i in range(10)], 'noise', '-')

def show(title, rates, base):
    print(f'\n{title}\n{platform.machine()}, {os.cpu_count()} cores; ' + ', '.join(f'{o} {version(o)}' for o in ('torch','fastai','albumentations')))
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

def stock_dls(ims, compose):
    "fastai's own way, as its Albumentations tutorial has it: PIL images in and out, one transform after another"
    from fastai.vision.all import Categorize,Datasets,IntToFloatTensor,ItemGetter,ItemTransform,Normalize,PILImage,ToTensor
    from cifar_fast.core import cifar10_stats
    class Documented(ItemTransform):
        order = 2
        def encodes(self, b): return (PILImage.create(compose(image=np.array(b[0]))['image']), *b[1:])
    items = [(PILImage.create(x),int(y)) for x,y in zip(ims.train_x, ims.train_y)]
    ds = Datasets(items, [[ItemGetter(0)],[ItemGetter(1),Categorize()]], splits=[range(len(items)),range(bs)])
    return ds.dataloaders(bs=bs, num_workers=0, device='cpu', after_item=[Documented(),ToTensor()],
                          after_batch=[IntToFloatTensor(),Normalize.from_stats(*cifar10_stats, cuda=False)])

# --- the item pipeline against the bare Compose ---------------------------------------------------------------------

def loader(n=8*bs):
    import torch
    from cifar_fast.all import cifar_dls,get_policy
    import albumentations as A
    torch.set_num_threads(1)
    ims,compose = images(n),A.Compose(get_policy('assignment'), strict=True)
    ours,stock = cifar_dls(ims, bs=bs, policy='assignment', device='cpu').train,stock_dls(ims, compose).train
    def bare():
        for x in ims.train_x: compose(image=x)
    def drain(dl):
        for b in dl: pass
    ways = {'bare A.Compose': bare, 'cifar_dls, 0 workers': lambda: drain(ours), 'fastai with PIL images': lambda: drain(stock)}
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
        ways = {'grad_cam': lambda: grad_cam(net, x, layers), 'the package grad-cam': lambda: package(x, layers)}
        title = f"Grad-CAM of {n} images by ResNet-9 at {', '.join(layers)}; fp32, {torch.get_num_threads()} threads\n{layout}"
        show(title, race(ways, n), 'the package grad-cam')

if __name__=='__main__': dict(loader=loader, gradcam=gradcam)[sys.argv[1]]()
