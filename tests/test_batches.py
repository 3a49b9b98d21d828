"""Loaders of ours under stock fastai learners: everything that works with fastai's own works with them."""
import multiprocessing, pickle, warnings
from concurrent.futures import ProcessPoolExecutor
import numpy as np, pandas as pd, pytest, torch
from fastai.distributed import DistributedDL
from fastai.text.all import (AWD_LSTM, ClassificationInterpretation, DataLoaders, Datasets, L, LMDataLoader, Numericalize, Perplexity, SortedDL, TensorText, TfmdLists, Tokenizer, accuracy,
    accuracy_multi, awd_lstm_clas_config, awd_lstm_lm_config, language_model_learner, load_learner, set_seed, text_classifier_learner)
from ulmfit_tut.batches import LMLoader, TextLoader, known_words, text_dls
from ulmfit_tut.corpus import text_corpus
from ulmfit_tut.data import PadChunks, get_texts, text_vocab
from ulmfit_tut.predict import predict
from ulmfit_tut.why import why

small = dict(emb_sz=8, n_hid=10, n_layers=3)

@pytest.fixture(scope='module')
def corpus(short, tmp_path_factory): return text_corpus(get_texts(short, split_col='part'), cache=tmp_path_factory.mktemp('c'))

@pytest.fixture(scope='module')
def vocab(corpus): return corpus.vocab(min_freq=1)

def classifier(corpus, vocab, path=None, **kw):
    set_seed(0)
    dls = text_dls(corpus, vocab, bs=8, seq_len=8, device='cpu', **kw)
    return text_classifier_learner(dls, AWD_LSTM, seq_len=8, config={**awd_lstm_clas_config, **small}, pretrained=False, metrics=accuracy, path=path)

def lm(corpus, vocab, **kw):
    set_seed(0)
    dls = text_dls(corpus, vocab, is_lm=True, bs=8, seq_len=8, device='cpu', **kw)
    return language_model_learner(dls, AWD_LSTM, config={**awd_lstm_lm_config, **small}, pretrained=False, metrics=[accuracy, Perplexity()])

@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    import fastai.callback.progress
    monkeypatch.setattr('fastai.learner.defaults.callbacks', [o for o in __import__('fastai.learner').learner.defaults.callbacks if 'Progress' not in str(o)])

# --- the same batches as fastai's own loaders -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('bs,seq_len', [(8, 8), (3, 5), (16, 72), (1, 7)])
@pytest.mark.parametrize('backwards', [False, True])
def test_lm_batches_are_fastais(corpus, vocab, bs, seq_len, backwards):
    dls = text_dls(corpus, vocab, is_lm=True, bs=bs, seq_len=seq_len, backwards=backwards, device='cpu')
    for dl in (dls.train.new(shuffle=False), dls.valid):
        stock = LMDataLoader(dl.dataset, lens=dl.lens.tolist(), bs=bs, seq_len=seq_len)
        ours, theirs = list(dl), list(stock)
        assert len(dl) == len(stock) == len(ours) == len(theirs)
        for a, b in zip(ours, theirs):
            assert [o.tolist() for o in a] == [o.tolist() for o in b] and [type(o) for o in a] == [type(o) for o in b]

def test_shuffled_lm_batches_are_fastais_in_that_order(corpus, vocab):
    dl = text_dls(corpus, vocab, is_lm=True, bs=4, seq_len=8, device='cpu').train
    ours = [x.tolist() for x, _ in dl]
    texts = [dl.dataset[i][0] for i in np.random.default_rng((42, 0)).permutation(len(dl.lens))]
    assert ours == [x.tolist() for x, _ in LMDataLoader(texts, lens=[len(o) for o in texts], bs=4, seq_len=8)]

def test_classifier_batches_are_fastais(corpus, vocab):
    dls = text_dls(corpus, vocab, bs=4, seq_len=8, device='cpu')
    stock = SortedDL(dls.valid_ds, bs=4, before_batch=PadChunks(seq_len=8), num_workers=0)
    for a, b in zip(dls.valid, stock, strict=True):
        assert sorted(zip(a[0].tolist(), a[1].tolist())) == sorted(zip(b[0].tolist(), b[1].tolist())) and [type(o) for o in a] == [type(o) for o in b]

def test_batches_come_in_random_order(corpus, vocab):
    "Or every epoch would go from the longest texts to the shortest"
    dl = text_dls(corpus, vocab, bs=2, seq_len=8, device='cpu').train
    for _ in range(3):
        dl.randomize()
        assert (np.diff(dl.lens[dl.get_idxs()[2:-2:2]]) > 0).any()

def test_every_text_once_longest_first(corpus, vocab):
    dl = text_dls(corpus, vocab, bs=8, seq_len=8, device='cpu').train.new(drop_last=False)
    for epoch in range(3):
        dl.randomize()
        idxs = dl.get_idxs()
        assert sorted(idxs) == list(range(len(dl.lens))) and dl.lens[idxs[0]] == dl.lens.max()
        for i in range(0, len(idxs), 8): assert (np.diff(dl.lens[idxs[i:i+8]]) <= 0).all()

def test_the_texts_left_out_are_others_in_each_epoch(corpus, vocab):
    "`SortedDL` sorts before it leaves out what fills no batch: with less than 50 batches the same shortest texts in every epoch"
    dl = text_dls(corpus, vocab, bs=7, seq_len=8, device='cpu').train
    n, times = len(dl.lens), np.zeros(len(dl.lens), int)
    assert n % 7
    for _ in range(100):
        dl.randomize()
        idxs = dl.get_idxs()
        assert len(idxs) == len({*idxs}) == len(dl)*7 == n - n % 7 and dl.lens[idxs[0]] == dl.lens.max()
        times[idxs] += 1
    out = 100 - times
    assert (out > 0).sum() == n - 1 and out.max() < 5*out.mean()                  # the longest alone comes every time

@pytest.mark.parametrize('is_lm', [False, True])
def test_order_is_a_function_of_seed_and_epoch(corpus, vocab, is_lm):
    def run(dl, n): return [[b[0].tolist() for b in dl] for _ in range(n)]
    make = lambda **kw: text_dls(corpus, vocab, is_lm=is_lm, bs=4, seq_len=8, device='cpu', **kw).train
    a = run(make(), 3)
    assert a[0] != a[1] != a[2] and run(make(seed=7), 1)[0] != a[0]
    torch.manual_seed(5); np.random.seed(5)
    dl = make()
    dl.one_batch(); dl.show_batch(show=False)
    assert run(dl, 1)[0] == a[0]
    dl = make(); dl.epoch = 2
    assert run(dl, 1)[0] == a[2]

@pytest.mark.parametrize('world', [2, 3])
def test_processes_share_an_epoch(corpus, vocab, world):
    base = text_dls(corpus, vocab, bs=4, seq_len=8, device='cpu').train
    parts = [base.new(rank=r, world=world, drop_last=False) for r in range(world)]
    idxs = [p.get_idxs() for p in parts]
    assert len({-(-len(i)//4) for i in idxs}) == 1 and set().union(*idxs) == set(range(len(base.lens)))
    parts = [base.new(rank=r, world=world) for r in range(world)]                # the last, short batch is dropped for all
    assert {len(list(p)) for p in parts} == {len(p) for p in parts} == {-(-(len(base.lens)//4)//world)}
    base = text_dls(corpus, vocab, is_lm=True, bs=2*world, seq_len=8, device='cpu').train
    parts = [base.new(bs=2, rank=r, world=world) for r in range(world)]
    for w, *ps in zip(base, *parts): assert w[0].tolist() == torch.cat([p[0] for p in ps]).tolist()

# --- one text, one answer --------------------------------------------------------------------------------------------------------------------

def test_alone_as_in_a_batch(corpus, vocab):
    learn = classifier(corpus, vocab)
    texts = ['Short.', *corpus.df.text[:7], 'A rather long one, ' + 'and then another thing, '*20]
    batch = learn.get_preds(dl=learn.dls.test_dl(texts))[0]
    alone = torch.cat([learn.get_preds(dl=learn.dls.test_dl([t]))[0] for t in texts])
    assert torch.allclose(batch, alone, atol=1e-6)
    one = torch.stack([learn.predict(t)[2] for t in texts])
    assert torch.allclose(one, alone, atol=1e-6)

@pytest.mark.parametrize('form', ['list', 'tuple', 'series', 'frame', 'paths', 'rows'])
def test_forms_of_test_data(corpus, vocab, tmp_path, form):
    learn = classifier(corpus, vocab)
    texts = corpus.df.text[:9].tolist()
    want = torch.stack([learn.predict(t)[2] for t in texts])
    for i, t in enumerate(texts): (tmp_path/f'{i}.txt').write_text(t, encoding='utf8')
    items = dict(list=texts, tuple=tuple(texts), series=pd.Series(texts, index=range(90, 99)), frame=pd.DataFrame(dict(text=texts, other=1)),
                 paths=[tmp_path/f'{i}.txt' for i in range(9)], rows=list(range(9)))[form]
    assert torch.allclose(learn.get_preds(dl=learn.dls.test_dl(items))[0], want, atol=1e-6)

def test_new_texts_are_tokenized_once(corpus, vocab, monkeypatch):
    learn, n = classifier(corpus, vocab), []
    tok = learn.dls.train_ds.tokenizer.tok
    monkeypatch.setattr(type(tok), 'encode', lambda self, texts, f=type(tok).encode: (n.append(len(texts)), f(self, texts))[1])
    learn.get_preds(dl=learn.dls.test_dl(['one', 'two', 'three']))
    learn.predict('four')
    predict(learn, ['five', 'six'])
    why(learn, ['seven', 'eight', 'nine'])
    assert [o for o in n if o] == [3, 1, 2, 3]

# --- what fastai offers ----------------------------------------------------------------------------------------------------------------------

def test_where_fastai_looks(corpus, vocab):
    for is_lm in (True, False):
        dls = text_dls(corpus, vocab, is_lm=is_lm, bs=4, device='cpu')
        assert isinstance(dls, DataLoaders) and isinstance(dls.train_ds, Datasets)
        assert isinstance(dls.train_ds.numericalize, Numericalize) and isinstance(dls.train_ds.tokenizer, Tokenizer)
        assert list(dls.vocab if is_lm else dls.vocab[0]) == vocab

def test_classifier_learner(corpus, vocab, tmp_path, capsys):
    learn = classifier(corpus, vocab, tmp_path)
    with learn.no_logging():
        learn.fit_one_cycle(1, 1e-2)
        learn.lr_find(num_it=15, show_plot=False)
    learn.dls.show_batch(max_n=2); learn.show_results(max_n=2)
    assert learn.predict('A fine film')[0] in ('neg', 'pos')
    interp = ClassificationInterpretation.from_learner(learn)
    assert interp.confusion_matrix().sum() == len(learn.dls.valid_ds)
    interp.plot_top_losses(3)

def test_top_losses_belong_to_their_texts(corpus, vocab):
    "`Interpretation` asks for single texts, and must get those that it asked for"
    learn = classifier(corpus, vocab)
    interp = ClassificationInterpretation.from_learner(learn)
    losses, idx = interp.top_losses(len(learn.dls.valid_ds))
    assert len({-(-len(o[0])//8) for o in learn.dls.valid_ds}) > 1                   # windows
    interp.plot_top_losses(len(idx))
    inps, preds, targs, decoded, again = interp[idx]
    mine = torch.stack([torch.nn.functional.cross_entropy(p.log()[None], t[None]) for p, t in zip(preds, targs)])
    assert torch.allclose(mine.float(), losses, atol=1e-5) and torch.allclose(again, losses)

def test_export(corpus, vocab, tmp_path):
    learn = classifier(corpus, vocab, tmp_path)
    want = learn.predict('A fine film')[2]
    learn.export('learner.pkl')
    data = (tmp_path/'learner.pkl').read_bytes()
    assert corpus.df.text[0][:30].encode() not in data and str(corpus.path).encode() not in data
    again = load_learner(tmp_path/'learner.pkl')
    assert torch.equal(again.predict('A fine film')[2], want)
    assert torch.allclose(again.get_preds(dl=again.dls.test_dl(['A fine film', 'Dull']))[0][0], want, atol=1e-6)
    with pytest.raises(ValueError, match='corpus stayed behind'): again.dls.test_dl([0, 1])

def test_language_model_learner(corpus, vocab):
    learn = lm(corpus, vocab)
    with learn.no_logging():
        learn.fit_one_cycle(1, 1e-2)
        learn.lr_find(num_it=15, show_plot=False)
    assert np.isfinite(learn.validate()[-1])
    assert 'film' in learn.predict('The film', 5)
    learn.dls.show_batch(max_n=2); learn.show_results(max_n=2)

def test_training_equals_training_on_fastais_loader(corpus, vocab):
    "The same batches make the same weights, bit for bit"
    def train(stock):
        learn = lm(corpus, vocab)
        dls = learn.dls
        if stock: learn.dls = DataLoaders(LMDataLoader([dls.train_ds[i][0] for i in range(len(dls.train_ds))], bs=8, seq_len=8, device='cpu'), dls.valid)
        else: learn.dls.train.shuffle = False
        set_seed(1)
        with learn.no_logging(): learn.fit(1, 1e-2)
        return {k: v.clone() for k, v in learn.model.state_dict().items()}
    a, b = train(True), train(False)
    assert all(torch.equal(a[k], b[k]) for k in a)

def test_backwards(corpus, vocab):
    a, b = (classifier(corpus, vocab, backwards=o).dls.valid.one_batch()[0] for o in (False, True))
    for x, y in zip(a, b): assert x[x != 1].tolist() == y[y != 1].tolist()[::-1]

def test_several_labels(short, tmp_path):
    df = get_texts(short.assign(funny=np.arange(120) % 2, sad=(np.arange(120) % 3 == 0)).drop(columns='label'), label_col=['funny', 'sad'], split_col='part')
    dls = text_dls(text_corpus(df, cache=tmp_path), bs=4, seq_len=8, device='cpu')
    y = dls.valid.one_batch()[1]
    assert list(dls.vocab[1]) == ['funny', 'sad'] and y.shape == (4, 2) and y.dtype == torch.float
    i = dls.valid.get_idxs()[0]
    row = dls.valid_ds.items[i]
    assert y[0].tolist() == [float(o in df.label[row]) for o in ('funny', 'sad')]
    learn = text_classifier_learner(dls, AWD_LSTM, seq_len=8, config={**awd_lstm_clas_config, **small}, pretrained=False, metrics=accuracy_multi)
    with learn.no_logging(): learn.fit(1)
    assert learn.predict('Ha')[2].shape == (2,)

def test_two_columns_of_text(tmp_path):
    mail = pd.DataFrame(dict(subject=['Hi', 'Win!!!']*8, body=['See you at 5.', 'Click now']*8, kind=['ham', 'spam']*8))
    dls = text_dls(text_corpus(get_texts(mail, ['subject', 'body'], 'kind'), cache=tmp_path), bs=2, device='cpu')
    toks = [dls.vocab[0][i] for i in dls.test_dl(mail[:1]).one_batch()[0][0] if i != 1]
    assert toks == 'xxbos xxfld 1 xxmaj hi xxfld 2 xxmaj see you at 5 .'.split()
    with pytest.raises(ValueError, match="table of the columns .*subject.*body"): dls.test_dl(['See you at 5.'])    # which column would it be?
    marked = dls.test_dl(['xxfld 1 Hi xxfld 2 See you at 5.']).one_batch()[0][0]
    assert [dls.vocab[0][i] for i in marked if i != 1] == toks

def test_valid_by_rows(corpus, vocab):
    rows = corpus.df.index[corpus.df.part.eq('train')][:9]
    dls = text_dls(corpus, vocab, bs=4, valid=rows, device='cpu')
    assert list(dls.valid_ds.items) == rows.tolist()

def test_valid_by_mask(corpus, vocab):
    mask = corpus.df.part.eq('train') & (corpus.df.index % 5 == 0)
    dls = text_dls(corpus, vocab, bs=4, valid=mask, device='cpu')
    assert list(dls.valid_ds.items) == np.flatnonzero(mask).tolist()
    one = int(np.flatnonzero(mask)[0])
    assert list(text_dls(corpus, vocab, bs=4, valid=mask.sample(frac=1, random_state=0), device='cpu').valid_ds.items) == np.flatnonzero(mask).tolist()
    assert list(text_dls(corpus, vocab, bs=4, valid=one, device='cpu').valid_ds.items) == [one]
    tests = np.flatnonzero(corpus.df.part.eq('test'))                   # as positions within a part of the table would hit them
    for bad in ([-1], [len(corpus)], mask[:9], mask.set_axis(mask.index + 1), mask.astype(int), [3, 3], 'valid', [.5], [one, tests[0]]):
        with pytest.raises(ValueError, match='valid'): text_dls(corpus, vocab, bs=4, valid=bad)

def test_words_of_validation_stay_unknown(tmp_path):
    "Whatever is held back, the vocabulary is that of the other texts"
    df = pd.DataFrame(dict(text=[f'word{i} is word{i}, not word{i}' for i in range(40)], label=['a', 'b']*20, part=['train']*30 + ['test']*10))
    corpus, held = text_corpus(get_texts(df, split_col='part'), cache=tmp_path), range(6)
    dls = text_dls(corpus, bs=4, valid=held, device='cpu')
    assert {o for o in dls.vocab[0] if 'word' in o} == {f'word{i}' for i in range(6, 30)}
    assert text_dls(corpus, bs=4, device='cpu').vocab[0] == corpus.vocab()

def test_a_table_is_no_corpus(short):
    with pytest.raises(TypeError, match=r'give text_corpus\(get_texts'): text_dls(short)
    with pytest.raises(TypeError, match=r'^TextCorpus of .* give text_corpus\(get_texts'): text_dls(text_corpus(short[['text', 'label']], progress=False))

def test_a_share_of_a_shared_stream_is_refused(corpus, vocab):
    "fastai's `DistributedDL` would let every process read the whole text"
    dl = text_dls(corpus, vocab, is_lm=True, bs=4, seq_len=8, device='cpu').train
    shared = DistributedDL(dl, 0, 2)
    shared._broadcast = lambda t, rank: t
    with pytest.raises(ValueError, match='bench/ranks.py'): list(shared)
    assert len(list(dl)) == len(dl)

def test_a_share_of_sorted_texts_is_refused(corpus, vocab):
    "Under fastai's `DistributedDL` batches of a classifier are no longer longest first, and its encoder would misread them without a word"
    dl = text_dls(corpus, vocab, bs=5, seq_len=8, device='cpu').train
    def process(rank):
        shared = DistributedDL(dl, rank, 3)
        shared._broadcast = lambda t, rank: t
        return list(shared)
    with pytest.raises(ValueError, match='longest first.*rank= and world='): [process(i) for i in range(3)]
    assert len(list(dl)) == len(dl)

def test_no_work_text_by_text(corpus, vocab, monkeypatch):
    "An epoch takes its texts from the array: not one by one out of the dataset, whose every look costs as much as a batch"
    n, get = [], TfmdLists.__getitem__
    for is_lm in (True, False):
        dl = text_dls(corpus, vocab, is_lm=is_lm, bs=4, seq_len=8, device='cpu').train
        monkeypatch.setattr(TfmdLists, '__getitem__', lambda self, i: (n.append(i), get(self, i))[1])
        assert len(list(dl)) > 10 and len(n) <= 2
        monkeypatch.undo(); n.clear()

def test_rows_as_numpy_counts_them(corpus, vocab):
    dls = text_dls(corpus, vocab, bs=4, device='cpu')
    assert dls.test_dl(np.arange(3)).one_batch()[0].tolist() == dls.test_dl([0, 1, 2]).one_batch()[0].tolist()
    for bad in ([-2], [len(corpus)]):
        with pytest.raises(ValueError, match='of a corpus that has 0 to'): dls.test_dl(bad)

def test_labels_that_are_no_labels(short, tmp_path):
    "Of several labels a missing one is an error, and not a no"
    df = get_texts(short.assign(a=[0, 1]*60, b=1).drop(columns='label'), label_col=['a', 'b'], split_col='part')
    dls = text_dls(text_corpus(df, cache=tmp_path), bs=4, seq_len=8, device='cpu')
    rows = pd.DataFrame(dict(text=['Fine', 'Dull'], a=[1., 0.], b=[True, False]))
    assert dls.test_dl(rows, with_labels=True).one_batch()[1].tolist() == [[1, 1], [0, 0]]
    for bad in (float('nan'), .7, 2):
        with pytest.raises(ValueError, match=rf"'a': .*{bad}.*0 or 1; fill it"): dls.test_dl(rows.assign(a=bad), with_labels=True).one_batch()

@pytest.mark.parametrize('label', [lambda l: l == 'pos', lambda l: np.where(l == 'pos', 7654321., 1234567.), lambda l: (l == 'pos')*1, lambda l: (l == 'pos')*1., lambda l: pd.Categorical(l)])
def test_labels_of_every_kind_come_back(short, tmp_path, label):
    "A label at test time is the class that it was in training"
    df = short.assign(label=label(short.label.to_numpy()))
    dls = text_dls(text_corpus(get_texts(df, split_col='part'), cache=tmp_path), bs=4, seq_len=8, device='cpu')
    direct = text_dls(text_corpus(get_texts(short, split_col='part').assign(label=df.label.where(df.part.eq('train'))), cache=tmp_path), bs=4, seq_len=8, device='cpu')
    assert direct.vocab[1] == dls.vocab[1]                                              # beside missing ones, too
    rows = df[df.part.eq('test')]
    y = dls.test_dl(rows, with_labels=True, bs=64)
    assert torch.cat([b[1] for b in y]).tolist() == [int(short.label[rows.index[i]] == 'pos') for i in y.get_idxs()]

def test_a_pickled_learner_says_what_it_lacks(short, tmp_path):
    df = get_texts(short, split_col='part')
    dls = pickle.loads(pickle.dumps(text_dls(text_corpus(df, cache=tmp_path), bs=4, seq_len=8, device='cpu')))
    with pytest.raises(ValueError, match='its corpus stayed behind'): dls.valid.new()

def test_columns_without_names(tmp_path):
    df = pd.DataFrame([['Fine film', 'a', 'train'], ['Dull film', 'b', 'train']]*8 + [['Fine', 'a', 'test'], ['Dull', 'b', 'test']])
    dls = text_dls(text_corpus(get_texts(df, 0, 1, 2), cache=tmp_path), bs=4, device='cpu')
    assert len(list(dls.test_dl(df))) == 5

def test_a_look_in_between_changes_nothing(corpus, vocab):
    dl, other = (text_dls(corpus, vocab, is_lm=True, bs=2, seq_len=4, device='cpu').train for _ in range(2))
    seen = []
    for i, b in enumerate(dl):
        if i == 3: dl.one_batch()
        seen.append(b[0].tolist())
    assert seen == [b[0].tolist() for b in other]

def test_copies(corpus, vocab):
    import copy
    dls = text_dls(corpus, vocab, bs=4, device='cpu')
    assert copy.deepcopy(dls).valid_ds[0][0].tolist() == dls.valid_ds[0][0].tolist()
    with pytest.raises(ValueError, match='stayed behind'): pickle.loads(pickle.dumps(dls.valid_ds))[0]

def test_too_small(corpus, vocab):
    n = int((corpus.df.part.eq('train') & ~corpus.df.is_valid).sum())
    with pytest.raises(ValueError, match=f'largest that works is bs={n}$'): text_dls(corpus, vocab, bs=n + 1)
    text_dls(corpus, vocab, bs=n, device='cpu')
    with pytest.raises(ValueError, match='largest that works is bs=') as e: text_dls(corpus, vocab, is_lm=True, bs=10**6)
    most = int(str(e.value).split('bs=')[-1])
    assert len(list(text_dls(corpus, vocab, is_lm=True, bs=most, device='cpu').valid)) == 1

def test_numericalize_does_not_grow(vocab):
    num = known_words(vocab)
    n = len(num.o2i)
    num(['never', 'seen', 'before'])
    assert len(num.o2i) == n and len(pickle.loads(pickle.dumps(num)).o2i) == n

def test_what_an_expert_tried(corpus, vocab):
    for kw, has in [(dict(vocab=[vocab, ['neg', 'pos']]), 'words_of'), (dict(bs=0), 'bs=0'), (dict(seq_len=0), 'seq_len=0'), (dict(bs=4.5), 'bs=4.5'), (dict(bs='8'), "bs='8'")]:
        with pytest.raises(ValueError, match=has) as e: text_dls(corpus, **{'vocab': vocab, 'device': 'cpu', **kw})
        assert len(str(e.value)) < 300

def batches_of(job):
    path, rank, world, is_lm = job
    corpus = text_corpus(get_texts(), cache=path, n_workers=0)
    dl = text_dls(corpus, corpus.vocab(), is_lm=is_lm, bs=8, seq_len=16, seed=3, device='cpu').train.new(bs=8//world, rank=rank, world=world)
    return [[to.numpy() for to in b] for epoch in range(2) for b in dl]

@pytest.mark.parametrize('is_lm', [True, False])
def test_two_real_processes_share_the_batches(tmp_path, is_lm):
    "Each opens the corpus by itself and knows its rank alone; together they make what one process makes of all ranks"
    jobs = [(tmp_path, 0, 1, is_lm), (tmp_path, 0, 2, is_lm), (tmp_path, 1, 2, is_lm)]
    here = [batches_of(o) for o in jobs]
    with ProcessPoolExecutor(2, multiprocessing.get_context('spawn')) as ex: there = list(ex.map(batches_of, jobs[1:]))
    for a, b in zip(here[1:], there):
        assert len(a) == len(b) and all((x == y).all() for o, p in zip(a, b) for x, y in zip(o, p))
    if is_lm:
        assert len(here[0]) == len(there[0]) == len(there[1])
        for o, a, b in zip(here[0], *there): assert all((x == np.concatenate([y, z])).all() for x, y, z in zip(o, a, b))

@pytest.mark.parametrize('world', [2, 3, 5])
def test_fewer_batches_than_processes(corpus, vocab, world):
    "One batch for several: every process still makes as many steps as the others, and every text is read"
    dls = text_dls(corpus, vocab, bs=8, seq_len=16, device='cpu')
    n = len(dls.train_ds)
    ranks = [dls.train.new(bs=n, shuffle=False, drop_last=False, rank=r, world=world) for r in range(world)]
    idxs = [o.get_idxs() for o in ranks]
    assert [len(list(o)) for o in ranks] == [1]*world == [len(o) for o in ranks]
    assert set().union(*idxs) == set(range(n)) and all(idxs)

def test_what_merging_does_to_a_table(short):
    "pandas drops `attrs`, and makes objects of booleans; a table with other rows than the corpus is refused"
    df = get_texts(short.assign(long=short.text.str.len().gt(60), loud=short.text.str.contains('!')), label_col=['long', 'loud'], split_col='part')
    merged = df.merge(df[['text']].drop_duplicates().assign(film='one'))
    merged.attrs = {}
    a, b = (text_dls(text_corpus(o, progress=False), bs=8, device='cpu') for o in (df, merged))
    assert list(a.vocab[1]) == list(b.vocab[1]) == ['long', 'loud'] and torch.equal(a.train.one_batch()[1].sum(0), b.train.one_batch()[1].sum(0))
    df = get_texts(short, split_col='part')
    odd = text_corpus(df.assign(is_valid=df.is_valid.astype(object)), progress=False)
    plain = text_corpus(df, progress=False)
    assert odd.vocab(min_freq=1) == plain.vocab(min_freq=1) != list(text_vocab(plain.counts(range(len(plain))), min_freq=1))
    assert len(text_dls(odd, bs=8, device='cpu').valid_ds) == df[df.part.eq('train')].is_valid.sum()
    for other in (df[:-1], df[::-1]):
        odd.df = other
        with pytest.raises(ValueError, match='rows of corpus.df are others, or in another order'): text_dls(odd, bs=8, device='cpu')

def test_columns_of_text_that_pandas_forgot(short, tmp_path):
    "Read on as one column, a classifier would never see the titles of new tables"
    df = get_texts(short.assign(title=['Dull', 'Fine']*60), text_col=['title', 'text'], split_col='part')
    merged = df.merge(pd.DataFrame(dict(film=['one'])), how='cross')
    with pytest.raises(ValueError, match="pandas lost the text columns"): text_dls(text_corpus(merged, cache=tmp_path), bs=8, device='cpu')
    merged.attrs['text_col'] = ['title', 'text']
    assert text_dls(text_corpus(merged, cache=tmp_path), bs=8, device='cpu').train_ds.corpus_text.cols == ['title', 'text']

def test_several_labels_from_any_table(short, tmp_path):
    "Columns of 0 and 1, the tuples of `get_texts`, and where pandas forgot the columns; lists of labels are several labels"
    two = short.assign(sad=np.arange(120) % 2, funny=(np.arange(120) % 3 == 0)).drop(columns='label')
    df = get_texts(two, label_col=['sad', 'funny'], split_col='part')
    lost = df.merge(pd.DataFrame(dict(film=['one'])), how='cross')
    want = {i: {k for k in ('sad', 'funny') if two[k][i]} for i in two.index[:8]}
    for o in (df, lost, df.assign(label=df.label.map(lambda l: list(l) if l else l))):
        dls = text_dls(text_corpus(o, cache=tmp_path), bs=4, seq_len=8, device='cpu')
        assert set(dls.vocab[1]) == {'sad', 'funny'}
        for table in (two, df):
            dl = dls.test_dl(table[:8], with_labels=True, bs=8)
            for i, y in zip(dl.get_idxs(), dl.one_batch()[1]): assert {k for k, on in zip(dls.vocab[1], y) if on} == want[i]
    plain = get_texts(short, split_col='part')                                          # one column once, of which the user made lists
    for kind in (list, tuple, np.array):
        own = plain.assign(label=[kind([l, 'film']) if l else l for l in plain.label])
        dls = text_dls(text_corpus(own, cache=tmp_path), bs=4, seq_len=8, device='cpu')
        assert dls.vocab[1] == ['film', 'neg', 'pos'] and dls.one_batch()[1].sum(1).eq(2).all()
        for again in (own, own.assign(label=own.label.map(set)), own.assign(label=own.label.map(list).map(L))):
            assert dls.test_dl(again[again.part.eq('train')], with_labels=True).one_batch()[1].sum(1).eq(2).all()
    named = text_dls(text_corpus(get_texts(short.rename(columns=dict(label='stars')), label_col='stars', split_col='part'), cache=tmp_path), bs=4, seq_len=8, device='cpu')
    ys = [named.test_dl(o[8:16], with_labels=True, bs=8).one_batch()[1].tolist() for o in (short.rename(columns=dict(label='stars')), plain)]
    assert ys[0] == ys[1] and len({*ys[0]}) == 2, 'the table as it came, and as `get_texts` gave it'
    stars = text_dls(text_corpus(plain.assign(label=np.float32(plain.label.eq('pos'))), cache=tmp_path), bs=4, seq_len=8, device='cpu')
    assert stars.test_dl(plain.assign(label=np.float32(plain.label.eq('pos'))), with_labels=True).one_batch()[1].max() == 1

def test_a_label_that_got_lost(short, tmp_path):
    "A `map` that forgets a class leaves gaps, which must not become a class `nan`; texts without labels may have them"
    df = get_texts(short, split_col='part')
    corpus = text_corpus(df.assign(label=df.label.map({'neg': 'bad'})), cache=tmp_path)
    with pytest.raises(ValueError, match='lack a label'): text_dls(corpus, bs=4, seq_len=8, device='cpu')
    assert len(text_dls(corpus, is_lm=True, bs=4, seq_len=8, device='cpu').train)
