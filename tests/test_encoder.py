"""Files that say no: damaged, foreign, of another network, another vocabulary, another direction; and those that fit go in whole."""
import copy, os, pickle
import numpy as np, pandas as pd, pytest, torch
from fastai.text.all import (AWD_LSTM, TextDataLoaders, awd_lstm_clas_config, awd_lstm_lm_config, language_model_learner, nn, set_seed, text_classifier_learner)
from ulmfit_tut import files
from ulmfit_tut.batches import text_dls
from ulmfit_tut.corpus import text_corpus
from ulmfit_tut.data import get_texts
from ulmfit_tut.encoder import about, encoder_of, load_encoder, load_text_model, save_encoder, save_text_model, words_of
from ulmfit_tut.files import load_weights, save_weights
from ulmfit_tut.predict import load_classifier, predict
from ulmfit_tut.restore import model_weights
from ulmfit_tut.tokens import get_tokenizer
from ulmfit_tut.ulmfit import classifier_learner

small = dict(emb_sz=8, n_hid=10, n_layers=2)

def lm_of(corpus, vocab, path=None, cfg=small, **kw):
    set_seed(1)
    return language_model_learner(text_dls(corpus, vocab, is_lm=True, bs=4, seq_len=8, device='cpu', **kw), AWD_LSTM, config={**awd_lstm_lm_config, **cfg}, pretrained=False, path=path)

def clas_of(corpus, vocab, path=None, cfg=small, **kw):
    set_seed(2)
    return text_classifier_learner(text_dls(corpus, vocab, bs=4, seq_len=8, device='cpu', **kw), AWD_LSTM, config={**awd_lstm_clas_config, **cfg}, pretrained=False, seq_len=8, path=path)

@pytest.fixture(scope='module')
def corpus(short): return text_corpus(get_texts(short, split_col='part'))

@pytest.fixture(scope='module')
def vocab(corpus): return corpus.vocab()

@pytest.fixture
def enc(corpus, vocab, tmp_path): return save_encoder(lm_of(corpus, vocab), tmp_path/'enc.safetensors')

def weights(learn): return {k: v.clone() for k, v in learn.model.state_dict().items()}

def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

def refused(load, learn, file, *has):
    "An error that says why, and a learner that is as it was"
    before = weights(learn)
    with pytest.raises((ValueError, OSError)) as e: load(learn, file)
    for h in has: assert h in str(e.value), str(e.value)
    assert same(before, weights(learn))

def test_damaged_anywhere(corpus, vocab, enc, tmp_path):
    "A share of what bench/reliable.py does two thousand times"
    lm, clas = lm_of(corpus, vocab), clas_of(corpus, vocab)
    whole = save_text_model(clas, tmp_path/'clas.safetensors')
    rng = np.random.default_rng(0)
    for file, load in ((enc, load_encoder), (whole, load_text_model)):
        good = file.read_bytes()
        n = int.from_bytes(good[:8], 'little')
        meta = good.index(b'__metadata__')
        for lo, hi in [(0, 8), (8, 8 + n), (meta, 8 + n), (8 + n, len(good))]:
            for _ in range(12):
                i = int(rng.integers(lo, hi))
                bad = [good[:i] + bytes([good[i] ^ int(rng.integers(1, 256))]) + good[i+1:], good[:i], good[:i] + good[i+1:]][int(rng.integers(3))]
                file.write_bytes(bad)
                refused(load, clas, file, file.name)
        file.write_bytes(good)
        load(clas, file)
    refused(load_text_model, lm, whole, "kind 'classifier' / 'lm'")

def test_pickle_in_disguise(corpus, vocab, tmp_path):
    class Bad:
        def __reduce__(self): return os.system, (f'touch {tmp_path}/ran',)
    f, clas = tmp_path/'enc.safetensors', clas_of(corpus, vocab)
    f.write_bytes(pickle.dumps(Bad()))
    refused(load_encoder, clas, f, 'no whole safetensors file')
    with pytest.raises(ValueError): load_classifier(f)
    torch.save(Bad(), tmp_path/'enc.pth')
    refused(lambda l, f: load_encoder(l, f, vocab=vocab), clas, tmp_path/'enc.pth', 'more than weights')
    (tmp_path/'itos.pkl').write_bytes(pickle.dumps([Bad()]))
    clas.path = tmp_path
    clas.save_encoder('old')
    refused(lambda l, f: load_encoder(l, f, vocab=tmp_path/'itos.pkl'), clas, tmp_path/'models/old.pth', 'list of strings')
    assert not (tmp_path/'ran').exists()

def test_whole_but_wrong(corpus, vocab, enc, tmp_path, short):
    "Files that are sound in themselves"
    clas = clas_of(corpus, vocab)
    w, meta = load_weights(enc)
    def other(**kw): return save_weights(tmp_path/'o.safetensors', kw.pop('weights', w), **{**meta, **kw})
    for kw, has in [(dict(arch='QRNN'), "arch 'QRNN' / 'AWD_LSTM'"), (dict(backwards=True), 'backwards True / False'), (dict(rules='corrected'), "rules 'corrected' / 'fastai'"),
                    (dict(tokenizer='spaCy de'), "'spaCy de' / 'spaCy en'"), (dict(config={**small, 'n_hid': 99}), '99'), (dict(kind='checkpoint'), 'checkpoint'),
                    (dict(vocab=vocab[:-1]), 'do not belong together'), (dict(vocab=vocab[:9] + vocab[9:][::-1]), 'words of'),
                    (dict(weights={k: v for k, v in w.items() if 'rnns.1' not in k}), 'missing'), (dict(weights={**w, 'rnns.0.weight_hh_l0_raw': torch.zeros(4, 4)}), '(4, 4)')]:
        refused(load_encoder, clas, other(**kw), has)
    refused(load_encoder, clas, tmp_path/'nowhere.safetensors', 'No such file')
    f = save_text_model(clas, tmp_path/'c.safetensors')
    w, meta = load_weights(f)
    for kw, has in [(dict(classes=['bad', 'good']), 'classes'), (dict(vocab=vocab[::-1]), 'vocab'), (dict(backwards=True), 'backwards')]:
        refused(load_text_model, clas, save_weights(tmp_path/'d.safetensors', w, **{**meta, **kw}), has)
    refused(load_text_model, lm_of(corpus, vocab), f, "kind 'classifier' / 'lm'")
    german = text_corpus(get_texts(short, split_col='part'), get_tokenizer('de'))
    refused(load_encoder, clas_of(german, vocab), enc, "'spaCy en' / 'spaCy de'")
    bare = clas_of(corpus, vocab)
    bare.model = nn.DataParallel(bare.model)                                                              # without an optimizer: fastai cannot split it, so it cannot be frozen
    before = weights(bare)
    with pytest.raises(Exception): load_encoder(bare, enc)
    assert same(before, weights(bare))

def test_windows_of_one_length(corpus, vocab, enc):
    "A classifier that reads other windows than its texts are padded for: its answers would depend on the neighbours"
    set_seed(2)
    learn = text_classifier_learner(text_dls(corpus, vocab, bs=4, seq_len=8, device='cpu'), AWD_LSTM, config={**awd_lstm_clas_config, **small}, pretrained=False, seq_len=72)
    refused(load_encoder, learn, enc, 'seq_len=72', 'pad for 8')
    refused(load_text_model, learn, enc, 'seq_len=72')

def test_every_road_in(corpus, vocab, enc, tmp_path):
    "Encoder, language model and classifier files; into both kinds of learner, wrapped or not; fastai's own file and back"
    source, want = lm_of(corpus, vocab), None
    want = source.model[0].state_dict()
    files_ = [enc, save_text_model(source, tmp_path/'lm.safetensors')]
    for f in files_:
        for make in (lm_of, clas_of):
            learn = make(corpus, vocab)
            for p in learn.model.parameters(): p.data.zero_()
            res = load_encoder(learn, f)
            assert same(want, encoder_of(learn).state_dict()) and res == dict(words=len(vocab), shared=len(vocab), coverage=1., unchecked=[])
            assert learn.opt.frozen_idx == len(learn.opt.param_lists) - 1                                   # frozen, as fastai leaves it
    wrapped = clas_of(corpus, vocab)
    wrapped.create_opt()                                                                                   # fastai's splitter wants the bare model
    wrapped.model = nn.DataParallel(wrapped.model)
    load_encoder(wrapped, enc)
    assert same(want, encoder_of(wrapped).state_dict()) and save_encoder(wrapped, tmp_path/'w.safetensors').read_bytes() == enc.read_bytes()
    back = clas_of(corpus, vocab, path=tmp_path)
    load_encoder(back, enc)
    back.save_encoder('old')
    pth, itos = tmp_path/'models/old.pth', tmp_path/'itos.pkl'
    itos.write_bytes(pickle.dumps(vocab))
    stock = clas_of(corpus, vocab, path=tmp_path)
    stock.load_encoder('old')
    assert same(want, encoder_of(stock).state_dict())
    learn = clas_of(corpus, vocab)
    assert load_encoder(learn, pth, vocab=itos)['unchecked'] == ['tokenizer', 'rules', 'backwards'] and same(want, encoder_of(learn).state_dict())
    refused(load_encoder, learn, pth, 'holds no vocabulary')
    lm = lm_of(corpus, vocab)
    torch.save(dict(model=lm.model.state_dict()), tmp_path/'pair.pth')                                     # as `learn.save` writes it
    assert load_encoder(learn, tmp_path/'pair.pth', vocab=vocab)['shared'] == len(vocab)

def test_other_words(corpus, vocab, enc, tmp_path):
    "Shared rows move to their words, new words get the mean row, by hand"
    new = vocab[:9] + vocab[9:][::-1] + ['brandnew']
    learn, rows = clas_of(corpus, new), load_weights(enc)[0]['encoder.weight']
    res = load_encoder(learn, enc, match_vocab=True)
    got = encoder_of(learn).encoder.weight
    for i, w in enumerate(new): assert torch.equal(got[i], rows[vocab.index(w)] if w in vocab else rows.mean(0))
    assert res['shared'] == len(vocab) and res['coverage'] == pytest.approx(len(vocab)/len(new))

def test_what_a_stock_learner_shows(short, corpus, vocab, enc, tmp_path):
    "fastai's own DataLoaders with our rules' names; from numbers nothing is known, and that is no error"
    df = short[short.label.ne('')].assign(is_valid=[i % 4 == 0 for i in range((short.label != '').sum())])
    dls = TextDataLoaders.from_df(df, text_col='text', label_col='label', valid_col='is_valid', bs=4, seq_len=8, device='cpu', num_workers=0)
    learn = text_classifier_learner(dls, AWD_LSTM, config={**awd_lstm_clas_config, **small}, pretrained=False, seq_len=8)
    a = about(learn)
    assert (a['tokenizer'], a['rules'], a['backwards']) == ('spaCy en', 'fastai', False)
    back = TextDataLoaders.from_df(df, text_col='text', label_col='label', valid_col='is_valid', bs=4, seq_len=8, device='cpu', num_workers=0, backwards=True)
    assert about(text_classifier_learner(back, AWD_LSTM, config={**awd_lstm_clas_config, **small}, pretrained=False))['backwards'] is True
    assert load_encoder(learn, enc, match_vocab=True)['unchecked'] == []
    blind = clas_of(corpus, vocab)
    file = save_text_model(blind, tmp_path/'c.safetensors')
    w, meta = load_weights(file)
    save_weights(file, w, **{**meta, 'rules': None})
    assert load_text_model(blind, file) == dict(unchecked=['rules'])

def test_classifier_file_alone(corpus, vocab, tmp_path):
    "Built from the file alone, it says what the learner said; no text of training is in it"
    clas = clas_of(corpus, vocab)
    f = save_text_model(clas, tmp_path/'c.safetensors')
    again = load_classifier(f, device='cpu')
    assert same(weights(clas), weights(again)) and list(again.dls.vocab[1]) == ['neg', 'pos']
    assert corpus.df.text[0][:40].encode() not in f.read_bytes() and str(corpus.path).encode() not in f.read_bytes()
    with pytest.raises(ValueError, match='no AWD_LSTM classifier'): load_classifier(save_encoder(clas, tmp_path/'e.safetensors'))

@pytest.mark.parametrize('make', [lm_of, clas_of])
def test_a_copy(corpus, vocab, make):
    "Stock `deepcopy` of an AWD-LSTM always fails (pains: D23). Its weights by name are whole, and a `reset` without gradients mends the module"
    learn, other = make(corpus, vocab), make(corpus, vocab)
    with pytest.raises(RuntimeError, match='deepcopy protocol'): copy.deepcopy(learn.model)
    for p in other.model.parameters(): p.data.zero_()
    for k, v in model_weights(other.model).items(): v.copy_(model_weights(learn.model)[k])
    assert same(weights(learn), weights(other))
    with torch.no_grad():
        learn.model.reset()
        twin, x = copy.deepcopy(learn.model), torch.arange(8)[None]
        assert torch.equal(twin.eval()(x)[0], learn.model.eval()(x)[0])
    for p in twin.parameters(): p.data.zero_()
    assert same(weights(learn), weights(other))                                                            # nothing is shared with the copy

def test_one_matrix_or_two(corpus, vocab, tmp_path):
    "A language model whose decoder has a matrix of its own does not go into one that reads and scores with the same"
    own = lm_of(corpus, vocab, cfg={**small, 'tie_weights': False})
    f = save_text_model(own, tmp_path/'own.safetensors')
    refused(load_text_model, lm_of(corpus, vocab), f, '1.decoder.weight')
    refused(load_text_model, own, save_text_model(lm_of(corpus, vocab), tmp_path/'tied.safetensors'), '1.decoder.weight')
    again = lm_of(corpus, vocab, cfg={**small, 'tie_weights': False})
    for p in again.model.parameters(): p.data.zero_()
    load_text_model(again, f)
    assert same(weights(own), weights(again))

def test_a_kill_leaves_the_old_file(corpus, vocab, enc, monkeypatch):
    before = enc.read_bytes()
    def full(*a): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(files.os, 'replace', full)
    with pytest.raises(OSError): save_encoder(clas_of(corpus, vocab), enc)
    assert enc.read_bytes() == before and [o.name for o in enc.parent.iterdir()] == [enc.name]

def test_a_link_stays_one(corpus, vocab, tmp_path):
    learn = lm_of(corpus, vocab)
    (tmp_path/'link.safetensors').symlink_to(tmp_path/'real.safetensors')
    save_encoder(learn, tmp_path/'link.safetensors')
    assert (tmp_path/'link.safetensors').is_symlink() and words_of(tmp_path/'real.safetensors') == words_of(learn)

def test_stock_classifier_in_a_file(short, tmp_path):
    "Whole numbers as labels, an order of classes of their own, a limit on the length: what stock learners have"
    from fastai.text.all import CategoryBlock
    from ulmfit_tut.predict import predict
    df = short[short.label.ne('')].assign(is_valid=[i % 4 == 0 for i in range((short.label != '').sum())])
    for labels, kw, classes in [([i % 2 for i in range(len(df))], {}, ['0', '1']), ([['low', 'mid', 'high'][i % 3] for i in range(len(df))], dict(y_block=CategoryBlock(vocab=['low', 'mid', 'high'], sort=False)), ['low', 'mid', 'high'])]:
        dls = TextDataLoaders.from_df(df.assign(label=labels), text_col='text', label_col='label', valid_col='is_valid', bs=4, seq_len=8, device='cpu', num_workers=0, **kw)
        learn = text_classifier_learner(dls, AWD_LSTM, config={**awd_lstm_clas_config, **small}, pretrained=False, seq_len=8, max_len=16)
        again = load_classifier(save_text_model(learn, tmp_path/'c.safetensors'), device='cpu')
        assert list(again.dls.vocab[1]) == classes and again.model[0].max_len == 16
        texts = df.text[:10].tolist() + ['a film '*50]
        assert np.abs(predict(learn, texts).iloc[:, 1:].to_numpy() - predict(again, texts).iloc[:, 1:].to_numpy()).max() < 1e-6

def test_other_pth_files(corpus, vocab, tmp_path):
    clas = clas_of(corpus, vocab)
    for o in ([1], torch.ones(2), {'a': 1}, {1: torch.ones(2)}, {}, {'model': 3}):
        torch.save(o, tmp_path/'o.pth')
        refused(lambda l, f: load_encoder(l, f, vocab=vocab), clas, tmp_path/'o.pth', 'something else than weights')

def test_what_an_expert_tried(corpus, vocab, enc, tmp_path):
    "A file name that says nothing, files of `learn.save`, other windows, a learner of another kind"
    clas = clas_of(corpus, vocab, path=tmp_path)
    with pytest.raises(ValueError, match='ends in .safetensors'): save_encoder(clas, tmp_path/'enc.pth')
    assert not (tmp_path/'enc.pth').exists()
    clas.create_opt(); clas.opt.hypers[0]['lr'] = np.float64(.1)                                          # a schedule leaves numbers of numpy's
    clas.save('with'); clas.save('without', with_opt=False)
    refused(lambda l, f: load_encoder(l, f, vocab=vocab), clas, tmp_path/'models/with.pth', 'with_opt=False')
    other = clas_of(corpus, vocab)
    for p in other.model.parameters(): p.data.zero_()
    load_encoder(other, tmp_path/'models/without.pth', vocab=vocab)
    assert same(encoder_of(other).state_dict(), encoder_of(clas).state_dict())
    f = save_text_model(clas, tmp_path/'c.safetensors')
    w, meta = load_weights(f)
    refused(load_text_model, clas, save_weights(tmp_path/'d.safetensors', w, **{**meta, 'seq_len': 20}), 'seq_len 20 / 8')
    clas.dls.vocab = clas.dls.vocab[0]                                                                     # as a regression learner has it
    with pytest.raises(ValueError, match='has no classes'): save_text_model(clas, tmp_path/'r.safetensors')

def test_integers_of_numpy(short, tmp_path):
    "They pass every check on the way, so they must go into a file as well"
    corpus = text_corpus(get_texts(short, split_col='part'))
    learn = classifier_learner(text_dls(corpus, bs=np.int64(8), seq_len=np.int64(8), device='cpu'), dict(emb_sz=8, n_hid=10, n_layers=np.int64(3)), max_len=np.int64(80))
    assert words_of(save_encoder(learn, tmp_path/'e.safetensors')) == words_of(learn)
    assert load_classifier(save_text_model(learn, tmp_path/'c.safetensors'), device='cpu').model[0].max_len == 80

def test_words_that_do_not_belong_to_the_network(corpus, vocab, tmp_path):
    "`learn.dls =` with another vocabulary would read rows of other words: nothing is said or saved with it"
    learn = clas_of(corpus, vocab)
    words = words_of(learn)
    learn.dls = text_dls(corpus, words[:-3], bs=4, seq_len=8, device='cpu')
    for f in (lambda: predict(learn, 'Fine'), lambda: save_text_model(learn, tmp_path/'c.safetensors')):
        with pytest.raises(ValueError, match=f'{len(words)} word rows, its DataLoaders {len(words) - 3} words: make them'): f()
