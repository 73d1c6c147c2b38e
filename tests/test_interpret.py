"Predictions, their metrics and their figures, against oracles"
from dataclasses import replace
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt,numpy as np,pytest,torch,torch.nn.functional as F
from fastai.basics import Callback,get_random_states,set_seed
from sklearn.metrics import classification_report,log_loss,top_k_accuracy_score
from sklearn.calibration import calibration_curve
from cifar_fast.core import CifarFastError
from cifar_fast.data import load_images
from cifar_fast.interpret import (Predictions,class_number,plot_confused_pairs,plot_confusion,plot_curves,plot_per_class,plot_probs,
                                  plot_reliability,plot_schedule,raw_images)
from cifar_fast.learner import cifar_learner
from cifar_fast.loaders import cifar_dls,image_batch
from cifar_fast.models import resnet9

names = [f'class {i}' for i in range(100)]

def draw(n=500, c=10, seed=0, sure=2.):
    "Predictions that are right about half of the time"
    rng = np.random.default_rng(seed)
    targs = rng.integers(0, c, n)
    return Predictions(rng.normal(0, 1, (n,c))+sure*np.eye(c)[targs], targs, names[:c])

@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')

@pytest.fixture(scope='module')
def ims():
    all_ims = load_images('shapes10')
    return replace(all_ims, train_x=all_ims.train_x[:400], train_y=all_ims.train_y[:400], test_x=all_ims.test_x[:150],
                   test_y=all_ims.test_y[:150])

def learner(ims, precision='fp32', valid_pct=.2, cbs=None, epochs=1):
    set_seed(0)
    dls = cifar_dls(ims, bs=64, policy='flip_crop', valid_pct=valid_pct, device='cpu')
    learn = cifar_learner(dls, resnet9(width=4, scale=.125), precision=precision, cbs=cbs)
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, .1)
    return learn

# from a learner

@pytest.mark.parametrize('precision', ['fp32','bf16'])
@pytest.mark.parametrize('ds_idx', [1,2])
def test_a_pass_says_what_validate_says(ims, precision, ds_idx):
    "Accuracy and loss of `validate`, in the order of the data set, the last batch included"
    learn = learner(ims, precision)
    preds = Predictions.from_learner(learn, ds_idx)
    with learn.no_bar(): loss,acc = learn.validate(ds_idx=ds_idx)
    assert preds.accuracy==pytest.approx(acc, abs=1e-6) and preds.losses.mean()==pytest.approx(loss, abs=1e-4)
    assert preds.logits.dtype==np.float32 and preds.probs.sum(1)==pytest.approx(1)
    if ds_idx==2: assert (preds.targs==ims.test_y).all() and (preds.images==ims.test_x).all()
    else: assert len(preds)==len(learn.dls.valid.dataset) and all(any((im==o).all() for o in ims.train_x) for im in preds.images[:5])

@pytest.mark.parametrize('precision', ['fp32','bf16'])
def test_logits_are_those_of_the_images(ims, precision):
    "Row i belongs to image i, computed in the learner's precision and given in fp32"
    learn = learner(ims, precision, valid_pct=0)
    preds = Predictions.from_learner(learn)
    learn.model.eval()
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=precision=='bf16'):
        want = learn.model(image_batch(learn.dls, preds.images)).float().numpy()
    assert np.abs(preds.logits-want).max() < (1e-4 if precision=='fp32' else .05*np.abs(want).max())
    if precision=='bf16': assert (preds.logits==torch.tensor(preds.logits).bfloat16().float().numpy()).all()

def test_the_learner_is_left_as_it_was(ims):
    learn = learner(ims)
    learn.model.train()
    learn.model.res1.eval()
    def state():
        rec,flags = learn.recorder,[m.training for m in learn.model.modules()]
        return str([get_random_states(), flags, learn.training, learn.history.epochs, learn.history.steps, rec.values, rec.log, rec.iters,
                    list(learn.cbs), [cb.learn is learn for cb in learn.cbs], learn.dl, learn.pred, learn.final_record])
    before,weights = state(),[v.clone() for v in learn.model.state_dict().values()]
    Predictions.from_learner(learn, 2)
    assert state()==before and all(torch.equal(a, b) for a,b in zip(weights, learn.model.state_dict().values()))

def test_flags_and_states_come_back_after_an_error(ims):
    learn = learner(ims)
    learn.model.train()
    def stop(*args): raise RuntimeError('stop')
    hook = learn.model.fc.register_forward_hook(stop)
    before = str(get_random_states())
    with pytest.raises(RuntimeError, match='stop'): Predictions.from_learner(learn)
    hook.remove()
    assert all(m.training for m in learn.model.modules()) and str(get_random_states())==before
    assert not torch.is_autocast_enabled('cpu')

class Look(Callback):
    "Predict the held-out sets after each epoch"
    def after_epoch(self): self.seen = [Predictions.from_learner(self.learn, i) for i in (1,2)]

@pytest.mark.parametrize('precision', ['fp32','bf16'])
def test_looking_between_epochs_changes_nothing(ims, precision):
    a,b = learner(ims, precision, epochs=3),learner(ims, precision, cbs=Look(), epochs=3)
    for k,v in a.model.state_dict().items(): assert torch.equal(v, b.model.state_dict()[k]), k
    def figures(learn): return [{k: v for k,v in r.items() if not k.endswith('_s')} for r in learn.history.epochs]
    assert figures(a)==figures(b) and a.history.steps==b.history.steps
    assert b.look.seen[0].accuracy==pytest.approx(b.history.epochs[-1]['valid_accuracy'])
    with b.no_bar(): b.validate()  # `after_epoch` within validate: no deadlock

def test_an_unknown_held_out_set(ims):
    learn = learner(ims, epochs=0)
    for i in (0,3):
        with pytest.raises(CifarFastError, match=f'held-out set is {i}: choose 1 or 2'): Predictions.from_learner(learn, i)
    with pytest.raises(CifarFastError, match='choose 1'): raw_images(learner(ims, valid_pct=0, epochs=0).dls, 2)

# numbers

@pytest.mark.parametrize('c', [2,10,100])
def test_metrics_against_sklearn(c):
    p = draw(c=c)
    report = classification_report(p.targs, p.preds, labels=range(c), target_names=p.vocab, output_dict=True, zero_division=0)
    for r in p.per_class():
        want = [report[r['class']][k] for k in ('precision','recall','f1-score','support')]
        assert [r[k] for k in ('precision','recall','f1','support')]==pytest.approx(want)
    assert p.losses.mean()==pytest.approx(log_loss(p.targs, p.probs, labels=range(c)))
    assert p.top_k_accuracy(1)==p.accuracy and p.top_k_accuracy(c)==1
    if c>2: assert [p.top_k_accuracy(k) for k in (2,5)]==pytest.approx([
        top_k_accuracy_score(p.targs, p.logits, k=k, labels=range(c)) for k in (2,5)])

def test_confusion_by_counting():
    p,want = draw(c=10),np.zeros((10,10), int)
    for a,b in zip(p.targs, p.logits): want[a,int(np.argmax(b))] += 1
    assert (p.confusion()==want).all()
    pairs = sorted(((want[i,j],-i,-j) for i in range(10) for j in range(10) if i!=j and want[i,j]), reverse=True)
    got = p.most_confused()
    assert [(r['count'],r['actual'],r['predicted']) for r in got]==[(n,names[-i],names[-j]) for n,i,j in pairs]
    assert all(r['fraction']==r['count']/want[names.index(r['actual'])].sum() for r in got) and len(p.most_confused(3))==3

def test_losses_are_torchs():
    p = draw()
    assert p.losses==pytest.approx(F.cross_entropy(torch.tensor(p.logits).double(), torch.tensor(p.targs), reduction='none').numpy())

def ece_by_hand(conf, right, bins):
    "Guo et al. 2017, (2) and (3), image by image"
    total = 0
    for m in range(1, bins+1):
        inside = [i for i,o in enumerate(conf) if (m-1)/bins < o <= m/bins]
        if inside: total += abs(sum(right[i] for i in inside) - sum(conf[i] for i in inside))
    return total/len(conf)

def two_classes(conf, right): return Predictions(np.log(np.c_[conf, 1-np.array(conf)]), 1-np.array(right), ['yes','no'])

@pytest.mark.parametrize('bins', [1,7,15,50])
def test_calibration_against_the_definition(bins):
    p = draw(n=700)
    rows,ece = p.calibration(bins)
    assert ece==pytest.approx(ece_by_hand(p.confidence, p.correct, bins))
    acc,conf = calibration_curve(p.correct, p.confidence, n_bins=bins)
    assert [r['accuracy'] for r in rows]==pytest.approx(acc) and [r['confidence'] for r in rows]==pytest.approx(conf)
    assert sum(r['count'] for r in rows)==700 and all(r['low']<r['confidence']<=r['high']+1e-9 and r['count'] for r in rows)

def test_calibration_by_hand():
    rows,ece = two_classes([.55,.95,.55,.95,.95], [1,1,0,0,1]).calibration(bins=5)
    assert ece==pytest.approx((2*.05 + 3*(.95-2/3))/5, abs=1e-6)
    assert [(r['count'],round(r['accuracy'], 4),round(r['confidence'], 4)) for r in rows]==[(2,.5,.55),(3,.6667,.95)]

def test_a_calibrated_net_has_no_error():
    conf = np.repeat([.55,.65,.75,.85,.95], 20)
    right = np.concatenate([np.arange(20)<k for k in (11,13,15,17,19)]).astype(int)
    assert two_classes(conf, right).calibration()[1]==pytest.approx(0, abs=1e-6)
    rng = np.random.default_rng(0)
    conf = rng.uniform(.5, 1, 50000)
    drawn = two_classes(conf, (rng.random(50000)<conf).astype(int))
    assert drawn.calibration()[1]<.01 < .1 < Predictions(drawn.logits*5, drawn.targs, drawn.vocab).calibration()[1]

def test_summary_says_what_is_asked():
    p = draw()
    rows = dict(p.summary())
    assert rows['accuracy']==f'{p.accuracy:.2%}' and rows['mistakes']==f'{(~p.correct).sum()} of 500'
    assert rows['expected calibration error']==f'{p.calibration()[1]:.2%}' and 'top-5 accuracy' in rows
    assert 'top-5 accuracy' not in dict(draw(c=5).summary())
    assert 'top-2 accuracy' not in dict(draw(c=2).summary())

def test_the_most_confident_come_first_and_ties_keep_their_order():
    p = Predictions(np.log([[.8,.2],[.9,.1],[.8,.2],[.1,.9],[.2,.8],[.2,.8]]), [1,1,1,1,1,1], 'ab')
    assert p.mistakes().tolist()==[1,0,2] and p.mistakes(2).tolist()==[1,0] and p.most_confident(p.correct).tolist()==[3,4,5]
    near = Predictions([[20.,0],[30,0],[40,0]], [1,1,1], 'ab')  # all 1.0 in fp32
    assert near.mistakes().tolist()==[2,1,0]
    q = draw()
    assert (np.diff(q.confidence[q.mistakes()])<=0).all() and set(q.mistakes())|set(q.most_confident(q.correct))==set(range(500))

def test_empty_selections():
    right,wrong = Predictions(np.eye(2)[[0,1]*1000], [0,1]*1000, 'ab'),Predictions(np.eye(2), [1,0], 'ab')
    for f in (right.mistakes, right.most_confused, lambda: plot_confused_pairs(right)):
        with pytest.raises(CifarFastError, match='no misclassified image among 2,000'): f()
    with pytest.raises(CifarFastError, match='no such image among 2:'): wrong.most_confident(wrong.correct)

@pytest.mark.parametrize('times', [1e-3,.1,1,5,300])
def test_temperature_is_the_best_number(times):
    "Against a search over one number, however large the logits are; a fine grid finds no better one"
    from scipy.optimize import minimize_scalar
    p = draw()
    q = Predictions(p.logits*times, p.targs, p.vocab)
    t = q.temperature()
    ends = np.log(times)+np.array([-4,4])
    best = minimize_scalar(lambda o: q.scaled(np.exp(o)).losses.mean(), bounds=ends, method='bounded', options=dict(xatol=1e-9))
    assert t==pytest.approx(np.exp(best.x), rel=1e-3) and t==pytest.approx(times*p.temperature(), rel=1e-4)
    assert q.scaled(t).losses.mean()<=min(q.scaled(t*f).losses.mean() for f in np.geomspace(.2, 5, 201))+1e-7
    assert (q.scaled(t).preds==q.preds).all() and q.scaled(t).accuracy==q.accuracy

def test_temperature_without_a_best_number():
    "Never wrong: 1. Always wrong, all logits alike, one image: a finite number"
    assert Predictions(np.eye(3), [0,1,2], 'abc').temperature()==1
    for z,y in (([[9.,0],[0,9]], [1,0]), ([[0.,0],[0,0]], [1,0]), ([[1.,0]], [1])): assert 0<Predictions(z, y, 'ab').temperature()<1e4

# files

def test_saved_and_loaded_are_equal(tmp_path):
    p = draw()
    p.save(tmp_path/'p.safetensors')
    q = Predictions.load(tmp_path/'p.safetensors', p.vocab, np.zeros((500,4,4,3), np.uint8))
    for k in ('logits','targs','probs','preds','losses','confidence','correct'): assert np.array_equal(getattr(p, k), getattr(q, k)), k
    assert q.vocab==p.vocab and q.accuracy==p.accuracy and q.images.shape==(500,4,4,3)

def test_bad_files(tmp_path):
    path,p = tmp_path/'p.safetensors',draw()
    with pytest.raises(CifarFastError, match='no predictions at'): Predictions.load(path, p.vocab)
    p.save(path)
    whole = path.read_bytes()
    for bad in (b'', b'no such thing', whole[:500], whole[:-1]):
        path.write_bytes(bad)
        with pytest.raises(CifarFastError, match='is damaged'): Predictions.load(path, p.vocab)
    path.write_bytes(whole)
    with pytest.raises(CifarFastError, match='p.safetensors: 10 logits for each image, but 2 class names'): Predictions.load(path, 'ab')
    with pytest.raises(CifarFastError, match='give 500 of height'): Predictions.load(path, p.vocab, np.zeros((3,4,4,3), np.uint8))

# bad input

@pytest.mark.parametrize('logits,targs,vocab,images,message', [
    ([1.,2], [0], 'ab', None, 'logits of shape'), (np.zeros((0,2)), np.zeros(0, int), 'ab', None, 'logits of shape'),
    ([[1.,2]], [0], 'abc', None, 'but 3 class names'), ([[1.,2]], [0,1], 'ab', None, '1 rows of logits'),
    ([[1.,2]], [2], 'ab', None, 'integers from 0 to 1'), ([[1.,2]], [-1], 'ab', None, 'integers from 0 to 1'),
    ([[1.,2]], [.5], 'ab', None, 'float64'),
    ([[1.,np.nan]], [0], 'ab', None, '1 of 1 images'), ([[1.,np.inf]], [0], 'ab', None, 'no finite'),
    ([[1.,2]], [0], 'ab', np.zeros((2,4,4,3), np.uint8), 'give 1 of'), ([[1.,2]], [0], 'ab', np.zeros((1,4,4,3)), 'float64')])
def test_what_cannot_be_right_is_refused(logits, targs, vocab, images, message):
    with pytest.raises(CifarFastError, match=message) as e: Predictions(logits, targs, vocab, images)
    assert '\n' not in str(e.value)

def test_bad_arguments():
    p = Predictions(np.eye(3), [0,1,1], ['ant','bee','cat'])
    assert [class_number(p.vocab, o) for o in (2,'cat',np.int64(0))]==[2,2,0]
    for c in (3,-1):
        with pytest.raises(CifarFastError, match='out of range: there are 3 classes, 0 to 2'): class_number(p.vocab, c)
    with pytest.raises(CifarFastError, match="did you mean 'cat'"): class_number(p.vocab, 'cats')
    bad = (lambda: p.mistakes(0),lambda: p.most_confused(0),lambda: p.calibration(0),lambda: p.top_k_accuracy(4),
           lambda: plot_reliability(p, 0))
    for f in bad:
        with pytest.raises(CifarFastError, match='choose'): f()
    for probs,actual,message in (([.5,.5], None, 'but 3 class names'), ([.5,.5,np.nan], None, 'no probabilities'),
                                 ([0,0,1.5], None, 'no probabilities'),
                                 ([0,0,1], 3, 'out of range'), ([0,0,1], 'dog', 'unknown class')):
        with pytest.raises(CifarFastError, match=message): plot_probs(probs, p.vocab, actual)
    with pytest.raises(CifarFastError, match='no epoch'): plot_curves([])

# figures

@pytest.mark.parametrize('c', [2,10,21,100])
def test_figures_for_few_and_many_classes(c):
    "They draw without complaint, their axes are labelled, and the names of classes do not overlap"
    p = draw(n=3000, c=c)
    axs = [plot_confusion(p), plot_confusion(p, normalize=True), plot_per_class(p), plot_confused_pairs(p),
           plot_probs(p.probs[0], p.vocab, p.targs[0])]
    for ax in axs:
        fig = ax.figure
        fig.canvas.draw()
        assert ax.get_xlabel()
        boxes = sorted((t.get_window_extent() for t in ax.get_yticklabels()), key=lambda b: b.y0)
        assert all(a.y1<=b.y0+2 for a,b in zip(boxes, boxes[1:])), ax.get_title()
    n = len(axs[0].texts)
    assert n==(np.count_nonzero(p.confusion()) if c<=20 else 0)

def test_classes_without_an_image_have_no_f1():
    "Two of ten classes, all right: the mean of their F1 is 1"
    y = np.array([0,0,1,1])
    assert plot_per_class(Predictions(9*np.eye(10)[y], y, list('abcdefghij'))).get_title()=='Each class, sorted by F1 (mean 1.000)'

def test_figures_draw_where_they_are_told():
    p = draw()
    for f in (plot_confusion, plot_per_class, plot_confused_pairs):
        ax = plt.subplots()[1]
        assert f(p, ax=ax) is ax and ax.get_title()
    axs = list(plt.subplots(2, 1)[1])
    assert plot_reliability(p, axs=axs)==axs and all(a.get_ylabel() for a in axs)
    ax = plt.subplots()[1]
    assert plot_probs(p.probs[0], p.vocab, ax=ax) is ax

def test_pairs_that_are_shortened_to_one_text():
    "Each has a bar of its own"
    p = Predictions(np.eye(3)[[1,1,0]], [0,2,2], ['the long name of a class, one 1234','the long name of a class, two 1234','cat'])
    ax = plot_confused_pairs(p)
    assert len({b.get_y() for b in ax.patches})==len(ax.get_yticklabels())==3

def test_normalised_rows_add_up():
    p = draw(n=200)
    ax = plot_confusion(p, normalize=True)
    assert np.array(ax.images[0].get_array()).sum(1)==pytest.approx(np.full(10, 100.))
    gone = Predictions(np.eye(3)[[0,1]], [0,0], 'abc')  # two classes without an image
    assert np.isfinite(plot_confusion(gone, normalize=True).images[0].get_array()).all()

def test_reliability_bars():
    conf = np.repeat([.55,.65,.75,.85,.95], 20)
    a,h = plot_reliability(two_classes(conf, np.concatenate([np.arange(20)<k for k in (10,10,15,20,20)]).astype(int)), bins=10)
    assert [b.get_height() for b in a.patches]==pytest.approx([.5,.5,.75,1,1, .05,.15,0,-.15,-.05], abs=1e-6)
    assert [b.get_height() for b in h.patches]==[20]*5 and a.get_title()=='Expected calibration error 8.00% (10 bins)'

def test_probs_mark_predicted_and_actual():
    probs = np.r_[.5,.4,np.full(98, .1/98)]
    ax = plot_probs(probs, names, actual='class 99', n=3)
    assert [t.get_text() for t in ax.get_yticklabels()]==['class 0','class 1','class 2','class 99']
    assert [t.get_text() for t in ax.texts]==['50.0% predicted','0.1% actual']
    assert [t.get_text() for t in plot_probs(probs, names, actual=0).texts]==['50.0% predicted, actual']

def test_curves_of_several_runs():
    rows = [dict(epoch=i, train_loss=3-i, test_loss=2.5-i, train_accuracy=i/4, test_accuracy=i/3) for i in (1.,2.)]
    axs = plot_curves(rows, label='a')
    assert plot_curves(rows, axs, label='b')==axs
    assert [t.get_text() for t in axs[0].get_legend().get_texts()]==['a, test','b, test'] and len(axs[0].lines)==4
    assert [t.get_text() for t in plot_curves(rows)[1].get_legend().get_texts()]==['training','test']

def test_momentum_is_drawn_where_it_moves():
    steps = [dict(epoch=i/4, lr=.1, mom=.9, loss=1.) for i in range(4)]
    assert len(plot_schedule(steps).figure.axes)==1
    assert len(plot_schedule([dict(s, mom=.9-s['epoch']/10) for s in steps]).figure.axes)==2
