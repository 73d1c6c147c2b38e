"The device pipeline is the item pipeline: the same images from the same numbers, the same numbers, and nothing else to tell them apart"
import contextlib,io,warnings
import numpy as np,pytest,torch
from scipy.stats import chi2_contingency,chisquare,ks_2samp,kstest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils._python_dispatch import TorchDispatchMode
from cifar_fast.all import *
from cifar_fast.device import *
from fastai.vision.all import *
import albumentations as A
import torch.nn.functional as F
torch.set_num_threads(1)
for k in [k for k in globals() if k.startswith('test')]: del globals()[k]  # fastcore's and fastai's functions of that name are no tests

exact = 'assignment flip_crop crop crop2 none s003 s004'.split()
affine = 's000 s001 s002'.split()
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')

@pytest.fixture(scope='module')
def ims(own_cache): return load_images('shapes10')

@pytest.fixture(params=[1,4])
def way(request, monkeypatch):
    "How many batches a `DeviceDL` makes together: one, as on a CPU, or several, as on a GPU"
    monkeypatch.setattr(DeviceDL, '_batches_at_once', lambda self, xs: self.at_once or request.param)
    return request.param

# --- Albumentations, and what it has drawn -------------------------------------------------------------------------

def _crop(p):
    x,y = p['crop_coords'][:2]
    return dict(top=y, left=x)
def _hole(p):
    x,y = p['holes'][0][:2] if p else (0,0)
    return dict(top=y, left=x, cut=bool(p))
def _affine(p):
    if not p: return dict(dx=0, dy=0, scale=1., degrees=0., change=False)
    m,c = p['matrix'],(np.array(p['shape'][:2])[::-1]-1)/2
    dx,dy = m[:2,:2]@c+m[:2,2]-c
    scale,angle = np.hypot(m[0,0], m[0,1]),np.arctan2(m[0,1], m[0,0])
    return dict(dx=round(dx), dy=round(dy), scale=float(scale), degrees=float(np.degrees(angle)), change=True)
_words = {BatchPad: lambda p: {}, BatchCrop: _crop, BatchFlip: lambda p: dict(flip=bool(p)), BatchCutout: _hole, BatchAffine: _affine}

def replay(augs, tfms, x, seed=0):
    "Images by Albumentations, one transform after the other, and for each batch transform the parameters that were drawn"
    aug = A.Compose(augs, seed=seed)
    use_global_rng(aug)
    set_seed(seed)
    out,drawn = [],[[] for _ in tfms]
    pads = [a for a,b in zip(augs, augs[1:]) if isinstance(a, A.PadIfNeeded) and isinstance(b, (A.RandomCrop,A.CenterCrop))]
    own = [t for t in augs if not any(t is p for p in pads)]
    assert len(own)==len(tfms)
    for im in x:
        out.append(aug(image=im)['image'])
        for rows,tfm,t in zip(drawn, tfms, own): rows.append(_words[type(tfm)](t.get_applied_params()))
    params = [{k: torch.tensor([r[k] for r in rows]) for k in (rows[0] if rows else {})} for rows in drawn]
    return np.stack(out),params

def both(policy, size=32): return get_policy(policy, size),batch_policy(policy, size)

def augment(x, tfms, params=None):
    for i,t in enumerate(tfms): x = t.apply(x, **(params[i] if params else t.draw(*x.shape[:3], x.device)))
    return x

# --- the same images from the same numbers -------------------------------------------------------------------------

@pytest.mark.parametrize('policy', exact)
def test_bit_identical(ims, policy):
    x = ims.train_x[:5000]
    augs,tfms = both(policy)
    out,params = replay(augs, tfms, x)
    assert np.array_equal(augment(torch.from_numpy(x), tfms, params).numpy(), out)

@pytest.mark.parametrize('policy', affine)
def test_affine_within_rounding(ims, policy):
    "Where something is interpolated: mean difference below half a grey level, 999 of 1,000 values within 4; elsewhere nothing differs"
    x = ims.train_x[:5000]
    augs,tfms = both(policy)
    out,params = replay(augs, tfms, x)
    ours = augment(torch.from_numpy(x), tfms, params).numpy()
    change = next(p['change'] for p in params if 'change' in p).numpy()
    assert .15<change.mean()<.55 and np.array_equal(ours[~change], out[~change])
    diff = np.abs(ours[change].astype(int)-out[change])
    assert diff.mean()<.5 and np.quantile(diff, .999)<=4, (diff.mean(), diff.max())

@pytest.mark.parametrize('size', (28,64))
def test_other_sizes_and_odd_shapes(ims, size):
    x = np.random.default_rng(0).integers(0, 256, (100,size,size,3), dtype=np.uint8)
    for policy in exact:
        augs,tfms = both(policy, size)
        out,params = replay(augs, tfms, x)
        assert np.array_equal(augment(torch.from_numpy(x), tfms, params).numpy(), out), policy
    rows = x[:,:size-5]  # more columns than rows, an odd number to pad
    augs = [A.PadIfNeeded(size+3, size+6, border_mode=4), A.RandomCrop(size-9, size-2), A.CenterCrop(size-12, size-5),
            A.HorizontalFlip(p=.3)]
    tfms = [BatchCrop((size-9,size-2), pad_to=(size+3,size+6)),BatchCrop((size-12,size-5), middle=True),BatchFlip(.3)]
    out,params = replay(augs, tfms, rows)
    assert np.array_equal(augment(torch.from_numpy(rows), tfms, params).numpy(), out)

def test_affine_agrees_with_albumentations_alone(ims):
    "Large angles, zooms and shifts, on noise, which any mistake of a fraction of a pixel would change"
    x = np.random.default_rng(0).integers(0, 256, (300,32,32,3), dtype=np.uint8)
    augs = [A.Affine(translate_px=dict(x=(-6,6), y=(-3,3)), scale=(.6,1.5), keep_ratio=True, rotate=(-80,80), p=1, border_mode=4)]
    tfms = [BatchAffine((-6,6), (-3,3), (.6,1.5), (-80,80))]
    out,params = replay(augs, tfms, x)
    diff = np.abs(augment(torch.from_numpy(x), tfms, params).numpy().astype(int)-out)
    assert diff.mean()<1 and np.quantile(diff, .99)<=6
    params[0]['dx'] += 1
    assert np.abs(augment(torch.from_numpy(x), tfms, params).numpy().astype(int)-out).mean()>10  # and the test would see it

# --- the same numbers ----------------------------------------------------------------------------------------------

def uniform(o, n): return chisquare(torch.bincount(o.long().flatten(), minlength=n)).pvalue
def rate(o, p): return chisquare([int(o.sum()), len(o)-int(o.sum())], [p*len(o), (1-p)*len(o)]).pvalue
def independent(a, b):
    a,b = (np.digitize(np.asarray(o, float), np.unique(np.quantile(np.asarray(o, float), [.25,.5,.75]))) for o in (a,b))
    table = np.histogram2d(a, b, bins=(np.arange(a.max()+2), np.arange(b.max()+2)))[0]
    table = table[table.sum(1)>0][:,table.sum(0)>0]
    return 1. if min(table.shape)<2 else chi2_contingency(table).pvalue

def _on(p):
    "Which images a transform changes, and so for which of them its other parameters mean something"
    return p.get('change', p.get('cut', torch.ones(len(next(iter(p.values()))), dtype=torch.bool) if p else None))

def laws(tfms, params, h=32):
    "p-values of what the parameters should be, one for each question"
    ps,cols = {},{}
    for i,(t,p) in enumerate(zip(tfms, params)):
        nm = f'{i} {type(t).__name__}'
        side = max([o.size[0] for o in tfms[:i] if isinstance(o, BatchPad)], default=h)
        if isinstance(t, BatchCrop) and not t.middle:
            room = max(side, (t.pad_to or (0,0))[0])-t.size[0]+1
            for k in ('top','left'): ps[f'{nm} {k}'] = uniform(p[k], room)
            assert p['top'].max()==room-1 and p['left'].max()==room-1
        if isinstance(t, BatchFlip): ps[nm] = rate(p['flip'], t.p)
        if isinstance(t, BatchCutout):
            for k in ('top','left'): ps[f'{nm} {k}'] = uniform(p[k][p['cut']], side-t.side+1)
            if t.p<1: ps[f'{nm} cut'] = rate(p['cut'], t.p)
            else: assert p['cut'].all()
        if isinstance(t, BatchAffine):
            on = p['change']
            ps[f'{nm} change'] = rate(on, t.p)
            for k,(lo,hi) in dict(dx=t.shift_x, dy=t.shift_y).items():
                if hi>lo: ps[f'{nm} {k}'] = uniform(p[k][on]-lo, hi-lo+1)
            for k,(lo,hi) in dict(scale=t.scale, degrees=t.degrees).items():
                if hi>lo: ps[f'{nm} {k}'] = kstest((p[k][on].double().numpy()-lo)/(hi-lo), 'uniform').pvalue
        for k,v in p.items(): cols[f'{nm} {k}'] = (v,_on(p) if k not in ('cut','change') else torch.ones(len(v), dtype=torch.bool))
    for j,(a,(u,m)) in enumerate(cols.items()):
        for b,(v,l) in [*cols.items()][j+1:]: ps[f'{a} and {b}'] = independent(u[m&l], v[m&l])
        u = u[m]
        ps[f'{a} and the next image'] = independent(u[:-1:2], u[1::2])  # pairs that do not overlap
    return ps

def holm(ps):
    "The smallest p-value after Holm's correction, with its name"
    k = min(ps, key=ps.get)
    return min(1., ps[k]*len(ps)),k

@pytest.mark.parametrize('n', (500,100_000), ids=('a batch','a pass'))
@pytest.mark.parametrize('policy', [p for p in exact+affine if p!='none'])
def test_parameters(ims, policy, n):
    augs,tfms = both(policy)
    set_seed(0)
    sizes,x = [],torch.empty(1,32,32,3, dtype=torch.uint8)
    for t in tfms:
        sizes.append(x.shape[1])
        x = t.apply(x, **t.draw(*x.shape[:3], x.device))
    drawn = [[t.draw(n, s, s, torch.device('cpu')) for t,s in zip(tfms, sizes)] for _ in range(100_000//n)]
    ours = [{k: torch.cat([p[k] for p in ps]) for k in ps[0]} for ps in zip(*drawn)]
    p,what = holm(laws(tfms, ours))
    assert p>.01, ('device', what, p)
    theirs = replay(augs, tfms, ims.train_x[:3000], seed=1)[1]
    p,what = holm(laws(tfms, theirs))
    assert p>.01, ('Albumentations', what, p)
    direct = {}
    for a,b in zip(ours, theirs):  # and directly, one against the other
        for k in a:
            one,two = (o[k][... if k in ('cut','change') else _on(o)].double().numpy() for o in (a,b))
            direct[f'{len(direct)} {k}'] = ks_2samp(one, two).pvalue
    assert holm(direct)[0]>.01, holm(direct)

def test_the_laws_can_be_broken():
    "What the tests of the parameters are for: each of these mistakes is seen"
    tfms = batch_policy('assignment')
    def drawn(n=20_000): return [t.draw(n, 32, 32, torch.device('cpu')) for t in tfms]
    def seen(params): return holm(laws(tfms, params))[0]<1e-6
    set_seed(0)
    assert not seen(drawn())
    p = drawn()
    p[0]['top'] = p[0]['left']                                # one number for both
    assert seen(p)
    p = drawn()
    p[1]['flip'] = p[1]['flip'][::2].repeat_interleave(2)     # neighbours alike
    assert seen(p)
    p = drawn()
    p[2]['top'] = p[0]['top']*3                               # the hole follows the crop
    assert seen(p)
    p = drawn()
    p[1]['flip'] = torch.rand(20_000)<.55
    assert seen(p)

# --- nothing else to tell them apart -------------------------------------------------------------------------------

def describe(x, aug, fill=mean_fill):
    "What could differ: pixels that have the colour of holes, the shift and side that explain the pair best and how well, borders, colours"
    hole = (aug==torch.tensor(fill, dtype=torch.uint8)).all(-1).float()
    grey,mid = aug.float().mean(-1),x[:,8:24:2,8:24:2].float().mean(-1)
    shifted = [o[:,8+i:24+i:2,8+j:24+j:2] for o in (grey,grey.flip(2)) for i in range(-4,5) for j in range(-4,5)]
    fit = torch.stack([(o-mid).abs().mean((1,2)) for o in shifted], dim=1)
    best,black = F.one_hot(fit.argmin(1), fit.shape[1]).float(),(aug==0).all(-1).float().mean((1,2))[:,None]
    diff = F.avg_pool2d((aug.float()-x.float()).abs().permute(0,3,1,2), 8).flatten(1)
    return torch.cat((hole.sum(1), hole.sum(2), hole.sum((1,2))[:,None], black, best, fit.min(1).values[:,None], grey[:,[0,-1]].mean(2),
                      grey[:,:,[0,-1]].mean(1), diff, aug.float().mean((1,2))), dim=1).numpy()

def share_right(one, two, x):
    "Share of the pairs of unseen images that a classifier, trained on the others, assigns to the right pipeline; and how many pairs"
    rows,n = np.stack([describe(x, o) for o in (one,two)], axis=1),len(x)//2
    train,test = (o.reshape(-1, o.shape[-1]) for o in (rows[:n],rows[n:]))
    clf = make_pipeline(StandardScaler(), LogisticRegression(C=.003, max_iter=150)).fit(train, np.tile([0,1], n))
    return clf.score(test, np.tile([0,1], len(x)-n)),len(test)

def by_items(ims, augs, n, seed=0):
    tfm = AlbumentationsTransform(augs)
    set_seed(seed)
    return torch.from_numpy(np.stack([tfm.augment_array(im, 0) for im in ims.train_x[:n]]))

def by_loader(ims, policy, n):
    "Images as the loader gives them, before they are normalised"
    tfms = batch_policy(policy)
    ds = ImageItems([*zip(ims.train_x[:n], range(n))], [[ItemGetter(0)],[ItemGetter(1)]], splits=[range(n),[]])
    set_seed(0)
    return torch.cat([x.permute(0,2,3,1).as_subclass(Tensor) for x,_ in DeviceDL(ds.train, bs=250, after_batch=tfms, device='cpu')])

@pytest.mark.parametrize('policy', ('assignment','s000','s001','s002','s004'))
def test_classifier_can_only_guess(ims, policy, way):
    "Within 4 standard deviations of a coin on pairs of images that it has not seen"
    n = 4000 if policy=='assignment' else 2000
    x = torch.from_numpy(ims.train_x[:n])
    items = by_items(ims, get_policy(policy), n)
    share,k = share_right(items, by_loader(ims, policy, n), x)
    assert abs(share-.5)<4*.5/k**.5, share

wrong = dict(black=lambda pad,crop,flip,hole: [pad,crop,flip,BatchCutout(8, (0,0,0))],
             larger=lambda pad,crop,flip,hole: [pad,crop,flip,BatchCutout(9)],
             near=lambda pad,crop,flip,hole: [BatchPad(38),crop,flip,hole],
             flips=lambda pad,crop,flip,hole: [pad,crop,BatchFlip(.8),hole],
             border=lambda pad,crop,flip,hole: [BatchPad(40, fill=(0,0,0)),crop,flip,hole],
             order=lambda pad,crop,flip,hole: [hole,pad,crop,flip])

def test_classifier_sees_what_is_wrong(ims):
    "Holes of another colour or size, smaller shifts, more flips, another border, holes cut before the crop: each is told apart"
    x = torch.from_numpy(ims.train_x[:2000])
    items = by_items(ims, get_policy('assignment'), 2000)
    for name,policy in wrong.items():
        share,k = share_right(items, augment(x, policy(*policies['assignment'](batch_steps, 32, mean_fill))), x)
        assert share>.5+6*.5/k**.5, (name, share)

# --- everything that fastai does with loaders ----------------------------------------------------------------------

@pytest.fixture(scope='module')
def small(ims): return ImageArrays(ims.train_x[:600], ims.train_y[:600], ims.test_x[:150], ims.test_y[:150], ims.vocab, 'small', '-')

def learners(ims, valid_pct=.2, **kwargs):
    "Two learners with the same weights, one for each pipeline"
    set_seed(0)
    net = resnet9(width=2, scale=.125)
    for p in pipelines:
        dls = cifar_dls(ims, bs=64, valid_pct=valid_pct, device='cpu', pipeline=p, **kwargs)
        yield Learner(dls, deepcopy(net), loss_func=CrossEntropyLossFlat(), metrics=accuracy, opt_func=SGD)

@contextlib.contextmanager
def quiet(*learns):
    with contextlib.ExitStack() as stack:
        for l in learns:
            stack.enter_context(l.no_bar())
            stack.enter_context(l.no_logging())
        yield

def same(a, b): return all(torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x,y in zip(a, b, strict=True))

def test_predictions_are_those_of_the_item_pipeline(small, tmp_path, way):
    item,device = learners(small)
    x,y = small.test_x[:7],small.test_y[:7]
    big = PILImage.create(x[0]).resize((90,70))
    big.save(tmp_path/'a.png')
    with quiet(item, device):
        for i in (1,2): assert same(item.get_preds(ds_idx=i), device.get_preds(ds_idx=i))
        assert item.validate()==device.validate()
        for l in (item,device): assert same(l.get_preds(ds_idx=2, with_loss=True)[1:2], [small.test_y])
        test = [l.dls.test_dl(list(x)) for l in (item,device)]
        assert len(test[1].one_batch())==1
        a,b = (l.get_preds(dl=d) for l,d in zip((item,device), test))
        assert torch.equal(a[0], b[0]) and a[1] is None and b[1] is None
        for labels in (y.tolist(), [small.vocab[o] for o in y]):
            a,b = (l.get_preds(dl=l.dls.test_dl([*zip(x, labels)], with_labels=True)) for l in (item,device))
            assert same(a, b) and b[1].tolist()==y.tolist()
        mixed = [x[0],PILImage.create(x[1]),big,tmp_path/'a.png',str(tmp_path/'a.png')]
        for o in mixed:
            a,b = item.predict(o),device.predict(o)
            assert a[0]==b[0] and same(a[1:], b[1:])
            assert torch.equal(*(image_batch(l.dls, [o]) for l in (item,device)))
        interp = ClassificationInterpretation.from_learner(device)
        assert np.array_equal(interp.confusion_matrix(), ClassificationInterpretation.from_learner(item).confusion_matrix())
        assert len(interp.top_losses(3, items=True)[2])==3

def test_reorder_and_tta(small, way):
    item,device = learners(small)
    with quiet(item, device):
        plain = device.get_preds()[0]
        dl = device.dls.valid.new(shuffle=True)
        set_seed(1)
        preds,targs = device.get_preds(dl=dl)
        assert torch.allclose(preds, plain, atol=1e-6) and same([targs], [[y for _,y in device.dls.valid.dataset.tls[0].items]])
        set_seed(1)
        shuffled = device.get_preds(dl=dl, reorder=False)[1]
        assert not torch.equal(shuffled, targs) and sorted(shuffled.tolist())==sorted(targs.tolist())
        set_seed(2)
        aug,same_ = device.tta(n=2, beta=None)[0]
        assert torch.equal(same_, plain) and not torch.equal(aug, plain)
        assert torch.equal(device.tta(n=1, beta=1.)[0], plain) and torch.equal(device.get_preds()[0], plain)  # augmentation is off again

def test_training(small, way):
    item,device = learners(small)
    with quiet(item, device):
        before = [p.detach().clone() for p in device.model.parameters()]
        device.fit_one_cycle(1, .01)
        assert any(not torch.equal(a, b) for a,b in zip(before, device.model.parameters()))
        device.fit(1, .01)
        device.fit_flat_cos(1, .01)
        assert np.isfinite(device.recorder.losses).all() and len(device.recorder.values[-1])==3
        after = [p.detach().clone() for p in device.model.parameters()]
        with contextlib.redirect_stdout(io.StringIO()): device.lr_find(num_it=12, show_plot=False)
        assert same(after, device.model.parameters())
        state = torch.get_rng_state()
        device.validate()
        assert torch.equal(torch.get_rng_state(), state)  # validation draws nothing

def test_a_net_learns(ims, way):
    "With either pipeline: after two epochs more than 5 standard deviations better than a guess"
    part = ImageArrays(ims.train_x[:3000], ims.train_y[:3000], ims.test_x[:500], ims.test_y[:500], ims.vocab, 'part', '-')
    accs = []
    for pipeline in pipelines:
        set_seed(0)
        learn = Learner(cifar_dls(part, bs=100, policy='crop', device='cpu', pipeline=pipeline), resnet9(width=2, scale=.125),
                        loss_func=CrossEntropyLossFlat(), metrics=accuracy)
        with quiet(learn): learn.fit_one_cycle(2, .02)
        accs.append(learn.recorder.values[-1][-1])
    assert min(accs)>.1+5*(.1*.9/500)**.5, accs

def test_figures(small, way):
    _,device = learners(small)
    dl = device.dls.train
    dl.show_batch(max_n=4)
    dl.show_batch(max_n=4, unique=True)
    res = dl.one_batch()
    assert len(set(res[1].tolist()))>1  # and no longer the same image
    device.dls.valid.show_batch(max_n=4)
    device.dls.test_dl(list(small.test_x[:4])).show_batch(max_n=4)
    with quiet(device): device.show_results(max_n=4)
    its = dl.show_batch(unique=True, max_n=9, show=False)[2]
    assert len({i[1] for i in its})==1 and len({i[0].numpy().tobytes() for i in its})==9  # one image, nine times otherwise
    dec = device.dls.valid.decode(device.dls.valid.one_batch())
    shown = np.stack([x for x,_ in device.dls.valid.dataset.tls[0].items[:64]])
    assert np.abs(shown.astype(int)-dec[0].permute(0,2,3,1).numpy()).max()<=1
    plt.close('all')

def test_grad_cam_callback(small):
    item,device = learners(small)
    cams = []
    for l in (item,device):
        cb = GradCAMCallback()
        with quiet(l): l.get_preds(cbs=cb)
        cams.append(cb.cams)
    assert torch.equal(*cams) and cams[0].shape==(len(item.dls.valid.dataset),32,32)

def test_export(small, tmp_path, way):
    item,device = learners(small)
    with quiet(item, device):
        device.fit(1, .01)
        plain = device.get_preds(ds_idx=2)[0]
        device.export(tmp_path/'a.pkl')
    size = (tmp_path/'a.pkl').stat().st_size
    net = sum(p.nbytes for p in device.model.parameters())
    assert size<net*2+120_000, (size, net)  # the images take 2.3 MB
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        loaded = load_learner(tmp_path/'a.pkl')
    with quiet(loaded):
        assert torch.allclose(loaded.get_preds(dl=loaded.dls.test_dl(list(small.test_x)))[0], plain, atol=1e-6)
        assert torch.allclose(loaded.predict(small.test_x[3])[2], plain[3], atol=1e-6)
    copy = pickle.loads(pickle.dumps(device.dls.train))
    assert copy._held.xs is None and len([*copy])==len(device.dls.train)

# --- the loader itself ---------------------------------------------------------------------------------------------

def test_passes(small, way):
    dl = cifar_dls(small, bs=64, device='cpu', pipeline='device').train
    sizes = [len(y) for _,y in dl]
    assert sizes==[64]*9 and len(dl)==9  # 24 images are left out
    whole = dl.new(drop_last=False)
    assert [len(y) for _,y in whole]==[64]*9+[24] and len(whole)==10 and dl.new(bs=600).one_batch()[0].shape[0]==600
    set_seed(3)
    a = [(x.clone(),y) for x,y in whole]
    order = whole.idxs.clone()
    b = [*whole]
    set_seed(3)
    c = [*whole]
    assert all(same(o, p) for o,p in zip(a, c)) and torch.equal(order, whole.idxs)
    assert not torch.equal(a[0][0], b[0][0]) and not torch.equal(a[0][1], b[0][1])
    assert sorted(order.tolist())==list(range(600)) and torch.equal(torch.cat([y for _,y in a]), torch.tensor(small.train_y)[order].long())
    same_image = dl.new(shuffle=False)
    (xa,ya),(xb,yb) = same_image.one_batch(),same_image.one_batch()
    assert torch.equal(ya, yb) and not torch.equal(xa, xb)

def test_one_copy_of_the_data(small):
    dls = cifar_dls(small, bs=64, valid_pct=.2, device='cpu', pipeline='device')
    for dl in dls:
        assert dl._held.xs is None  # nothing is read before it is needed
        other = dl.new(shuffle=False, drop_last=False)
        other.one_batch()
        dl.one_batch()
        assert other._held.xs is dl._held.xs and dl._held.xs.dtype==torch.uint8 and len(dl._held.xs)==len(dl.dataset)
    assert dls[1].new(dls[2].dataset)._held is not dls[1]._held
    assert all(dl.fake_l.num_workers==0 for dl in cifar_dls(small, bs=64, device='cpu', pipeline='device'))

def test_no_waiting():
    "Per batch, nothing is read back from the device and nothing sent to it: shown on tensors that have no data to read"
    class Ops(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append((func, (kwargs or {}).get('device')))
            return func(*args, **(kwargs or {}))
    seen,x = [],torch.empty(64, 32, 32, 3, dtype=torch.uint8, device='meta')
    for policy in policies:
        tfms = batch_policy(policy)
        augment(x, tfms)  # colours are made once
        seen.clear()
        with Ops(): assert augment(x, tfms).shape==x.shape
        names = {str(f) for f,_ in seen}
        waits = '_local_scalar nonzero masked_select lift_fresh unique'.split()
        assert not [o for o in names if any(w in o for w in waits)], (policy, names)
        assert {str(d) for f,d in seen if d is not None}<={'meta'}, policy

def no_room_for(ims, monkeypatch):
    "From now on the training images do not fit into the memory of any device"
    to = Tensor.to
    def full(self, *args, **kwargs):
        if self.ndim==4 and len(self)==len(ims.train_x): raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate')
        return to(self, *args, **kwargs)
    monkeypatch.setattr(Tensor, 'to', full)

def test_too_little_memory(small, capsys, monkeypatch, way):
    dls = cifar_dls(small, bs=64, device='cpu', pipeline='device')
    set_seed(1)
    expected = [(x.clone(),y.clone()) for x,y in dls.train]
    no_room_for(small, monkeypatch)
    dls = cifar_dls(small, bs=64, device='cpu', pipeline='device')
    set_seed(1)
    assert all(same(a, b) for a,b in zip(expected, dls.train, strict=True))
    [*dls.train]
    out = capsys.readouterr().out.splitlines()
    assert out==['the images (2 MB) do not fit into the memory of cpu and stay in host memory; each batch is copied']

def test_bad_input(small):
    with pytest.raises(CifarFastError, match="did you mean 'device'"): cifar_dls(small, pipeline='devce')
    dls = cifar_dls(small, bs=64, device='cpu', pipeline='device')
    with pytest.raises(CifarFastError, match='works on single items'): dls.train.new(after_item=[Resize(16)]).one_batch()
    ds = Datasets([Image.new('RGB', (8,8)),Image.new('RGB', (9,8))], [[lambda o: o]])
    with pytest.raises(CifarFastError, match='all of one size'): DeviceDL(ds, bs=2).one_batch()
    policies['_odd'] = lambda t, size, fill: [A.VerticalFlip()]
    try:
        with pytest.raises(CifarFastError, match="VerticalFlip .* choose pipeline='item'"):
            cifar_dls(small, bs=64, policy='_odd', pipeline='device')
        cifar_dls(small, bs=64, policy='_odd', device='cpu', pipeline='item').train.one_batch()
    finally: del policies['_odd']

def test_data_block(small, way):
    "With a `DataBlock` of PIL images, as with any other `TfmdDL`"
    items = [(Image.fromarray(x),int(y)) for x,y in zip(small.train_x[:64], small.train_y)]
    block = DataBlock(blocks=(TransformBlock,CategoryBlock), getters=[ItemGetter(0),ItemGetter(1)], splitter=IndexSplitter(range(48,64)),
                      batch_tfms=[*batch_policy('assignment'),IntToFloatTensor()])
    block.dl_type = DeviceDL
    dls = block.dataloaders(items, bs=16, device='cpu')
    xb,yb = dls.valid.one_batch()
    assert torch.equal((255*xb).round().byte().permute(0,2,3,1).as_subclass(Tensor), torch.from_numpy(small.train_x[48:64]))
    assert type(dls.train) is DeviceDL and len([*dls.train])==3

# --- on a GPU ------------------------------------------------------------------------------------------------------

@cuda
@pytest.mark.parametrize('policy', exact+affine)
def test_cuda_same_images(ims, policy):
    x = ims.train_x[:2000]
    augs,tfms = both(policy)
    out,params = replay(augs, tfms, x)
    ours = augment(torch.from_numpy(x).cuda(), tfms, [{k: v.cuda() for k,v in p.items()} for p in params]).cpu().numpy()
    change = next((p['change'] for p in params if 'change' in p), torch.zeros(len(x), dtype=torch.bool)).numpy()
    assert np.array_equal(ours[~change], out[~change])
    if change.any(): assert np.abs(ours[change].astype(int)-out[change]).mean()<.5

@cuda
@pytest.mark.parametrize('at_once', (None,1,2))
def test_cuda_no_waiting(small, at_once):
    for policy in policies:
        dls = cifar_dls(small, bs=64, policy=policy, device='cuda', pipeline='device')
        dls.train.at_once = at_once
        [*dls.train]
        batches = iter(dls.train)
        next(batches)  # the order of the pass is sent once
        torch.cuda.set_sync_debug_mode('error')
        try: [*batches]
        finally: torch.cuda.set_sync_debug_mode('default')

@cuda
def test_cuda_passes_are_made_at_once(small):
    "All batches of a pass are one tensor, and what callbacks want of it is what a CPU would give them"
    ours,theirs = (cifar_dls(small, bs=64, policy='none', device=o, pipeline='device').train for o in ('cuda','cpu'))
    def made(dl, at_once=None):
        set_seed(1)
        dl.at_once,dl.wants = at_once,dict(flip=(torch.arange(600)%3==0).to(dl.device), sides=[(4,24),(5,None)], dtype=torch.bfloat16)
        return [*dl]
    a,b = made(ours),made(theirs, 1)
    for xs in (a[:4],a[4:]): assert len({x.untyped_storage().data_ptr() for x,_ in xs})==1
    assert ours._batches_at_once(ours._data()[0])>=len(a)==len(b)==9
    for (x,y),(u,v) in zip(a, b):
        assert torch.equal(y.cpu(), v) and x.dtype==torch.bfloat16 and x.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(x.cpu().as_subclass(Tensor), u.as_subclass(Tensor), atol=.03, rtol=.01)

@cuda
def test_cuda_data_and_seed(small, monkeypatch, capsys):
    dl = cifar_dls(small, bs=64, device='cuda', pipeline='device').train
    def epoch():
        set_seed(1)
        return [(x.cpu(),y.cpu()) for x,y in dl]
    a = epoch()
    assert dl._held.xs.is_cuda and dl.one_batch()[0].is_cuda and all(same(o, p) for o,p in zip(a, epoch()))
    no_room_for(small, monkeypatch)
    dl = cifar_dls(small, bs=64, device='cuda', pipeline='device').train
    assert all(same(o, p) for o,p in zip(a, epoch())) and not dl._held.xs.is_cuda and 'host memory' in capsys.readouterr().out
