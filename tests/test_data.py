'Bad inputs of every kind: each must end in one clear line, and leave nothing behind'
from __future__ import annotations
import http.server,io,os,pickle,re,shutil,socket,struct,tarfile,threading,tracemalloc,zipfile,zlib
from pathlib import Path
import numpy as np
import pytest
from PIL import Image
from cifar_fast import data,files
from cifar_fast.core import CifarFastError
from cifar_fast.data import load_images
from cifar_fast.pictures import read_image
from cifar_fast.shapes import Shapes10

rng = np.random.default_rng(1)
vocab = ['bee','cow']
x,y = rng.integers(0, 256, (10,32,32,3), dtype=np.uint8),np.repeat([0,1], 5)
tx,ty = rng.integers(0, 256, (4,32,32,3), dtype=np.uint8),np.repeat([0,1], 2)

def png(a):
    f = io.BytesIO()
    Image.fromarray(a).save(f, 'png')
    return f.getvalue()

def put(path, b):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b)
    return path

def folder(path, test='test'):
    for split,xs,ys in [('train',x,y),(test,tx,ty)]:
        for i,(a,c) in enumerate(zip(xs, ys)): put(path/split/vocab[c]/f'{i:02}.png', png(a))
    return path

def flat(a): return a.transpose(0,3,1,2).reshape(len(a), -1)

def batches(path, dump=lambda o: pickle.dumps(o, 2), **kw):
    for i in range(5): put(path/f'data_batch_{i+1}', dump({b'data': flat(x[2*i:2*i+2]), b'labels': y[2*i:2*i+2].tolist()}))
    put(path/'test_batch', dump({b'data': flat(tx), b'labels': ty.tolist()}))
    put(path/'batches.meta', pickle.dumps({b'label_names': [v.encode() for v in vocab]}, 2))
    return path

def python2(o):
    "What Python 2's cPickle wrote for a batch: byte strings as BINSTRING, numpy's old module names, an array from `_reconstruct`"
    def s(b): return b'U'+bytes([len(b)])+b if len(b)<256 else b'T'+struct.pack('<i', len(b))+b
    def n(i): return b'J'+struct.pack('<i', i)
    a = o[b'data']
    dtype = b'cnumpy\ndtype\n'+s(b'u1')+n(0)+n(1)+b'\x87R('+n(3)+s(b'|')+b'NNN'+n(-1)+n(-1)+n(0)+b'tb'
    arr = (b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n'+n(0)+b'\x85'+s(b'b')+b'\x87R('
           +n(1)+n(a.shape[0])+n(a.shape[1])+b'\x86'+dtype+b'\x89'+s(a.tobytes())+b'tb')
    return b'\x80\x02}('+s(b'data')+arr+s(b'labels')+b'('+b''.join(map(n, o[b'labels']))+b'lu.'

def pack(path, d, fmt):
    'The archive of the folder `d`, or the folder itself if `fmt` is None'
    return Path(shutil.make_archive(path, fmt, d)) if fmt else d

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    'Each layout: a folder that no test changes'
    d = tmp_path_factory.mktemp('made')
    return dict(flat=folder(d/'flat'), nested=folder(d/'nested/b').parent,
                batches=batches(d/'batches/b').parent, flat_batches=batches(d/'flat_batches'))

def load(src, tmp_path, **kw): return load_images(src, cache=tmp_path/'cache', **kw)

def refused(src, tmp_path, *msgs, **kw):
    with pytest.raises(CifarFastError) as e: load(src, tmp_path, **kw)
    for m in msgs: assert m in str(e.value), str(e.value)
    assert '\n' not in str(e.value)
    assert not list((tmp_path/'cache').glob('*')) if (tmp_path/'cache').exists() else True

def same(o):
    for a,b in zip((o.train_x,o.train_y,o.test_x,o.test_y), (x,y,tx,ty)): np.testing.assert_array_equal(a, b)
    assert o.vocab==vocab and o.train_x.dtype==np.uint8 and o.train_y.dtype==np.int64

# Layouts

@pytest.mark.parametrize('fmt', [None,'zip','tar','gztar','bztar','xztar'])
@pytest.mark.parametrize('kind', ['flat','nested','batches','flat_batches'])
def test_every_layout(kind, fmt, made, tmp_path): same(load(pack(tmp_path/'out', made[kind], fmt), tmp_path))

@pytest.mark.parametrize('test', ['valid','val'])
@pytest.mark.parametrize('fmt', [None,'tar'])
def test_names_of_the_test_set(fmt, test, tmp_path): same(load(pack(tmp_path/'out', folder(tmp_path/'in', test), fmt), tmp_path))

def test_tgz_and_names(made, tmp_path):
    f = pack(tmp_path/'some', made['flat'], 'gztar').rename(tmp_path/'some.v2.tgz')
    same(load(f, tmp_path))
    assert load(f, tmp_path).name=='some.v2'
    assert load(str(made['flat']), tmp_path).name=='flat'

def test_python2_pickles(tmp_path):
    assert b'BINSTRING' not in python2({b'data': flat(tx), b'labels': [0]})
    d = pickle.loads(python2({b'data': flat(tx), b'labels': ty.tolist()}), encoding='bytes') if hasattr(np, 'core') else None
    if d: np.testing.assert_array_equal(d[b'data'], flat(tx))  # the oracle: numpy's own constructors agree that this is such a pickle
    same(load(batches(tmp_path/'b', python2), tmp_path))

@pytest.mark.parametrize('protocol', [0,1,2,3,4])
def test_pickle_protocols(protocol, tmp_path):
    same(load(batches(tmp_path/'b', lambda o: pickle.dumps(o, protocol)), tmp_path))

def test_fortran_order(tmp_path):
    same(load(batches(tmp_path/'b', lambda o: pickle.dumps({**o, b'data': np.asfortranarray(o[b'data'])}, 2)), tmp_path))

def test_cifar100(tmp_path):
    d = tmp_path/'cifar-100-python'
    for f,xs,ys in [('train',x,y),('test',tx,ty)]:
        put(d/f, pickle.dumps({b'data': flat(xs), b'fine_labels': ys.tolist(), b'coarse_labels': [0]*len(ys)}, 2))
    put(d/'meta', pickle.dumps({b'fine_label_names': [b'bee',b'cow'], b'coarse_label_names': [b'animal']}, 2))
    same(load(d, tmp_path))
    same(load(shutil.make_archive(tmp_path/'c', 'gztar', tmp_path, d.name), tmp_path))

def test_batches_keep_their_label_order(tmp_path):
    d = batches(tmp_path/'b')
    put(d/'batches.meta', pickle.dumps({b'label_names': [b'zebra',b'ape']}, 2))
    assert load(d, tmp_path).vocab==['zebra','ape']

def test_large_files_are_read_by_threads(tmp_path):
    d = tmp_path/'in'
    big = rng.integers(0, 256, (3,120,160,3), dtype=np.uint8)
    for split in 'train','test':
        for c in vocab:
            for i,a in enumerate(big): assert put(d/split/c/f'{i}.png', png(a)).stat().st_size>files._large
    o = load(d, tmp_path)
    np.testing.assert_array_equal(o.train_x, np.concatenate([big,big]))
    f = shutil.make_archive(tmp_path/'big', 'zip', d)
    assert load(f, tmp_path).fingerprint==o.fingerprint

def test_a_class_called_train_and_links_to_folders(tmp_path):
    o = load(folder(tmp_path/'in'), tmp_path)
    for s in 'train','test': (tmp_path/'in'/s/'cow').rename(tmp_path/'in'/s/'train')
    (tmp_path/'links').mkdir()
    for s in 'train','test': (tmp_path/'links'/s).symlink_to(tmp_path/'in'/s)
    (tmp_path/'links/again').symlink_to(tmp_path/'links')
    for d in 'in','links':
        got = load(tmp_path/d, tmp_path)
        assert got.vocab==['bee','train'] and (got.train_x==o.train_x).all()

def test_nothing_beside_train_is_looked_at(tmp_path):
    d = folder(tmp_path/'in')
    folder(d/'old')
    put(d/'old/train/cow/99.png', png(np.zeros((20,40,3), np.uint8)))
    same(load(d, tmp_path))

def test_files_that_are_none(tmp_path):
    d = folder(tmp_path/'in')
    os.mkfifo(d/'train/cow/pipe.png')
    for f in d/'train/cow/pipe.png','/dev/zero': refused(f, tmp_path, 'no folder or archive')
    (d/'train/cow/zero.png').symlink_to('/dev/zero')
    (d/'train/cow/gone.png').symlink_to(tmp_path/'elsewhere.png')  # as git-annex and DVC leave what has not been fetched
    refused(d, tmp_path, 'cannot read 3 images', 'gone.png (No such file', 'pipe.png (it is not a plain file)', 'zero.png (it is not')
    o = load(d, tmp_path, skip_broken=True)
    same(o)
    assert o.notes==['damaged images, left out: 3 (train/cow/gone.png, train/cow/pipe.png, train/cow/zero.png)']
    shutil.copy(d/'train/cow/05.png', tmp_path/'elsewhere.png')
    (d/'train/round').symlink_to('round')
    (d/'train/cow/pipe.png').unlink()
    (d/'train/cow/pipe.png').symlink_to('pipe.png')
    refused(d, tmp_path/'other', 'cannot read 2 images', 'pipe.png (Too many levels of symbolic links)')
    assert len(load(d, tmp_path, skip_broken=True).train_y)==11

def test_jpeg_equals_pillow(tmp_path):
    d = folder(tmp_path/'in')
    for f in d.rglob('*.png'):
        Image.open(f).save(f.with_suffix('.JPG'), 'jpeg', quality=75)
        f.unlink()
    want = np.stack([np.asarray(Image.open(f).convert('RGB')) for f in sorted((d/'train').rglob('*.JPG'))])
    np.testing.assert_array_equal(load(d, tmp_path).train_x, want)

def test_what_is_odd_in_exif_does_not_matter(tmp_path):
    "Only which way is up counts; the rest may be of a type that nobody can write again, cut short, or no EXIF at all"
    from PIL.PngImagePlugin import PngInfo
    a = rng.integers(0, 256, (6,8,3), dtype=np.uint8)
    def tiff(*tags):
        return b'II*\0\x08\0\0\0'+struct.pack('<H', len(tags))+b''.join(struct.pack('<HHI', *o[:3])+o[3] for o in tags)+bytes(4)
    turned,maker = (0x112,3,1,struct.pack('<HH', 6, 0)),(0x10f,12,1,bytes(4))
    def saved(**kw):
        f = io.BytesIO()
        Image.fromarray(a).save(f, 'png', **kw)
        return f.getvalue()
    raw = PngInfo()
    raw.add_text('Raw profile type exif', '\nexif\n   4\nno hex')
    for kw,want in [(dict(exif=tiff(turned, maker)), np.rot90(a, -1)), (dict(exif=tiff(turned)), np.rot90(a, -1)), (dict(pnginfo=raw), a),
                    (dict(exif=b'neither II nor MM'), a)]:
        np.testing.assert_array_equal(read_image(saved(**kw)), want)

def test_a_grey_of_16_bits_that_is_transparent(tmp_path):
    "As maps have it: one number stands for nothing"
    im = Image.fromarray(np.array([[0,40000,65535]], np.uint16))
    im.save(tmp_path/'a.png', transparency=40000)
    assert read_image(tmp_path/'a.png')[0,:,0].tolist()==[0,255,255] and Image.open(tmp_path/'a.png').mode=='I;16'

# Folders that are not right

def test_no_such_folder(tmp_path):
    refused(tmp_path/'nope', tmp_path, 'no folder or archive', 'nope', 'cifar10 and shapes10')
    refused('cifar', tmp_path, 'no folder or archive cifar,')
    refused('~nobody-here/x', tmp_path, 'no folder or archive ~nobody-here/x,')

@pytest.mark.parametrize('size', [0,-1])
def test_bad_size(size, made, tmp_path): refused(made['flat'], tmp_path, 'number of pixels', size=size)

def test_empty_folder(tmp_path):
    (tmp_path/'in').mkdir()
    refused(tmp_path/'in', tmp_path, 'no data set in', 'train/<class>/')
    (tmp_path/'in/train').mkdir()
    refused(tmp_path/'in', tmp_path, 'no data set in')

def test_no_train(tmp_path):
    d = folder(tmp_path/'in')
    shutil.rmtree(d/'train')
    refused(d, tmp_path, 'no data set in')

def test_no_test(tmp_path):
    d = folder(tmp_path/'in')
    shutil.rmtree(d/'test')
    o = load(d, tmp_path)
    assert (len(o.train_x),len(o.test_x))==(8,2)
    assert o.notes[0].startswith('no test set: 2 of 10 images are kept apart as one, 20% of each class')

@pytest.mark.parametrize('fmt', [None,'zip','tar'])
def test_class_without_images(fmt, tmp_path):
    d = folder(tmp_path/'in')
    (d/'test/emu').mkdir()
    put(d/'train/emu/1.png', png(x[0]))
    put(d/'test/emu/Thumbs.db', b'')
    refused(pack(tmp_path/'a', d, fmt), tmp_path, 'images only in train: emu')

def test_classes_differ(tmp_path):
    d = folder(tmp_path/'in')
    (d/'test/cow').rename(d/'test/cows')
    refused(d, tmp_path, 'only in train: cow', 'only in test: cows')

def test_sizes_differ(tmp_path):
    d = folder(tmp_path/'in')
    put(d/'test/cow/99.png', png(np.zeros((20,40,3), np.uint8)))
    refused(d, tmp_path, 'train/bee/00.png is 32×32', 'test/cow/99.png is 40×20', '--size 32')
    assert load(d, tmp_path, size=24).test_x.shape==(5,24,24,3)

@pytest.mark.parametrize('b', [b'', b'not an image', png(x[0])[:-200], png(x[0])[:20]])
@pytest.mark.parametrize('fmt', [None,'zip','gztar'])
def test_corrupt_image(b, fmt, tmp_path):
    d = folder(tmp_path/'in')
    put(d/'train/cow/77.png', b)
    refused(pack(tmp_path/'a', d, fmt), tmp_path, 'cannot read the image', 'train/cow/77.png')

def test_image_bomb(tmp_path):
    d = folder(tmp_path/'in')
    head = b'IHDR'+struct.pack('>II', 40000, 40000)+b'\1\0\0\0\0'
    put(d/'train/cow/77.png', b'\x89PNG\r\n\x1a\n'+struct.pack('>I', 13)+head+struct.pack('>I', zlib.crc32(head))+png(x[0])[33:])
    refused(d, tmp_path, 'train/cow/77.png', 'decompression bomb')

@pytest.mark.skipif(os.geteuid()==0, reason='root may read everything')
def test_unreadable(tmp_path):
    d = folder(tmp_path/'in')
    (d/'train/cow/05.png').chmod(0)
    refused(d, tmp_path, 'cannot read', '05.png')

def test_file_that_vanishes(tmp_path, monkeypatch):
    d = folder(tmp_path/'in')
    found = list(data.walk_folder(d))
    monkeypatch.setattr(data, 'walk_folder', lambda path: found)
    (d/'train/cow/05.png').unlink()
    refused(d, tmp_path, 'cannot read', 'train/cow/05.png: No such file')

def test_hidden_and_foreign_files_are_ignored(tmp_path):
    d = folder(tmp_path/'in')
    for f in ('.DS_Store','train/.DS_Store','train/bee/.DS_Store','train/bee/._00.png','test/cow/Thumbs.db','train/bee/readme.md',
              'labels.txt','train/.ipynb_checkpoints/1.png','__MACOSX/train/bee/1.png',
              '$RECYCLE.BIN/S-1-5-21/$R1.png','train/#recycle/1.png','train/lost+found/1.png'): put(d/f, b'?')
    same(load(d, tmp_path))
    same(load(shutil.make_archive(tmp_path/'a', 'zip', d), tmp_path))

def test_two_data_sets(tmp_path):
    folder(tmp_path/'in/a')
    folder(tmp_path/'in/b')
    refused(tmp_path/'in', tmp_path, 'several data sets: a, b')

# Batches that are not right

def test_missing_batch(tmp_path):
    d = batches(tmp_path/'b')
    (d/'data_batch_3').unlink()
    (d/'test_batch').unlink()
    refused(d, tmp_path, 'lacks data_batch_3, test_batch')

@pytest.mark.parametrize('o,msg', [
    ([1,2], 'not a CIFAR batch'),
    ({b'data': flat(x)}, "'labels' should be a list of 10"), ({b'data': flat(x), b'labels': [0]}, 'list of 10'),
    ({b'data': flat(x), b'labels': [2]*10}, 'numbers from 0 to 1'), ({b'data': flat(x), b'labels': [-1]*10}, 'numbers from 0 to 1'),
    ({b'data': flat(x), b'labels': ['bee']*10}, 'numbers from 0 to 1'), ({b'labels': [0]*10}, 'N rows of 3072'),
    ({b'data': flat(x)[:,:100], b'labels': [0]*10}, '(10, 100)'), ({b'data': flat(x).tobytes(), b'labels': [0]*10}, 'N rows of 3072'),
    ({b'data': flat(x).astype(np.int64), b'labels': [0]*10}, "array of type 'i8'"),
    ({b'data': flat(x).astype(object), b'labels': [0]*10}, "array of type 'O8'"),
    ({b'data': flat(x), b'labels': y}, 'list of 10')])
@pytest.mark.parametrize('f', ['data_batch_2','test_batch'])
def test_wrong_batch(f, o, msg, tmp_path):
    d = batches(tmp_path/'b')
    put(d/f, pickle.dumps(o, 2))
    refused(d, tmp_path, f, msg)

@pytest.mark.parametrize('b', [b'', b'junk', pickle.dumps({b'data': flat(x)}, 2)[:-50]])
def test_damaged_batch(b, tmp_path):
    d = batches(tmp_path/'b')
    put(d/'data_batch_5', b)
    refused(d, tmp_path, 'data_batch_5 is not a CIFAR batch')

@pytest.mark.parametrize('o', [{}, {b'label_names': []}, {b'label_names': 3}, {b'label_names': [1,2]}])
def test_wrong_meta(o, tmp_path):
    d = batches(tmp_path/'b')
    put(d/'batches.meta', pickle.dumps(o, 2))
    refused(d, tmp_path, 'batches.meta', 'names of the classes')

class Evil:
    def __init__(self, f, *args): self.f,self.args = f,args
    def __reduce__(self): return self.f,self.args

@pytest.mark.parametrize('f', ['data_batch_1','test_batch','batches.meta'])
@pytest.mark.parametrize('protocol', [0,2,4])
def test_malicious_pickle(protocol, f, tmp_path):
    mark = tmp_path/'mark'
    for o in (Evil(os.system, f'touch {mark}'), Evil(open, str(mark), 'w'), Evil(exec, f'open({str(mark)!r},"w")'),
              Evil(getattr, 'x', 'upper'), Evil(np.fromfile, str(mark)), Evil(__import__, 'this')):
        d = batches(tmp_path/'b')
        put(d/f, pickle.dumps({b'data': o}, protocol))
        refused(d, tmp_path, f, 'refusing to run')
    assert not mark.exists()

def test_pickle_may_not_pick_attributes_or_codecs(tmp_path):
    d = batches(tmp_path/'b')
    for b,msg in [(b'\x80\x04\x8c\x05numpy\x8c\x14ndarray.__reduce__.x\x93.', 'refusing to run'),
                  (b'c_codecs\nencode\n(Vx\nVbz2\ntR.', "'bz2' is not a text encoding"),
                  (b'cnumpy.core.multiarray\nfrombuffer\n.', 'refusing to run'),
                  (b'}Vdata\nc_codecs\nencode\n}Va\nI1\nsbs.', 'not a CIFAR batch'), (b'}Vdata\ncnumpy\nndarray\n)Rs.', 'N rows of 3072'),
                  (b'\x80\x02\x82\x01.', 'not a CIFAR batch'), (b'Vx\nQ.', 'not a CIFAR batch')]:
        put(d/'data_batch_1', b)
        refused(d, tmp_path, 'data_batch_1', msg)

# Archives that are not right

def tar(path, *entries, mode='w:gz'):
    with tarfile.open(path, mode) as t:
        for name,kw in entries:
            m = tarfile.TarInfo(name)
            for k,v in kw.items(): setattr(m, k, v)
            t.addfile(m, io.BytesIO((png(x[0])+bytes(2**20))[:m.size]))
    return path

good = 'train/bee/1.png',dict(size=len(png(x[0])))
@pytest.mark.parametrize('name', ['/etc/cron.d/x', '../x.png', 'train/bee/../../../x.png', 'train\\..\\..\\x.png', 'C:\\x.png', 'C:/x.png',
                                  '\\\\host\\x'])
def test_entry_outside(name, tmp_path):
    refused(tar(tmp_path/'a.tgz', good, (name, dict(size=4))), tmp_path, repr(name), 'points outside', 'a.tgz')
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z: z.writestr(name, b'1')
    refused(tmp_path/'a.zip', tmp_path, 'points outside', 'a.zip')

@pytest.mark.parametrize('kind', [tarfile.SYMTYPE,tarfile.LNKTYPE,tarfile.CHRTYPE,tarfile.BLKTYPE,tarfile.FIFOTYPE])
def test_link_or_device(kind, tmp_path):
    f = tar(tmp_path/'a.tar', good, ('train/bee/2.png', dict(type=kind, linkname='/etc/passwd')), mode='w')
    refused(f, tmp_path, "'train/bee/2.png'", 'link or a device')

def test_link_in_zip(tmp_path):
    m = zipfile.ZipInfo('train/bee/2.png')
    m.create_system,m.external_attr = 3,0o120777<<16
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z: z.writestr(m, '/etc/passwd')
    refused(tmp_path/'a.zip', tmp_path, "'train/bee/2.png'", 'link or a device')

def test_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'most_bytes', 2**20)
    big = 'train/bee/2.png',dict(size=2**20)
    refused(tar(tmp_path/'a.tgz', good, big), tmp_path, 'a.tgz', 'more than')
    assert (tmp_path/'a.tgz').stat().st_size<2**13
    with zipfile.ZipFile(tmp_path/'a.zip', 'w', zipfile.ZIP_DEFLATED) as z:
        for n,b in (good[0],png(x[0])),(big[0],bytes(2**20)): z.writestr(n, b)
    assert (tmp_path/'a.zip').stat().st_size<2**13
    refused(tmp_path/'a.zip', tmp_path, 'a.zip', 'more than')

@pytest.mark.parametrize('fmt', ['zip','tar','gztar','bztar','xztar'])
@pytest.mark.parametrize('kind', ['flat','batches'])
def test_cut_short_anywhere(kind, fmt, made, tmp_path):
    f = pack(tmp_path/'whole', made[kind], fmt)
    b = f.read_bytes()
    end = len(b)
    if fmt=='tar': end = max(m.offset_data+-(-m.size//512)*512 for m in tarfile.open(f).getmembers()) # zeros follow, 1 kB of which matter
    ends = {0, 1, 100, end//3, end//2, end*9//10, end-1, *(range(0, end+1, 512) if fmt=='tar' else [])}
    for n in sorted(ends):
        cut = put(tmp_path/f'cut{"".join(f.suffixes)}', b[:n])
        refused(cut, tmp_path, str(cut), 'cut short')

@pytest.mark.parametrize('fmt', ['zip','gztar','xztar'])
def test_flipped_bits(fmt, made, tmp_path):
    b = (f := pack(tmp_path/'whole', made['flat'], fmt)).read_bytes()
    want,n = load(f, tmp_path).fingerprint,0
    for i in np.linspace(10, len(b)-10, 25).astype(int):
        bad = bytearray(b)
        bad[i] ^= 0x10
        try: assert load(put(tmp_path/('bad'+''.join(Path(f).suffixes)), bytes(bad)), tmp_path).fingerprint==want
        except CifarFastError: n += 1
    assert n>15  # some bits, such as dates in a header, do not matter; none may change a pixel unseen

def test_damaged_tar_header(made, tmp_path):
    b = bytearray((f := pack(tmp_path/'whole', made['flat'], 'tar')).read_bytes())
    at = [m.offset for m in tarfile.open(f).getmembers()][12]
    b[at+5] ^= 1
    refused(put(tmp_path/'bad.tar', bytes(b)), tmp_path, 'bad.tar', 'cut short')

def test_no_archive(tmp_path):
    for n in 'a.jpg','a.zip','a.tar.xz','a.7z': refused(put(tmp_path/n, b'hello'*100), tmp_path, n, 'as a .zip or .tar archive')

def test_archives_by_any_name(made, tmp_path):
    "As a browser leaves them"
    for i,fmt in enumerate(('zip','tar','gztar')):
        same(load(pack(tmp_path/'a', made['flat'], fmt).rename(tmp_path/f'archive ({i})'), tmp_path))

def test_zip_with_password(made, tmp_path):
    b = bytearray(pack(tmp_path/'whole', made['flat'], 'zip').read_bytes())
    for m in list(re.finditer(b'PK\x01\x02', b)): b[m.start()+8] |= 1
    for m in list(re.finditer(b'PK\x03\x04', b)): b[m.start()+6] |= 1
    refused(put(tmp_path/'secret.zip', bytes(b)), tmp_path, 'secret.zip', 'encrypted')

def test_zip_of_utf8_that_does_not_say_so(tmp_path):
    "As the archiver of macOS writes it"
    b = bytearray(pack(tmp_path/'whole', draw(tmp_path/'in', classes=('caf\u00e9','zoo')), 'zip').read_bytes())
    for mark,at in (b'PK\x01\x02',9),(b'PK\x03\x04',7):
        for m in list(re.finditer(mark, b)): b[m.start()+at] &= ~8
    assert load(put(tmp_path/'silent.zip', bytes(b)), tmp_path).vocab==['caf\u00e9','zoo']
    old = put(tmp_path/'old.zip', bytes(b).replace('caf\u00e9'.encode(), b'caf\x82g'))  # cp437, for which the name is as long
    assert load(old, tmp_path).vocab==['caf\u00e9g','zoo']

def test_damage_in_the_list_of_a_zip(tmp_path):
    f = pack(tmp_path/'whole', draw(tmp_path/'in', classes=('caf\u00e9','zoo'), n=1), 'zip')
    b = f.read_bytes()
    at = b.index('caf\u00e9'.encode(), b.index(b'PK\x01\x02'))+3
    refused(put(tmp_path/'bad.zip', b[:at]+b'\xff'+b[at+1:]), tmp_path, 'bad.zip', "'utf-8' codec can't decode", 'Is it damaged')

@pytest.mark.parametrize('fmt', ['zip','tar'])
def test_entry_that_stands_twice(fmt, tmp_path):
    "As `tar -r` leaves what was added again: one of them would be trained on twice, or be in both sets"
    f = pack(tmp_path/'a', draw(tmp_path/'in'), fmt)
    if fmt=='tar':
        with tarfile.open(f, 'a') as t:
            for n in 'train','train/cat','./train/cat/0.png': t.add(tmp_path/'in'/n.removeprefix('./'), n, recursive=False)
    else:
        with zipfile.ZipFile(f, 'a') as z: z.writestr('train//cat/0.png', (tmp_path/'in/train/dog/0.png').read_bytes())
    refused(f, tmp_path, 'cat/0.png', 'stands there twice')

def peak(f, *args):
    "The most memory, in MB, that Python had while it refused an archive"
    tracemalloc.start()
    try: refused(f, *args)
    finally: most = tracemalloc.get_traced_memory()[1]/2**20,tracemalloc.stop()
    return most[0]

def test_bombs_that_lie(tmp_path):
    "A zip that says 100 bytes, a tar whose name of a file is 64 MB long"
    with zipfile.ZipFile(tmp_path/'a.zip', 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('train/a/0.png', bytes(2**26))
    b = bytearray((tmp_path/'a.zip').read_bytes())
    for at in 22,b.index(b'PK\x01\x02')+24: b[at:at+4] = struct.pack('<I', 100)
    assert peak(put(tmp_path/'a.zip', bytes(b)), tmp_path, 'a.zip', 'CRC')<8
    for kind in tarfile.GNUTYPE_LONGNAME,tarfile.XHDTYPE:
        m = tarfile.TarInfo('long')
        m.type,m.size = kind,2**26
        f = put(tmp_path/'a.tgz', zlib.compress(m.tobuf()+bytes(2**26)+tarfile.TarInfo('train/a/0.png').tobuf()+bytes(1024), wbits=31))
        assert peak(f, tmp_path, 'a.tgz', 'longer than')<8

def test_nothing_lands(made, tmp_path):
    f = pack(tmp_path/'some', made['flat'], 'gztar')
    before = set(tmp_path.rglob('*'))
    load(f, tmp_path)
    assert {o.suffix for o in set(tmp_path.rglob('*'))-before}=={'','.npz'}

# Cache

@pytest.fixture
def reads(monkeypatch):
    n,read = [],data._read
    monkeypatch.setattr(data, '_read', lambda *args: n.append(1) or read(*args))
    return n

def test_cache_is_used(made, tmp_path, reads):
    f = pack(tmp_path/'some', made['flat'], 'zip')
    for i in range(3):
        same(load(made['flat'], tmp_path))
        same(load(f, tmp_path))
    assert len(reads)==2

@pytest.mark.parametrize('change', ['edit','add','remove','rename','touch','archive'])
def test_change_is_noticed(change, tmp_path, reads):
    d = folder(tmp_path/'in')
    src = Path(shutil.make_archive(tmp_path/'some', 'tar', d)) if change=='archive' else d
    old = load(src, tmp_path)
    f = d/'train/cow/06.png'
    st = f.stat()
    if change=='edit':
        put(f, png(x[7]))
        os.utime(f, ns=(st.st_atime_ns,st.st_mtime_ns))
    elif change=='add': put(d/'train/cow/99.png', png(x[0]))
    elif change=='remove': f.unlink()
    elif change=='rename': f.rename(d/'train/cow/99.png')
    elif change=='touch': f.touch()
    else:
        put(d/'train/cow/99.png', png(x[0]))
        shutil.make_archive(tmp_path/'some', 'tar', d)
    new = load(src, tmp_path)
    assert len(reads)==2
    assert (new.fingerprint==old.fingerprint)==(change=='touch')

@pytest.mark.parametrize('b', [b'', b'PK', b'\x93NUMPY junk', pickle.dumps(Evil(os.system, 'touch mark'))])
def test_corrupt_cache_is_made_anew(b, tmp_path, reads, monkeypatch):
    monkeypatch.chdir(tmp_path)
    d = folder(tmp_path/'in')
    load(d, tmp_path)
    entry, = (tmp_path/'cache').iterdir()
    for bad in b,entry.read_bytes()[:-100]:
        put(entry, bad)
        same(load(d, tmp_path))
        same(load(d, tmp_path))
    assert len(reads)==3
    assert not Path('mark').exists()

def test_cache_with_pickled_objects_is_not_loaded(tmp_path, reads):
    d = folder(tmp_path/'in')
    load(d, tmp_path)
    entry, = (tmp_path/'cache').iterdir()
    with open(entry,'wb') as f: np.savez(f, train_x=np.array([Evil(os.system, f'touch {tmp_path}/mark')], dtype=object))
    same(load(d, tmp_path))
    assert len(reads)==2
    assert not (tmp_path/'mark').exists()

@pytest.mark.parametrize('e', [KeyboardInterrupt(), RuntimeError('half')])
def test_interrupted_write_leaves_nothing(e, tmp_path, monkeypatch):
    d = folder(tmp_path/'in')
    def half(f, **kw):
        f.write(b'half')
        raise e
    with monkeypatch.context() as m:
        m.setattr(np, 'savez', half)
        with pytest.raises(type(e)): load(d, tmp_path)
    assert not list((tmp_path/'cache').iterdir())
    same(load(d, tmp_path))

def test_cache_that_cannot_be_written_is_a_warning(tmp_path):
    d = folder(tmp_path/'in')
    put(tmp_path/'file', b'')
    with pytest.warns(UserWarning, match='read anew next time'): same(load_images(d, cache=tmp_path/'file'))

def test_cache_that_cannot_be_looked_into_is_a_warning(tmp_path):
    d = folder(tmp_path/'in')
    with pytest.warns(UserWarning, match='read anew next time'): same(load_images(d, cache=tmp_path/('long'*100)))

def test_cache_folder_from_environment(tmp_path, monkeypatch):
    monkeypatch.setenv('CIFAR_FAST_CACHE', str(tmp_path/'env'))
    load_images(folder(tmp_path/'in'))
    assert len(list((tmp_path/'env').iterdir()))==1

# shapes10

drawn = Shapes10(x, y, tx, ty, x[...,0]>99, tx[...,0]>99, vocab)

def test_shapes_are_drawn_once(tmp_path, monkeypatch):
    sizes = []
    def shapes10(n_train=6000, n_test=2000, size=32, seed=0): return sizes.append(size) or drawn
    monkeypatch.setattr(data, 'shapes10', shapes10)
    for i in range(2):
        o = load('shapes10', tmp_path)
        same(o)
        np.testing.assert_array_equal(o.test_mask, drawn.test_mask)
        assert o.name=='shapes10' and o.train_mask.dtype==bool
    load('shapes10', tmp_path, size=24)
    assert sizes==[32,24]

# The download

@pytest.fixture
def server(tmp_path, monkeypatch):
    www = tmp_path/'www'
    batches(tmp_path/'src/cifar-10-batches-py')
    www.mkdir()
    f = Path(shutil.make_archive(www/'cifar-10-python', 'gztar', tmp_path/'src'))
    class Handler(http.server.SimpleHTTPRequestHandler):
        hits = []
        def __init__(self, *args): super().__init__(*args, directory=str(www))
        def do_GET(self):
            self.hits.append(self.path)
            super().do_GET()
        def log_message(self, *args): pass
    s = http.server.ThreadingHTTPServer(('127.0.0.1',0), Handler)
    t = threading.Thread(target=s.serve_forever, daemon=True)
    t.start()
    monkeypatch.setattr(data, '_cifar10_url', f'http://127.0.0.1:{s.server_port}/{f.name}')
    monkeypatch.setattr(data, '_cifar10_sha256', data._key(f))
    yield f,Handler
    s.shutdown()
    s.server_close()

def test_download(server, tmp_path, reads):
    f,h = server
    o = load('cifar10', tmp_path)
    same(o)
    assert o.name=='cifar10'
    load('cifar10', tmp_path)
    assert len(h.hits)==len(reads)==1
    assert load('cifar10', tmp_path, size=16).train_x.shape[1]==16  # from the archive that is kept
    assert len(h.hits)==1
    (tmp_path/'cache'/f.name).write_bytes(b'damaged')
    load('cifar10', tmp_path, size=8)
    assert len(h.hits)==2

def test_archive_from_elsewhere_serves_cifar10(server, tmp_path):
    f,h = server
    load(f, tmp_path)
    same(load('cifar10', tmp_path))
    assert not h.hits

def test_wrong_checksum(server, tmp_path):
    f,h = server
    f.write_bytes(f.read_bytes()[:-1]+b'?')
    refused('cifar10', tmp_path, 'not CIFAR-10', 'SHA-256', '--data PATH', '--data shapes10')

def test_not_found(server, tmp_path):
    f,h = server
    f.unlink()
    refused('cifar10', tmp_path, 'cannot download', '404', '--data PATH')

def test_nobody_there(tmp_path, monkeypatch):
    for url in 'http://127.0.0.1:9/c.tar.gz','http://no.such.host.invalid/c.tar.gz':
        monkeypatch.setattr(data, '_cifar10_url', url)
        refused('cifar10', tmp_path, 'cannot download', '--data PATH', '--data shapes10')

@pytest.mark.parametrize('answer', [b'', b'HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\nshort', b'garbage\r\n\r\n', None])
def test_broken_server(answer, tmp_path, monkeypatch):
    s = socket.create_server(('127.0.0.1',0))
    held = []
    def serve():
        try:
            while True:
                c,_ = s.accept()
                c.recv(4096)
                if answer is None: held.append(c)  # says nothing, for ever
                else:
                    c.sendall(answer)
                    c.close()
        except OSError: pass
    threading.Thread(target=serve, daemon=True).start()
    monkeypatch.setattr(data, '_cifar10_url', f'http://127.0.0.1:{s.getsockname()[1]}/c.tar.gz')
    monkeypatch.setattr(data, '_timeout', 1)
    refused('cifar10', tmp_path, 'cannot download', '--data PATH')
    s.close()

# Folders as people have them

def draw(path, splits=('train','test'), classes=('cat','dog','owl'), n=4):
    "Noise of its own in every picture of <split>/<class>/"
    for s in splits:
        for c in classes:
            for i in range(n): put(path/s/c/f'{i}.png', png(rng.integers(0, 256, (6,8,3), dtype=np.uint8)))
    return path

def numbers(o): return len(o.train_x),len(o.test_x),None if o.valid is None else len(o.valid)

@pytest.mark.parametrize('splits,want', [
    ([''], (14,6,None)), (['train'], (14,6,None)), (['Train','TEST'], (20,20,None)), (['training','testing'], (20,20,None)),
    (['train','validation'], (20,20,None)), (['Training','Evaluation'], (20,20,None)), (['train','val','test'], (40,20,20)),
    (['a/b/c/train','a/b/c/Val','a/b/c/eval'], (40,20,20)), (['photos/2023'], (14,6,None))])
@pytest.mark.parametrize('fmt', [None,'zip'])
def test_splits_by_any_name(fmt, splits, want, tmp_path):
    o = load(pack(tmp_path/'out', draw(tmp_path/'in', splits, ('cat','dog'), 10), fmt), tmp_path, test=.3 if len(splits)==1 else None)
    assert numbers(o)==want and o.vocab==['cat','dog'] and len(o.notes)==(len(splits)==1)

def test_a_drawn_test_set_is_the_same_tomorrow_and_stratified(tmp_path):
    a = load(draw(tmp_path/'in', [''], n=20), tmp_path)
    for f in (tmp_path/'in').rglob('*.png'): put(f, png(255-np.asarray(Image.open(f))))
    b = load(tmp_path/'in', tmp_path)
    np.testing.assert_array_equal(a.test_x, 255-b.test_x)  # by name, whatever the pictures show
    assert np.bincount(a.test_y).tolist()==[4]*3 and 'no test set: 12 of 60 images' in a.notes[0]
    assert len(load(tmp_path/'in', tmp_path, test=.5).test_y)==30
    refused(folder(tmp_path/'whole'), tmp_path/'other', 'has a test set of its own', test=.5)
    for bad in 0,1,-1,float('nan'): refused(tmp_path/'in', tmp_path/'other', 'a fraction above 0 and below 1', test=bad)

def test_validation_split_of_the_data_set(tmp_path):
    o = load(draw(tmp_path/'in', ('train','val','test')), tmp_path)
    files_of = lambda s: np.stack([np.asarray(Image.open(f)) for f in sorted((tmp_path/'in'/s).rglob('*.png'))])
    trn,val = o.split()
    for got,s in (o.train_x[trn],'train'),(o.train_x[val],'val'),(o.test_x,'test'): np.testing.assert_array_equal(got, files_of(s))
    again = load(tmp_path/'in', tmp_path)  # from the cache
    assert (again.valid==val).all() and again.fingerprint==o.fingerprint and again.notes==o.notes==[]

def test_subfolders_of_a_class_and_a_class_called_as_a_split(tmp_path):
    d = draw(tmp_path/'in', [''], ('bus','train'))
    for i in range(4): put(d/'bus/old/1950'/f'{i}.png', png(x[i]))
    o = load(d, tmp_path, size=8)
    assert o.vocab==['bus','train'] and len(o.train_y)+len(o.test_y)==12
    assert not load(draw(tmp_path/'nested', ('train/','test')), tmp_path).notes

def test_every_format_and_what_is_left_out(tmp_path):
    d = draw(tmp_path/'in', n=1)
    exts = 'jfif jpe JPG jp2 ppm pgm pbm tga webp bmp dib tiff gif png ico pcx sgi apng avif dds xbm'.split()
    made = [e for e in exts if e!='avif' or 'AVIF' in Image.SAVE]
    for e in made:
        im = Image.fromarray(rng.integers(0, 256, (6,8,3), dtype=np.uint8))
        im = im.convert({'xbm':'1','pbm':'1','pgm':'L'}.get(e, 'RGB'))
        im.save(d/f'train/cat/more.{e}', {'jfif':'JPEG','jpe':'JPEG','ico':'PNG'}.get(e))
    for e in 'txt','eps','heic','': put(d/'train/cat'/f'no{e and "."+e}', b'?')
    put(d/'test/cat/Thumbs.db', b'?')
    put(d/'train/loose.png', png(x[0]))
    o = load(d, tmp_path)
    assert len(o.train_y)==3+len(made)
    assert o.notes[:2]==['files that are no pictures (.eps, .heic, .txt, without a suffix), left out: 4 (train/cat/no, train/cat/no.eps, '
                         'train/cat/no.heic, train/cat/no.txt)', 'pictures in no class folder, left out: 1 (train/loose.png)']

@pytest.mark.parametrize('fmt', [None,'zip','tar'])
def test_empty_classes(fmt, tmp_path):
    d = draw(tmp_path/'in')
    for s in 'train','test': (d/s/'yak').mkdir()
    put(d/'train/emu/notes.txt', b'')
    o = load(pack(tmp_path/'out', d, fmt), tmp_path)
    assert o.vocab==['cat','dog','owl'] and 'classes without a picture, left out: 2 (emu, yak)' in o.notes

@pytest.mark.parametrize('fmt', [None,'zip','tar'])
def test_all_damaged_files_at_once(fmt, tmp_path):
    d = draw(tmp_path/'in')
    for i,c in enumerate(('cat','dog','owl')): put(d/'train'/c/'0.png', png(x[0])[:100*i])
    src = pack(tmp_path/'out', d, fmt)
    refused(src, tmp_path, 'cannot read 3 images', 'train/cat/0.png (', 'train/dog/0.png (', 'train/owl/0.png (', '--skip_broken')
    o = load(src, tmp_path, skip_broken=True)
    assert numbers(o)==(9,12,None) and o.notes==['damaged images, left out: 3 (train/cat/0.png, train/dog/0.png, train/owl/0.png)']
    for f in d.rglob('*.png'): put(f, b'')
    refused(pack(tmp_path/'none', d, fmt), tmp_path/'other', 'cannot read 24 images', skip_broken=True)

def test_remarks_on_the_images(tmp_path):
    d = draw(tmp_path/'in', classes=('cat','dog','owl'))
    for c in 'cat','dog': shutil.copy(d/'train/owl/0.png', d/'test'/c/'0.png')
    for i in range(30): put(d/'train/cat'/f'x{i}.png', png(rng.integers(0, 256, (6,8,3), dtype=np.uint8)))
    o = load(d, tmp_path)
    assert o.notes==['test images that are training images, too: 2 (test/cat/0.png = train/owl/0.png, test/dog/0.png = train/owl/0.png)',
        'images that stand under several classes: 1 (train/owl/0.png (owl) = test/cat/0.png (cat) = test/dog/0.png (dog))',
        'uneven classes: cat has 34 training images and dog 4; accuracy hides the rare ones']
    assert load(d, tmp_path).notes==o.notes

def test_validation_images_that_are_training_images(tmp_path):
    d = draw(tmp_path/'in', ('train','val','test'))
    for s,n in ('val',0),('test',1): shutil.copy(d/'train/owl/0.png', d/s/'owl'/f'{n}.png')
    shutil.copy(d/'val/cat/3.png', d/'test/cat/2.png')
    assert load(d, tmp_path).notes==['validation images that are training images, too: 1 (val/owl/0.png = train/owl/0.png)',
        'test images that are training images, too: 2 (test/owl/1.png = train/owl/0.png, test/cat/2.png = val/cat/3.png)']

@pytest.mark.parametrize('splits', [('train','test'), ('train','val','test')])
def test_training_images_that_stand_there_twice(splits, tmp_path):
    "A split that is drawn later may part them"
    d = draw(tmp_path/'in', splits)
    for n in 8,9: shutil.copy(d/'train/owl/0.png', d/f'train/owl/{n}.png')
    part = ', one of which --valid_pct may hold out' if len(splits)==2 else ''
    assert load(d, tmp_path).notes==[f'training images that stand there twice{part}: 2 (train/owl/8.png = train/owl/0.png, '
                                     'train/owl/9.png = train/owl/0.png)']

def test_too_few_to_hold_out(tmp_path):
    d = draw(tmp_path/'in')
    o = load(d, tmp_path)
    with pytest.raises(CifarFastError, match='class cat has 4 images: too few to hold out 10%'): o.split(.1)

def test_notes_are_said(tmp_path, capsys):
    settle_note = 'no test set: 6 of 12 images are kept apart as one, 50% of each class; --test .1 changes how many'
    load(draw(tmp_path/'mine', ['']), tmp_path, test=.5)
    assert capsys.readouterr().out=='mine: '+settle_note+'\n'

def test_several_data_sets_are_named(tmp_path):
    draw(tmp_path/'a/pets')
    draw(tmp_path/'a/deeper/flowers')
    batches(tmp_path/'a/cifar-10-batches-py')
    refused(tmp_path/'a', tmp_path, 'several data sets: cifar-10-batches-py, deeper/flowers, pets')
    for o in 'cifar-10-batches-py','cifar-100-python':
        for f in 'train','test','meta': put(tmp_path/'b'/o/f, b'')
    refused(tmp_path/'b', tmp_path, 'several data sets: cifar-10-batches-py, cifar-100-python')
    draw(tmp_path/'c', ('pets','flowers'))
    refused(tmp_path/'c', tmp_path, 'holds folders of folders, flowers, pets')
    draw(tmp_path/'d', ('val','valid','train'))
    refused(tmp_path/'d', tmp_path, 'two folders for one split')

@pytest.mark.parametrize('splits', [('training/train','training/test'), ('train/data/train','train/data/test'), ('TrainSet','TestSet'),
                                    ('train/images','test/images'), ('x/traindata','x/valdata')])
@pytest.mark.parametrize('fmt', [None,'zip'])
def test_folders_around_the_classes(fmt, splits, tmp_path):
    o = load(pack(tmp_path/'out', draw(tmp_path/'in', splits), fmt), tmp_path)
    assert numbers(o)==(12,12,None) and o.vocab==['cat','dog','owl'] and not o.notes

@pytest.mark.parametrize('split', ['','train'])
def test_a_copy_of_the_data_set_among_its_classes(split, tmp_path):
    "As in a well-known set of flowers: the copy is no class"
    d = draw(tmp_path/'in', [split,f'{split}/flowers'.strip('/')])
    refused(d, tmp_path, 'is flowers a class, like cat, dog, owl beside it, of which it holds folders, too? Take it out')
    shutil.rmtree(d/split/'flowers/cat')
    (d/split/'flowers/dog').rename(d/split/'flowers/old')  # a single folder of such a name may be chance
    assert load(d, tmp_path).vocab==['cat','dog','flowers','owl']

def test_a_data_set_beside_other_pictures(tmp_path):
    "Or a class of folders: nobody can tell, so it is said"
    d = draw(tmp_path/'in', ['images'])
    draw(d, [''], ['figures'])
    for i in range(9): put(d/f'Test/{i}.png', png(x[i]))
    assert load(d, tmp_path, size=8).notes[:2]==['classes whose pictures all lie in folders: 1 (images: cat, dog, owl)',
                                                 'classes that are called like a split: 1 (Test)']

def test_archives_in_a_folder(tmp_path):
    pack(tmp_path/'in/train', draw(tmp_path/'pets'), 'zip')
    refused(tmp_path/'in', tmp_path, "or CIFAR's batches. Unpack train.zip there")

def test_same_letters_are_one_class(tmp_path):
    d = draw(tmp_path/'in', classes=('caf\u00e9','zoo'))
    (d/'test/caf\u00e9').rename(d/'test/cafe\u0301')
    assert load(d, tmp_path).vocab==['caf\u00e9','zoo']

def test_classes_that_are_numbers(tmp_path):
    "Label 10 is class 10, in a folder as in a table"
    o = load(draw(tmp_path/'in', [''], map(str, range(12))), tmp_path, test=.5)
    assert o.vocab==[*map(str, range(12))] and [o.vocab[i] for i in o.train_y]==[n.split('/')[0] for n in o.names[:len(o.train_y)]]
    (tmp_path/'in/3').rename(tmp_path/'in/3a')
    assert load(tmp_path/'in', tmp_path, test=.5).vocab[:3]==['0','1','10']

def test_classes_that_differ_in_capitals_only(tmp_path):
    "Two classes they are, but perhaps by a slip of the hand"
    d = tmp_path/'in'
    for i,a in enumerate(x): put(d/f'{i}.png', png(a))
    o = load(d, tmp_path, test=.5, **table(d, '\n'.join(f"{i}.png,{['dog','cat','Dog'][i%3]}" for i in range(10))))
    assert o.vocab==['Dog','cat','dog'] and o.notes[1:]==['classes that differ in capitals or spaces only: 1 (Dog = dog)']

@pytest.mark.skipif(os.name=='nt' or os.uname().sysname=='Darwin', reason='names are Unicode there')
def test_names_that_are_no_text(tmp_path):
    d = draw(tmp_path/'in', classes=('a','b'))
    odd = {b'caf\xe9': 'caf\\udce9', b'line\nbreak': 'line\\nbreak', b'\x1b[31mred': '\\x1b[31mred', b'=1+1': '=1+1',
           b'$\\frac{1}{0}$': '$\\frac{1}{0}$'}
    for s in 'train','test':
        for o in odd:
            (d/s/os.fsdecode(o)).mkdir()
            put(d/s/os.fsdecode(o)/os.fsdecode(o+s.encode()+b'.png'), png(rng.integers(0, 256, (6,8,3), dtype=np.uint8)))
    got = load(d, tmp_path)
    assert got.vocab==sorted(['a','b',*odd.values()]) and load(d, tmp_path).vocab==got.vocab
    put(d/'train'/os.fsdecode(b'caf\xe9')/os.fsdecode(b'\n\xff.png'), b'')
    refused(d, tmp_path/'other', 'caf\\udce9/\\n\\udcff.png')

# Tables of labels

def table(d, text, name='labels.csv', enc='utf-8'):
    put(d/name, text.encode(enc))
    return dict(labels=name)

@pytest.mark.parametrize('fmt', [None,'zip','gztar'])
def test_table_of_labels(fmt, tmp_path):
    d = tmp_path/'in'
    for i,a in enumerate(x): put(d/'images'/f'{i:02}.png', png(a))
    rows = [f'{i:02},{"bee" if i%2 else "cow"},{["train","Val","test","test"][i//4]}' for i in range(10)]
    kw = table(d, 'id,breed,split\n'+'\n'.join(rows))
    o = load(pack(tmp_path/'out', d, fmt), tmp_path, **kw)
    np.testing.assert_array_equal(o.train_x, x[[1,3,0,2,5,7,4,6]])
    assert o.train_y.tolist()==[0,0,1,1]*2 and o.valid.tolist()==[4,5,6,7] and o.vocab==['bee','cow']

def test_table_finds_its_pictures(tmp_path):
    d = tmp_path/'in'
    for i,a in enumerate(x): put(d/'train'/f'{i:02}.png', png(a))
    for i,a in enumerate(tx): put(d/'test'/f'{i:02}.png', png(a))
    rows = [f'train/{i:02}.png;{vocab[c]}' for i,c in enumerate(y)]+[f'test/{i:02}.png;{vocab[c]}' for i,c in enumerate(ty)]
    for enc in 'utf-8','utf-8-sig','utf-16': same(load(d, tmp_path, **table(d, '\r\n'.join(rows), enc=enc)))
    same(load(d, tmp_path, labels=str(d/'labels.csv')))
    for text,msg in [('00;bee', '00 may be'), ('nope;bee', 'names 1 pictures that are not there: nope'), ('', 'has none'),
                     ('train/00.png', 'a file and a class'), ('train/00.png;bee\ntrain/00.png;cow', 'twice, as bee and cow'),
                     ('file;class;split\ntrain/00.png;bee;tset', "'tset': choose train, valid or test")]:
        refused(d, tmp_path/'other', msg, **table(d, text))
    refused(d, tmp_path/'other', 'no table of labels x.csv', labels='x.csv')
    refused(pack(tmp_path/'out', d, 'zip'), tmp_path/'other', 'no table of labels x.csv', labels='x.csv')
    refused('shapes10', tmp_path/'other', 'shapes10 has its own', labels='x.csv')

def test_table_that_changes_is_read_again(tmp_path, reads):
    d = draw(tmp_path/'in', [''], n=5)
    rows = [f'{f.parent.name}/{f.name},{f.parent.name}' for f in sorted(d.rglob('*.png'))]
    a = load(d, tmp_path, **table(d, '\n'.join(rows)))
    b = load(d, tmp_path, **table(d, '\n'.join(rows).replace(',owl', ',dog')))
    assert (a.vocab,b.vocab,len(reads))==(['cat','dog','owl'],['cat','dog'],2)

def test_columns_are_chosen_by_what_they_say(tmp_path):
    "A number in front is not the file, though pictures of such names may be there"
    d = tmp_path/'in'
    for i,a in enumerate(x): put(d/f'{i}.png', png(a))
    text = 'id,filename,label,split\n'+'\n'.join(f'{i},{(i+1)%10}.png,{vocab[i%2]},{"test" if i>7 else "train"}' for i in range(10))
    o = load(d, tmp_path, **table(d, text))
    want = {f'{(i+1)%10}.png': vocab[i%2] for i in range(10)}
    assert {n: o.vocab[c] for n,c in zip(o.names, [*o.train_y,*o.test_y])}==want

def test_which_column_is_which(tmp_path):
    "By a heading in any words, where only one column can be meant; without one by what looks like a picture or a split"
    d = tmp_path/'in'
    for i,a in enumerate(x): put(d/f'{i}.png', png(a))
    want = {f'{i}.png': vocab[i%2] for i in range(10)}
    for head,row in [('name,label','{f},{c}'), ('class id,filepaths,labels','{i},{f},{c}'), ('File Name;Class Name;x','{f};{c};1'),
                     ('Datei;Klasse','{f};{c}'), (',name,label','{i},{f},{c}'), ('Klasse\tDatei','{c}\t{f}'),
                     ('Width,ClassId,Path','6,{c},{f}'), ('name,label','{i},{c}'), ('id,name,label','{j},{f},{c}'), ('id,url,label','{i},http://x.org/{j}.png,{c}'),
                     (None,'{f},{c},0.93,{i}'), (None,'{i},{f},{c}'), (None,'{c},{f}'), (None,'{i},{c},{f}')]:
        text = [head]*bool(head)+[row.format(i=i, j=(i+1)%10, f=f'{i}.png', c=vocab[i%2]) for i in range(10)]
        o = load(d, tmp_path, **table(d, '\n'.join(text)))
        assert {n: o.vocab[c] for n,c in zip(o.names, [*o.train_y,*o.test_y])}==want, head or row
    for row in '{f},{s},{c}','{f},{c},{s}','{s},{f},{c}':
        text = [row.format(f=f'{i}.png', c=vocab[i%2], s=('train','test')[i>5]) for i in range(10)]
        o = load(d, tmp_path, **table(d, '\n'.join(text)))
        assert numbers(o)==(6,4,None) and o.vocab==vocab
    for text in 'Datei;Breite;Klasse\n0.png;6;cow','image,MEL,NV\n0,0.0,1.0\n1,1.0,0.0':
        refused(d, tmp_path/'other', 'labels.csv: which column is the file, and which the class?', **table(d, text))

def test_a_table_that_was_written_elsewhere(tmp_path):
    "Folders that are not here do not count where all rows have them, nor do capitals; a file of another folder is none"
    d = tmp_path/'in'
    for i,a in enumerate(x): put(d/f'{vocab[i%2]}s/{i}.PNG', png(a))
    for f in 'C:\\Users\\me\\{c}s\\{i}.png','../data/{c}s/{i}.PNG','/home/me/{c}s/{i}.PNG','{c}S/{i}','./{i}.Png':
        rows = [f"{f.format(c=vocab[i%2], i=i)},{vocab[i%2]}" for i in range(10)]
        o = load(d, tmp_path, **table(d, '\n'.join(['file,class',*rows])))
        assert [n.split('s/')[0] for n in o.names]==[o.vocab[c] for c in [*o.train_y,*o.test_y]] and len(o.names)==10
    for text in 'bees/0.PNG,bee\nowls/1.PNG,owl','x/owls/0.PNG,owl\nx/bees/0.PNG,bee\ny/bees/2.PNG,bee':
        refused(d, tmp_path/'other', 'pictures that are not there', **table(d, 'file,class\n'+text))
    put(d/'Bees/0.PNG', png(x[0]))
    refused(d, tmp_path/'other', 'BEES/0.PNG may be Bees/0.PNG, bees/0.PNG', **table(d, 'file,class\nBEES/0.PNG,bee'))

def test_quotes_in_a_table(tmp_path):
    d = tmp_path/'in'
    for i,a in enumerate(x): put(d/f'{i}.png', png(a))
    rows = [f'{i}.png, "{("bee, small","cow")[i%2]}"' for i in range(10)]
    assert load(d, tmp_path, **table(d, '\n'.join(['file, label',*rows]))).vocab==['bee, small','cow']
    for bad in '0.png,"bee\n1.png,cow\n2.png,bee','0.png,"bee\n1.png,cow\n2.png,"bee"\n3.png,cow':  # one that is not closed hides rows
        refused(d, tmp_path/'other', 'cannot read the table labels.csv', **table(d, bad))
    refused(d, tmp_path/'other', 'labels.csv gives no picture a class', **table(d, 'file,label\n0.png,\n1.png,'))

def test_tables_as_spreadsheets_write_them(tmp_path):
    d,odd = tmp_path/'in',['b\u0153uf','l\u2019\u00e2ne']
    for i,a in enumerate(x): put(d/f'a, {i}; b.png', png(a))
    for i in range(4): put(d/f'{i}.png', png(tx[i]))
    for rows,kw in [  # rows without a picture; a line that Excel writes for itself
                    (['\n \n;;\nfile;class;', *[f'"a, {i}; b.png";{vocab[i%2]}' for i in range(10)], ';', ' ; ;', ';;12'], {}),
                    (['sep=;','file;class', *[f'{i}.png;{vocab[i%2]}' for i in range(4)]], {}),
                    ([f'{i}.png,{vocab[i%2]}; small' for i in range(4)], {}), ([f'{i}.png | {vocab[i%2]}' for i in range(4)], {}),
                    (['file,class', *[f'{i}.png,{odd[i%2]}' for i in range(4)]], dict(enc='cp1252'))]:
        o = load(d, tmp_path, test=.5, **table(d, '\r\n'.join(rows), **kw))
        assert len(o.names)==len([r for r in rows if '.png' in r]) and len(o.vocab)==2
    assert o.vocab==odd
    put(d/'a, 1.png', png(x[0]))
    put(d/'a, 2.png', png(x[1]))
    assert len(load(d, tmp_path, test=.5, **table(d, 'a, 1.png;cow\na, 2.png;cow')).names)==2
    for bad in b'PK\x03\x04\0\0','file,class\n1.png,cow'.encode('utf-16-le'):
        refused(d, tmp_path/'other', 'is no text', labels=put(d/'bad.csv', bad).name)

@pytest.mark.parametrize('fmt', ['zip','tar'])
def test_which_table_of_an_archive(fmt, tmp_path):
    d = tmp_path/'in'
    for i,a in enumerate(x): put(d/f'pics/{i}.png', png(a))
    for k,names in dict(old='ab', new='cd').items(): table(d/k, '\n'.join(f'{i}.png,{names[i%2]}' for i in range(10)))
    f = pack(tmp_path/'out', d, fmt)
    for k,names in dict(old='ab', new='cd').items(): assert load(f, tmp_path, labels=f'{k}/labels.csv').vocab==[*names]
    refused(f, tmp_path/'other', 'labels.csv may be new/labels.csv, old/labels.csv: give the folder, too', labels='labels.csv')
    refused(f, tmp_path/'other', 'no table of labels', labels=str(tmp_path/'nowhere/labels.csv'))
    table(d, '\n'.join(f'{i}.png,{"ef"[i%2]}' for i in range(10)))
    assert load(pack(tmp_path/'out2', d, fmt), tmp_path, labels='labels.csv').vocab==['e','f']

def test_a_table_beside_split_folders_of_longer_names(tmp_path):
    d = tmp_path/'in'
    for i,a in enumerate(x): put(d/f'pets_{"test" if i>7 else "train"}/{i}.png', png(a))
    o = load(d, tmp_path, **table(d, '\n'.join(f'{i}.png,{vocab[i%2]}' for i in range(10))))
    assert not o.notes and sorted(o.names[len(o.train_y):])==['pets_test/8.png','pets_test/9.png']

# CIFAR's other files

@pytest.mark.parametrize('fmt', [None,'gztar'])
def test_binary_batches(fmt, tmp_path):
    def rows(a, *ys): return np.concatenate([np.stack(ys, 1).astype(np.uint8),flat(a)], 1).tobytes()
    d,e = tmp_path/'in/cifar-10-batches-bin',tmp_path/'in2/cifar-100-binary'
    for i in range(5): put(d/f'data_batch_{i+1}.bin', rows(x[2*i:2*i+2], y[2*i:2*i+2]))
    put(d/'test_batch.bin', rows(tx, ty))
    put(d/'batches.meta.txt', b'bee\ncow\n\n')
    same(load(pack(tmp_path/'a', d.parent, fmt), tmp_path))
    put(e/'train.bin', rows(x, 1-y, y))
    put(e/'test.bin', rows(tx, 1-ty, ty))
    put(e/'fine_label_names.txt', b'bee\ncow\n')
    put(e/'coarse_label_names.txt', b'plant\nbeast\n')
    same(load(pack(tmp_path/'b', e.parent, fmt), tmp_path))
    o = load(pack(tmp_path/'b', e.parent, fmt), tmp_path, labels='coarse')
    assert o.vocab==['plant','beast'] and (o.train_y==1-y).all() and (o.train_x==x).all()
    refused(pack(tmp_path/'a', d.parent, fmt), tmp_path/'other', 'is not CIFAR-100', labels='coarse')
    put(d/'test_batch.bin', rows(tx, ty)[:-1])
    refused(pack(tmp_path/'c', d.parent, fmt), tmp_path/'other', 'test_batch.bin is not a CIFAR batch', 'no rows of 3073')
    (d/'test_batch.bin').unlink()
    refused(pack(tmp_path/'d', d.parent, fmt), tmp_path/'other', 'lacks test_batch.bin')

def test_coarse_labels_of_the_pickles(tmp_path):
    d = tmp_path/'cifar-100-python'
    for f,xs,ys in [('train',x,y),('test',tx,ty)]:
        put(d/f, pickle.dumps({b'data': flat(xs), b'fine_labels': ys.tolist(), b'coarse_labels': [0]*len(ys)}, 2))
    put(d/'meta', pickle.dumps({b'fine_label_names': [b'bee',b'cow'], b'coarse_label_names': [b'animal']}, 2))
    o = load(d, tmp_path, labels='coarse')
    assert o.vocab==['animal'] and not o.train_y.any() and o.fingerprint!=load(d, tmp_path).fingerprint

# What never ends

def test_links_in_a_circle_and_too_many_files(tmp_path, monkeypatch):
    d = draw(tmp_path/'in')
    (d/'train/cat/round').symlink_to(d/'train')
    (d/'up').symlink_to(tmp_path)
    assert numbers(load(d, tmp_path))==(12,12,None)
    monkeypatch.setattr(files, '_most_files', 20)
    refused(d, tmp_path/'other', 'holds more than 20 files')
    for fmt in 'zip','tar': refused(pack(tmp_path/'a', draw(tmp_path/'many'), fmt), tmp_path/'other', 'an archive of more than 20 entries')

def test_bytes_without_end(tmp_path, monkeypatch):
    d = draw(tmp_path/'in')
    with open(d/'train/cat/0.png','wb') as f: f.truncate(2*files._largest)  # sparse: it needs no space
    refused(d, tmp_path, 'train/cat/0.png: File too large')
    with open(tmp_path/'a.tar','wb') as f: f.truncate(2*files.most_bytes)
    refused(tmp_path/'a.tar', tmp_path, 'an archive of more than 8 GB')
    f = pack(tmp_path/'b', draw(tmp_path/'good'), 'gztar')
    monkeypatch.setattr(files, 'most_bytes', 10**6)
    with open(f,'ab') as o: o.write(zlib.compress(bytes(2*10**6), wbits=31))  # a second gzip stream behind the end of the archive
    refused(f, tmp_path, 'holds more than')
    monkeypatch.setattr(files, '_largest', 300)
    for fmt in 'zip','tar': refused(pack(tmp_path/'c', folder(tmp_path/'in2'), fmt), tmp_path, "it is larger than")
    monkeypatch.setattr(data, 'most_bytes', 1000)
    refused(d.parent/'good', tmp_path, 'make them smaller with --size')

def test_cache_entry_that_is_a_pipe(tmp_path):
    d = folder(tmp_path/'in')
    load(d, tmp_path)
    entry, = (tmp_path/'cache').iterdir()
    entry.unlink()
    os.mkfifo(entry)
    same(load(d, tmp_path))

def test_cache_entry_of_other_pixels_is_made_anew(tmp_path, reads):
    d = folder(tmp_path/'in')
    load(d, tmp_path)
    entry, = (tmp_path/'cache').iterdir()
    with np.load(entry) as z: good = dict(z)
    for k,v in dict(train_x=good['train_x'][::-1], train_y=1-good['train_y'], vocab=good['vocab'][::-1]).items():
        with open(entry,'wb') as f: np.savez(f, **dict(good, **{k: v}))
        same(load(d, tmp_path))
    assert len(reads)==4
