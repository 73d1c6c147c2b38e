"""What each trick of a recipe brings, measured by leaving it out: `python docs/ablate.py speedrun ARCHIVE OUT [NAME=VALUE …]`

Every variant is trained with the same two seeds. The values at the end, of fields of the recipe and as Python writes them, make it
affordable, such as `epochs=5 model_args="{'width':32}"`."""
import ast,sys
from pathlib import Path
from cifar_fast.augment import policies
from cifar_fast.recipes import get_recipe
from cifar_fast.train import train_seeds

def flipped(name): return lambda t, size, fill: [*policies[name](t, size, fill), t.flip()]
policies.update(flip_crop2=flipped('crop2'))

def variants(r):
    "The recipe, and the recipe without each of its tricks"
    yield 'all of it',r
    args = r.model_args
    if args.get('whiten', r.model=='speed_net'): yield 'a learned first layer',r.replace(model_args=dict(args, whiten=False))
    if r.alternating_flip: yield 'random flips',r.replace(alternating_flip=False, policy=f'flip_{r.policy}')
    if r.label_smoothing: yield 'no label smoothing',r.replace(label_smoothing=0.)
    if r.progressive_resizing: yield 'full size throughout',r.replace(progressive_resizing=())
    if r.mixup: yield 'no MixUp',r.replace(mixup=0.)
    if r.cutmix: yield 'no CutMix',r.replace(cutmix=0.)
    if r.ema: yield 'no EMA',r.replace(ema=0.)

def mean_sd(res, kind=''): return f"{res[f'{kind}mean']:.2%} ± {res[f'{kind}sd']:.2%}"

name,data,out,*values = sys.argv[1:]
base = get_recipe(name).replace(data=data, **{k: ast.literal_eval(v) for k,v in (o.split('=', 1) for o in values)})
print(f'{"":<24}{"accuracy":>18}{"test-time augmentation":>24}{"training":>10}')
for label,r in variants(base):
    res = train_seeds(r, Path(out)/label.replace(' ', '_'), 2, quiet=True)
    print(f"{label:<24}{mean_sd(res):>18}{mean_sd(res, 'tta_') if r.tta else '':>24}{res['seconds_mean']:>8.0f} s", flush=True)
