"Pictures of single images and GIFs: what a person can mend gets one line, and looking at a net does not change it"
import csv,os,random,warnings
from copy import copy
from dataclasses import replace
from types import SimpleNamespace
import matplotlib.pyplot as plt,numpy as np,pytest,torch
from fastcore.xml import to_xml
from matplotlib.cbook import is_math_text
from matplotlib.text import Text
from conftest import draw_folder
from PIL import Image
from fastai.basics import set_seed
from torch import nn
import cifar_fast.gallery as gallery
from cifar_fast.all import *
from cifar_fast.report import _training

def train(ims, policy='flip_crop', **kwargs):
    set_seed(0)
    dls = cifar_dls(ims, bs=16, policy=policy, device='cpu')
    learn = cifar_learner(dls, resnet9(len(ims.vocab), width=4, dropout=.1), precision='fp32')
    with learn.no_bar(), learn.no_logging(): learn.fit(2, .05, **kwargs)
    return learn

@pytest.fixture(scope='module')
def ims(folder): return load_images(folder)

@pytest.fixture(scope='module')
def learn(ims): return train(ims)

@pytest.fixture(scope='module')
def preds(ims):
    "Eight mistakes among 24"
    wrong = (ims.test_y + (np.arange(24)%3==0)) % 3
    return Predictions(np.eye(3)[wrong]*np.linspace(1, 4, 24)[:,None], ims.test_y, ims.vocab, ims.test_x)

@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')

figures = dict(plot_mistakes=lambda p,l: plot_mistakes(p), plot_correct=lambda p,l: plot_correct(p),
               plot_predictions=lambda p,l: plot_predictions(p, [0,3,5]),
               plot_cam_mistakes=lambda p,l: plot_cam_mistakes(p, l),
               plot_cam_layers=lambda p,l: plot_cam_layers(p, l), plot_cam_pairs=lambda p,l: plot_cam_pairs(p, l, 25),
               plot_cam_classes=lambda p,l: plot_cam_classes(p, l, 0))

@pytest.mark.parametrize('name,count', dict(
    plot_mistakes=8, plot_correct=16, plot_predictions=3,
    plot_cam_mistakes=8, plot_cam_layers=8, plot_cam_pairs=8, plot_cam_classes=4).items())
def test_draws_what_there_is(preds, learn, name, count):
    "Fewer mistakes than asked for are no error"
    assert len(figures[name](preds, learn))==count

@pytest.mark.parametrize('name', [k for k in figures if 'cam' in k])
def test_one_batch(preds, learn, name, monkeypatch):
    "All the maps of a figure come from one call"
    calls = []
    monkeypatch.setattr(gallery, 'grad_cam', lambda *args: calls.append(args) or grad_cam(*args))
    figures[name](preds, learn)
    assert len(calls)==1

@pytest.mark.parametrize('name', ['plot_mistakes','plot_cam_mistakes','plot_cam_layers','plot_cam_pairs'])
def test_no_mistakes(ims, learn, name):
    perfect = Predictions(np.eye(3)[ims.test_y], ims.test_y, ims.vocab, ims.test_x)
    with pytest.raises(CifarFastError, match='no misclassified image among 24'): figures[name](perfect, learn)

@pytest.mark.parametrize('name', figures)
def test_no_images(preds, learn, name):
    with pytest.raises(CifarFastError, match='have no images'): figures[name](Predictions(preds.logits, preds.targs, preds.vocab), learn)

@pytest.mark.parametrize('draw', [plot_cam_mistakes,plot_cam_layers,plot_cam_pairs])
@pytest.mark.parametrize('layer,message', [('res3', "did you mean 'res2'"), (99, 'numbered from 0'), ('fc', 'choose from')])
def test_unknown_layer(preds, learn, draw, layer, message):
    with pytest.raises(CifarFastError, match=message): draw(preds, learn, **{'layers' if draw is plot_cam_layers else 'layer': layer})

@pytest.mark.parametrize('call,message', [
    (lambda i,l: plot_cam_compare(l, l, i.test_x, i.test_y, layer='res3'), "did you mean 'res2'"),
    (lambda i,l: cam_overlay(i.test_x[0], np.zeros((8,8))), 'do not fit')])
def test_bad_selection(ims, learn, call, message):
    with pytest.raises(CifarFastError, match=message): call(ims, learn)

def test_nets_of_other_classes(ims, learn):
    other = train(replace(ims, vocab=['x','y','z']))
    with pytest.raises(CifarFastError, match='different classes'): plot_cam_compare(learn, other, ims.test_x, ims.test_y)

def test_compare(ims, learn):
    images,a,b = plot_cam_compare(learn, learn, ims.test_x, ims.test_y)
    assert [ax.get_title() for ax in images]==ims.vocab and [ax.get_title() for ax in a]==[ax.get_title() for ax in b]

def test_compare_by_a_loss_without_activation(ims, learn):
    "What stands there is a probability, whatever the loss"
    other = copy(learn)
    other.loss_func = nn.CrossEntropyLoss()
    _,a,b = plot_cam_compare(learn, other, ims.test_x, ims.test_y)
    assert [ax.get_title() for ax in a]==[ax.get_title() for ax in b]

def state(learn):
    tensors = [t.tolist() for t in (*learn.model.state_dict().values(), torch.get_rng_state())]
    modes,grads = [m.training for m in learn.model.modules()],[p.grad is None for p in learn.model.parameters()]
    return tensors,modes,grads,random.getstate(),str(np.random.get_state())

def test_drawing_changes_nothing(ims, preds, learn):
    learn.model.train()
    learn.model.prep.eval()
    before = state(learn)
    for draw in figures.values(): draw(preds, learn)
    plot_cam_compare(learn, learn, ims.test_x, ims.test_y)
    assert state(learn)==before

def test_film_changes_nothing(ims, tmp_path):
    "Weights, random states and history are those of a training that nobody watched; one frame an epoch"
    def outcome(**kwargs):
        learn = train(ims, 'assignment', **kwargs)
        return state(learn),[{k: v for k,v in r.items() if not k.endswith('_s')} for r in learn.history.epochs]
    assert outcome()==outcome(cbs=CamGif(tmp_path/'a.gif'))
    with Image.open(tmp_path/'a.gif') as im: assert (im.n_frames,im.info['loop'],im.info['duration'])==(2,0,400)

def test_film_begins_where_training_does(ims, tmp_path):
    film = CamGif(tmp_path/'a.gif')
    train(ims, start_epoch=1, cbs=film)
    assert len(film.frames)==1 and film.titles[0].startswith('epoch 2 of 2')

def test_no_film_of_a_search(ims, learn, tmp_path):
    film = CamGif(tmp_path/'a.gif')
    with learn.no_bar(), learn.no_logging(), learn.added_cbs(film): learn.lr_find(num_it=20, show_plot=False)
    assert not (tmp_path/'a.gif').exists()

@pytest.mark.parametrize('kwargs,message', [(dict(layer='res3'), "did you mean 'res2'"),
                                            (dict(images=np.zeros((2,8,8,3), np.uint8)), 'do not fit')])
def test_film_fails_before_the_first_step(ims, tmp_path, kwargs, message):
    with pytest.raises(CifarFastError, match=message): train(ims, cbs=CamGif(tmp_path/'a.gif', **kwargs))
    assert not (tmp_path/'a.gif').exists()

@pytest.mark.parametrize('kwargs', [dict(frames=[]), dict(titles=['a']), dict(scale=0), dict(frames=[np.zeros((4,4,3))]),
                                    dict(frames=[np.zeros((s,4,3), np.uint8) for s in (4,5)])])
def test_bad_gif(tmp_path, kwargs):
    "Nothing is written"
    kwargs = dict(frames=[np.zeros((4,4,3), np.uint8)]*2) | kwargs
    with pytest.raises((ValueError,TypeError)): write_gif(tmp_path/'a.gif', **kwargs)
    assert not any(tmp_path.iterdir())

def test_augment_gif(ims, tmp_path):
    "The same for a seed, another for another, and the global generators stay where they are"
    before = random.getstate(),str(np.random.get_state()),torch.get_rng_state().tolist()
    def gif(i, seed): return augment_gif(tmp_path/f'{i}.gif', ims.test_x[0], 'assignment', n=5, seed=seed).read_bytes()
    one,again,other = gif(0, 1),gif(1, 1),gif(2, 2)
    assert one==again!=other
    assert (random.getstate(),str(np.random.get_state()),torch.get_rng_state().tolist())==before
    with Image.open(tmp_path/'0.gif') as im: n,first = im.n_frames,np.asarray(im.convert('RGB')).astype(int)
    assert n==6
    left = (first.shape[1]-96)//2
    assert np.abs(first[-96:,left:left+96][::6,::6]-ims.test_x[0]).mean()<3

# --- names of any kind ----------------------------------------------------------------------------------------------

odd = [r'$\x$', os.fsdecode(b'=caf\xe9'), 'two\n\x1b[2J<b>"\'']  # a formula, no UTF-8 and a sum, and the signs of a terminal and of HTML
row = dict(epoch=1, train_loss=1., test_loss=1., train_accuracy=.5, test_accuracy=.5)
named = dict(figures, plot_per_class=lambda p,l: plot_per_class(p), plot_confusion=lambda p,l: plot_confusion(p),
             plot_confused_pairs=lambda p,l: plot_confused_pairs(p), plot_probs=lambda p,l: plot_probs([.5,.3,.2], odd, odd[1]),
             plot_classes=lambda p,l: plot_classes(p.images, p.targs, odd), plot_curves=lambda p,l: plot_curves([row], label=odd[0]),
             plot_cam_compare=lambda p,l: plot_cam_compare(l, l, p.images, p.targs, odd),
             plot_explained=lambda p,l: plot_explained(p.images[0], np.ones((16,16)), np.array([.5,.3,.2]), odd, title=odd[0]),
             plot_cam_localization=lambda p,l: plot_cam_localization(l, replace(l.images, test_mask=l.images.test_x[...,0]>128), 3),
             show_batch=lambda p,l: [l.dls.show_batch(), plt.gcf().axes][1])

@pytest.fixture(scope='module')
def odd_learn(ims):
    learn = train(replace(ims, vocab=odd))
    learn.images = replace(ims, vocab=odd)
    return learn

@pytest.mark.parametrize('name', named)
def test_figures_with_odd_names(preds, odd_learn, name):
    "Every figure that shows names draws them, as they are and on one line"
    axs = named[name](Predictions(preds.logits, preds.targs, odd, preds.images), odd_learn)
    fig = np.ravel(np.array(axs, dtype=object))[0].figure
    with warnings.catch_warnings(action='error'): fig.canvas.draw()
    texts = [t.get_text() for t in fig.findobj(Text) if t.get_visible()]
    assert not any(is_math_text(t) or '\x1b' in t or '\udce9' in t for t in texts)
    assert any(r'\$\x' in t or r'\udce9' in t or r'two\n' in t for t in texts), texts

def test_a_run_with_odd_names(tmp_path, monkeypatch):
    "From training to page and table, with two classes: nothing fails, and nothing does what a name says"
    data = draw_folder(tmp_path/'=data', odd[1:], n=8, n_test=4)
    recipe = get_recipe('demo').replace(data=str(data), epochs=1, bs=8, model_args=dict(width=4, scale=.125))
    train_recipe(recipe, tmp_path/'r', quiet=True)
    page = report_run(Run(tmp_path/'r'), quiet=True).read_text('utf-8')
    assert r'caf\udce9' in page and r'two\n\x1b[2J&lt;b&gt;' in page and '<b>' not in page and '\x1b' not in page
    photo = tmp_path/'=1.png'
    Image.fromarray(np.zeros((8,8,3), np.uint8)).save(photo)
    monkeypatch.chdir(tmp_path)
    explain(tmp_path/'r', '=1.png', tmp_path/'out')
    with open(tmp_path/'out'/'explained.csv', newline='', encoding='utf-8') as f: rows = list(csv.reader(f))
    assert "'=1.png" in rows[1] and len(rows)==2 and not any(c.startswith('=') or '\n' in c for c in rows[1])

def test_hundreds_of_classes(ims, learn):
    "A page does not grow beyond what can be drawn: the first hundred classes of the data, the hundred likeliest of an image"
    rng,vocab = np.random.default_rng(0),[f'class {i}' for i in range(1500)]
    many = replace(ims, train_x=rng.integers(0, 256, (1500,4,4,3), dtype=np.uint8), train_y=np.arange(1500), vocab=vocab)
    run = SimpleNamespace(read_table=lambda name: None)
    assert 'the first 100 classes' in to_xml(_training(run, None, many)[0]())
    wide = SimpleNamespace(model=resnet9(150, width=4).eval(), dls=learn.dls)
    preds = Predictions(rng.normal(size=(1,150)), [0], vocab[:150], ims.test_x[:1])
    shown = [ax.get_title().split('\n')[-1] for ax in plot_cam_classes(preds, wide, 0)[1:]]
    likely = sorted(np.argsort(-preds.probs[0])[:100])
    assert shown==[f'class {c} {preds.probs[0,c]:.1%}' for c in likely]

def test_one_class(tmp_path):
    one = draw_folder(tmp_path/'d', ['ant'], 4, 2)
    with pytest.raises(CifarFastError, match='one class, ant: a classifier needs two'): cifar_dls(one, bs=2)
