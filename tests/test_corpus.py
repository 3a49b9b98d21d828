"""A corpus that is never stale, never half-written, and says what is wrong with bad data."""
from collections import Counter
import io, itertools, json, os, shutil, subprocess, sys, threading
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
import numpy as np, pandas as pd, pytest
from fastai.text.all import SentencePieceTokenizer, Tokenizer, defaults
from ulmfit_tut import corpus as module
from ulmfit_tut.batches import text_dls
from ulmfit_tut.corpus import clear_corpora, list_corpora, text_corpus
from ulmfit_tut.data import get_texts, mini_reviews, texts_from_folder
from ulmfit_tut.tokens import get_tokenizer, tokenize

@pytest.fixture
def folder(tmp_path):
    for part in ('train', 'test'):
        for c in ('bad', 'good'):
            (tmp_path/'d'/part/c).mkdir(parents=True)
            for i in range(3): (tmp_path/'d'/part/c/f'{i}.txt').write_text(f'A {c} film, {part} {i}.', encoding='utf8')
    return tmp_path/'d'

def fails(f, *has, kind=ValueError):
    with pytest.raises(kind) as e: f()
    for h in has: assert str(h) in str(e.value), f'{h!r} is not in: {e.value}'

def built(monkeypatch):
    "How often a corpus is built from now on"
    n, build = [], module._build
    monkeypatch.setattr(module, '_build', lambda *a: n.append(1) or build(*a))
    return n

def test_what_it_holds(short, tmp_path):
    c = text_corpus(get_texts(short, split_col='part'), cache=tmp_path)
    toks = tokenize(short.text)
    assert [c[i] for i in range(len(c))] == list(toks)
    assert c.ids.dtype == np.uint16 and len(c.types) > 256 and c.types == sorted(c.types) and c.counts(range(len(c))) == Counter(t for o in toks for t in o)

def test_rows_of_a_corpus(short, tmp_path):
    "Counted by position or by mask, from the end too; and what is done to the table afterwards is nothing to the corpus"
    df = get_texts(short, split_col='part')
    c, toks = text_corpus(df, cache=tmp_path), tokenize(short.text)
    assert c[-1] == toks[-1] and c[np.int64(2)] == toks[2] and [len(o) for o in c] == [len(o) for o in toks]
    for bad in (len(c), -len(c) - 1):
        with pytest.raises(IndexError): c[bad]
        with pytest.raises(IndexError): c.counts([bad])
    mask = c.df.part.eq('test')
    assert c.counts(mask) == c.counts(mask.tolist()) == c.counts(np.flatnonzero(mask)) == Counter(t for o, m in zip(toks, mask) if m for t in o)
    assert c.counts([-1]) == Counter(toks[-1]) and c.counts([]) == {}
    labels = df.label.tolist()
    df.sort_values('label', inplace=True)
    assert c.df.label.tolist() == labels

def test_clearing_leaves_what_is_not_ours(short, tmp_path):
    text_corpus(get_texts(short, split_col='part'), cache=tmp_path)
    (tmp_path/'project').mkdir()
    (tmp_path/('0'*24)).mkdir()                                                     # as an older version wrote it
    for f in ('project/meta.json', 'seen-list.txt', 'thesis.txt', f'{"0"*24}/meta.json', f'{"0"*24}/types.json'): (tmp_path/f).write_text('{}')
    assert clear_corpora(tmp_path) == 2
    assert {o.relative_to(tmp_path).as_posix() for o in tmp_path.rglob('*')} == {'project', 'project/meta.json', 'seen-list.txt', 'thesis.txt'}

def test_many_types(tmp_path):
    "More than two bytes can count"
    c, v = 'bcdfghklmnprtvz', 'aeiou'
    words = list(map(''.join, itertools.product(c, v, c, v, c)))[:70_000]
    df = pd.DataFrame(dict(text=[' '.join(words[i::4]) for i in range(4)], label='', part='unsup', is_valid=False))
    c = text_corpus(df, cache=tmp_path)
    assert c.ids.dtype == np.uint32 and len(c.types) > 65_536 and sorted(o.name for o in c.path.iterdir()) == ['ids.bin', 'meta.json', 'offsets.npy', 'types.jsonl']
    assert all(c[i] == ['xxbos', *words[i::4]] for i in range(4)) and c.counts([1]) == Counter(['xxbos', *words[1::4]])

def test_same_bytes_with_any_number_of_workers(short, tmp_path):
    df = get_texts(pd.concat([short]*20), split_col='part')
    a, b = (text_corpus(df, cache=tmp_path/str(n), n_workers=n) for n in (0, 2))
    assert {f.name: f.read_bytes() for f in a.path.iterdir()} == {f.name: f.read_bytes() for f in b.path.iterdir()}

def later(monkeypatch): monkeypatch.setattr(module.time, 'time_ns', lambda now=module.time.time_ns: now() + 10**10)          # the files are old enough to trust their times

def test_opened_not_made(folder, tmp_path, monkeypatch):
    df, n = get_texts(folder, read=False), built(monkeypatch)
    later(monkeypatch)
    text_corpus(df, cache=tmp_path)
    monkeypatch.setattr(module, 'read_text', None)                                                       # neither files nor texts are read again
    text_corpus(df, cache=tmp_path)
    assert len(n) == 1

def test_only_files_at_rest_are_remembered(folder, tmp_path, monkeypatch):
    "A file that was just written may change again within one tick of its clock"
    df, reads, content = get_texts(folder, read=False), [], module._content
    monkeypatch.setattr(module, '_content', lambda *a: reads.append(1) or content(*a))
    for _ in range(3): path = text_corpus(df, cache=tmp_path).path
    assert len(reads) == 2 and not list(tmp_path.glob('seen-*'))
    later(monkeypatch)
    for _ in range(3): text_corpus(df, cache=tmp_path)
    seen, = tmp_path.glob('seen-*')
    assert len(reads) == 3
    seen.write_bytes(b'\xff{')                                                                            # a damaged note is no reason to trust or to stop
    assert text_corpus(df, cache=tmp_path).path == path and text_corpus(df, cache=tmp_path).path == path and seen.read_text().isalnum()
    assert clear_corpora(tmp_path) == 1 and not list(tmp_path.glob('seen-*'))

def test_no_files(folder, tmp_path):
    c = text_corpus(get_texts(folder, read=False).iloc[:0], cache=tmp_path)
    assert len(c) == 0 and not c.counts([])

@pytest.mark.parametrize('what', ['same size', 'other file', 'new file', 'file gone', 'renamed order', 'rules', 'language', 'version'])
@pytest.mark.parametrize('rest', [False, True])
def test_a_change_is_noticed(folder, tmp_path, monkeypatch, what, rest):
    n, tok, f = built(monkeypatch), None, folder/'train/bad/1.txt'
    if rest: later(monkeypatch)
    a = text_corpus(get_texts(folder, read=False), cache=tmp_path)
    if what == 'same size':
        s = f.stat()
        f.write_text(f.read_text().replace('film', 'flim')); os.utime(f, ns=(s.st_atime_ns, s.st_mtime_ns))
    if what == 'other file':
        s, g = f.stat(), folder/'other'
        g.write_text(f.read_text().replace('film', 'flim')); os.utime(g, ns=(s.st_atime_ns, s.st_mtime_ns)); os.replace(g, f)
    if what == 'new file': (folder/'train/bad/9.txt').write_text('One more.')
    if what == 'file gone': f.unlink()
    if what == 'renamed order': f.rename(folder/'train/bad/0a.txt'); (folder/'train/bad/0.txt').rename(folder/'train/bad/2a.txt')
    if what == 'rules': tok = get_tokenizer(rules='corrected')
    if what == 'language': tok = get_tokenizer('de')
    if what == 'version': monkeypatch.setattr(module, 'version', lambda o: '99')
    df = get_texts(folder, read=False)
    b = text_corpus(df, tok, cache=tmp_path)
    assert len(n) == 2 and a.path != b.path
    assert [b[i] for i in range(len(b))] == [list(o) for o in tokenize([folder/o for o in df.file], tok)]

def test_own_tokenizer_is_told_by_source_and_state(short, tmp_path):
    df = get_texts(short, split_col='part')
    a, b = (text_corpus(df, get_tokenizer(tok=Every(n)), cache=tmp_path) for n in (2, 3))
    assert a.path != b.path and a[0] != b[0]
    fails(lambda: text_corpus(df, get_tokenizer(tok=lambda ts: (t.split() for t in ts)), cache=tmp_path), 'put it in a module')

def test_all_parts_of_a_tokenizer_count():
    from functools import partial
    from fastai.text.all import SpacyTokenizer, TokenizeWithRules
    key = lambda *a, **k: json.dumps(module.tokenizer_key(TokenizeWithRules(*a, **k)))
    de = SpacyTokenizer('de')
    keys = [key(de, []), key(de, [], post_rules=[str.upper]), key(SpacyTokenizer('de', special_toks=['<<a>>']), []), key(SpacyTokenizer('fr'), []), key(de, [str.lower]),
            key(de, [partial(str.replace, 'a', 'b')]), key(de, [partial(str.replace, 'a', 'c')])]
    assert len(set(keys)) == len(keys) and key(SpacyTokenizer('de'), []) == keys[0]

def test_files_that_change_meanwhile(folder, tmp_path, monkeypatch):
    encode = module.encode_texts
    def late(*a): (folder/'train/bad/1.txt').write_text('Changed meanwhile.'); yield from encode(*a)
    monkeypatch.setattr(module, 'encode_texts', late)
    fails(lambda: text_corpus(get_texts(folder, read=False), cache=tmp_path/'c'), 'changed while they were read, train/bad/1.txt and 0 more')
    assert not list((tmp_path/'c').glob('*/meta.json'))

class Every:
    def __init__(self, n): self.n = n
    def __call__(self, texts): return ([t[i:i+self.n] for i in range(0, len(t), self.n)] for t in texts)

@pytest.mark.parametrize('harm', ['cut', 'other byte', 'gone', 'meta', 'old'])
def test_damage_is_mended(short, tmp_path, capsys, harm):
    df = get_texts(short, split_col='part')
    c = text_corpus(df, cache=tmp_path)
    want, f = c[5], c.path/'ids.bin'
    if harm == 'cut': f.write_bytes(f.read_bytes()[:-2])
    if harm == 'other byte': f.write_bytes(b'\xfe' + f.read_bytes()[1:])
    if harm == 'gone': (c.path/'offsets.npy').unlink()
    if harm == 'meta': (c.path/'meta.json').write_text('{')
    if harm == 'old': (c.path/'meta.json').write_text(json.dumps({**c.meta, 'format': 0}))
    c = text_corpus(df, cache=tmp_path)
    assert c[5] == want and module._whole(c.path) and 'prepared again' in capsys.readouterr().out
    assert [o.name for o in tmp_path.iterdir()] == [c.path.name]

def test_read_once(tmp_path, monkeypatch):
    "New texts are not read for their digest first, unless a corpus of as many texts lies there; a copy of old ones finds their tokens"
    calls, content = [], module._content
    monkeypatch.setattr(module, '_content', lambda *a: calls.append(1) or content(*a))
    folder, cache = tmp_path/'reviews', tmp_path/'c'
    mini_reviews(folder)
    first = text_corpus(get_texts(folder, read=False), cache=cache)
    assert not calls and text_corpus(get_texts(folder), cache=cache).path == first.path and len(calls) == 1
    shutil.copytree(folder, tmp_path/'copy')
    assert text_corpus(get_texts(tmp_path/'copy', read=False), cache=cache).path == first.path and len(calls) == 2
    next((tmp_path/'copy/train/pos').glob('*.txt')).write_text('Another text.')
    assert text_corpus(get_texts(tmp_path/'copy', read=False), cache=cache).path != first.path and len(calls) == 3
    assert text_corpus(get_texts(folder, read=False).iloc[:50], cache=cache).path != first.path and len(calls) == 3

def prepare(cache): return str(text_corpus(get_texts(), cache=cache).path)

def test_two_at_once(tmp_path):
    with ProcessPoolExecutor(2) as ex: paths = set(ex.map(prepare, [tmp_path]*2))
    assert len(paths) == 1 and module._whole(Path(paths.pop())) and len(list(tmp_path.iterdir())) == 1

@pytest.mark.parametrize('where', ['_digests', 'encode_texts'])
def test_cut_off_leaves_nothing(short, tmp_path, monkeypatch, where):
    def full(*_, **__): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(module, where, full)
    fails(lambda: text_corpus(get_texts(short, split_col='part'), cache=tmp_path), tmp_path, 'No space left', 'cache=', kind=OSError)
    assert not list(tmp_path.iterdir())

def test_disk_full_in_mid_write(tmp_path):
    "No simulation: the system lets no file grow beyond 100 kB"
    resource = pytest.importorskip('resource')
    df, old = get_texts(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    try: fails(lambda: text_corpus(df, cache=tmp_path), tmp_path, 'too large', 'cache=', kind=OSError)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert not list(tmp_path.iterdir())
    assert len(text_corpus(df, cache=tmp_path)) == len(df)

def test_killed(tmp_path):
    "A killed preparation leaves a folder that is never opened, and `clear_corpora` removes it"
    code = f'''
import os
from ulmfit_tut import corpus
from ulmfit_tut.data import get_texts
corpus._digests = lambda d: os._exit(9)
corpus.text_corpus(get_texts(), cache={str(tmp_path)!r})'''
    assert subprocess.run([sys.executable, '-c', code], capture_output=True).returncode == 9
    assert len(list(tmp_path.iterdir())) == 1 and not len(list_corpora(tmp_path))
    c = text_corpus(get_texts(), cache=tmp_path)
    assert len(list_corpora(tmp_path)) == 1 and clear_corpora(tmp_path) == 2 and not list(tmp_path.iterdir())

def test_cache_that_cannot_be_made(short, tmp_path):
    (tmp_path/'file').write_text('')
    fails(lambda: text_corpus(get_texts(short, split_col='part'), cache=tmp_path/'file'/'c'), tmp_path/'file', 'cache=', kind=OSError)

def test_cache_that_cannot_be_written(short, tmp_path, monkeypatch):
    (tmp_path/'c').mkdir(mode=0o500)
    if os.access(tmp_path/'c', os.W_OK):                                            # root may write anywhere
        def no(suffix, prefix, dir): raise PermissionError(13, 'Permission denied', str(dir))
        monkeypatch.setattr(module.tempfile, 'mkdtemp', no)
    fails(lambda: text_corpus(get_texts(short, split_col='part'), cache=tmp_path/'c'), tmp_path/'c', 'Permission denied', 'cache=', kind=OSError)

def test_data_on_a_read_only_disk(folder, tmp_path):
    "Nothing is written beside the texts"
    before = sorted(folder.rglob('*'))
    text_corpus(get_texts(folder, read=False), cache=tmp_path/'c')
    assert sorted(folder.rglob('*')) == before

# --- bad data -----------------------------------------------------------------------------------------------------------------------------

def test_unreadable_file(folder, tmp_path):
    (folder/'train/bad/1.txt').write_bytes('Müll'.encode('latin-1'))
    fails(lambda: text_corpus(get_texts(folder, read=False), cache=tmp_path/'c'), folder/'train/bad/1.txt', 'cp1252')
    assert text_corpus(get_texts(folder, read=False), cache=tmp_path/'c', encoding='latin-1')[1][1:] == ['xxmaj', 'müll']

def test_a_file_that_goes_away_names_itself(folder, tmp_path):
    df = get_texts(folder, read=False)
    (folder/'train/bad/1.txt').unlink()
    fails(lambda: text_corpus(df, cache=tmp_path/'c'), folder/'train/bad/1.txt', kind=FileNotFoundError)

def test_a_name_without_a_file(folder, tmp_path):
    (folder/'train/bad/9.txt').symlink_to(tmp_path/'nowhere')
    for read in (True, False): fails(lambda: text_corpus(get_texts(folder, read=read), cache=tmp_path/'c'), folder/'train/bad/9.txt', kind=FileNotFoundError)

def test_missing_folder(tmp_path): fails(lambda: get_texts(tmp_path/'none', read=False), tmp_path/'none', kind=FileNotFoundError)

@pytest.mark.parametrize('text,toks', [('', ['xxbos']), ('\n', ['xxbos']), ('a\x00b', ['xxbos', 'a\x00b']), ('\ufeffa', ['xxbos', 'a']), ('xxpad', ['xxbos', 'xxpad'])])
def test_odd_files(folder, tmp_path, text, toks):
    (folder/'train/bad/1.txt').write_text(text, encoding='utf8')
    c = text_corpus(get_texts(folder, read=False), cache=tmp_path/'c')
    assert c[1] == toks
    dls = text_dls(c, c.vocab(), bs=2, seq_len=8, device='cpu')
    assert all(torch_ok(b) for b in dls.train)

def torch_ok(b): return (b[0][:, -8:] != 1).any(dim=1).all()                        # every text has a token in its last window

def test_literal_pad_is_no_padding(folder, tmp_path):
    (folder/'train/bad/1.txt').write_text('a xxpad b xxfake c')
    c = text_corpus(get_texts(folder, read=False), cache=tmp_path/'c')
    dls = text_dls(c, c.vocab(min_freq=1), bs=2, device='cpu')
    ids = dls.train_ds.numericalize(c[1])
    assert ids.tolist().count(1) == 0 and ids[2] == 0 and dls.test_dl(['xxpad']).one_batch()[0].tolist() == [[2, 0, *[1]*70]]

def test_texts_that_are_none(short, tmp_path):
    df = get_texts(short, split_col='part')
    df.loc[3, 'text'] = None
    fails(lambda: text_corpus(df, cache=tmp_path), 'Texts [3] are no strings', kind=TypeError)
    fails(lambda: text_corpus(df.drop(columns='text'), cache=tmp_path), 'no column "text"')

def test_bad_tables(short):
    fails(lambda: get_texts(short.assign(text=[None, *short.text[1:]]), split_col='part'), "'text' is empty", 'rows [0]')
    fails(lambda: get_texts(short.rename(columns={'label': 'text'})), "2 columns named 'text'")
    fails(lambda: get_texts(short.drop(columns='label')), "0 columns named 'label'")
    fails(lambda: get_texts(short.rename(columns={'text': 'review'}).assign(text='other'), 'comment', split_col='part'), "0 columns named 'comment'", 'review')

def test_the_column_named_text_is_not_the_text(short, tmp_path):
    df = short.rename(columns={'text': 'review'}).assign(text='something else')
    c = text_corpus(get_texts(df, 'review', split_col='part'), cache=tmp_path)
    assert c[0] == tokenize(short.text[:1])[0]
    dls = text_dls(c, c.vocab(min_freq=1), bs=4, device='cpu')
    rows = df[df.part.eq('train')][:4]
    assert dls.test_dl(rows).one_batch()[0].tolist() == dls.test_dl(rows.review.tolist()).one_batch()[0].tolist()
    fails(lambda: dls.test_dl(df[['text']]), "no single column ['review']")

def test_vocabulary_counts_what_is_trained_on(short, tmp_path):
    df = get_texts(short, split_col='part')
    df.loc[df.part.eq('test'), 'text'] += ' zorp zorp zorp zorp'
    df.loc[df.is_valid, 'text'] += ' zarp zarp zarp zarp'
    df.loc[df.part.eq('unsup') & ~df.is_valid, 'text'] += ' zirp'
    v = text_corpus(df, cache=tmp_path).vocab()
    assert 'zirp' in v and 'zorp' not in v and 'zarp' not in v

def test_sentencepiece(short, tmp_path):
    "Another tokenizer takes the same road: fastai's own pieces, a key of its own for another training, an error where it has had none"
    sp, rules = SentencePieceTokenizer(vocab_sz=200, cache_dir=tmp_path/'a'), defaults.text_proc_rules
    fails(lambda: text_corpus(short, get_tokenizer(tok=sp), cache=tmp_path), 'not trained')
    def ready(n):
        sp = SentencePieceTokenizer(vocab_sz=n, cache_dir=tmp_path/f'sp{n}')
        with redirect_stdout(io.StringIO()): sp.setup(short.text.tolist(), rules=rules)
        return sp
    a, b = ready(200), ready(220)
    corpus = text_corpus(short, get_tokenizer(tok=a), cache=tmp_path)
    stock = Tokenizer(a, rules=rules)
    assert [corpus[i] for i in range(len(short))] == [list(stock(o)) for o in short.text]
    assert text_corpus(short, get_tokenizer(tok=a), cache=tmp_path).path == corpus.path != text_corpus(short, get_tokenizer(tok=b), cache=tmp_path).path

def test_damaged_and_cannot_be_replaced(short, tmp_path, monkeypatch):
    "What is damaged is not opened, even if it cannot be moved out of the way"
    df = get_texts(short, split_col='part')
    f = text_corpus(df, cache=tmp_path).path/'ids.bin'
    f.write_bytes(f.read_bytes()[::-1])
    def refuse(*a): raise PermissionError('no')
    monkeypatch.setattr(module.Path, 'rename', refuse)
    fails(lambda: text_corpus(df, cache=tmp_path), 'could not be put in its place', kind=OSError)

def test_what_is_not_a_corpus_is_left_alone(short, tmp_path):
    text_corpus(get_texts(short, split_col='part'), cache=tmp_path)
    kept = [tmp_path/'507f1f77bcf86cd799439011/notes.txt', tmp_path/'.new-draft/notes.txt']
    for o in kept: o.parent.mkdir(); o.write_text('mine')
    assert clear_corpora(tmp_path) == 1 and sorted(o for o in tmp_path.rglob('*') if o.is_file()) == sorted(kept)
