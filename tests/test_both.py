"""Both directions: one code path, two that answer together, one file for them; and what does not fit is refused."""
import json, shutil, subprocess, sys
import numpy as np, pandas as pd, pytest, torch
from fastai.text.all import (AWD_LSTM, BCEWithLogitsLossFlat, TextDataLoaders, awd_lstm_clas_config, awd_lstm_lm_config, language_model_learner, set_seed, text_classifier_learner)
from ulmfit_tut import lm as lm_
from ulmfit_tut.batches import text_dls
from ulmfit_tut.corpus import text_corpus
from ulmfit_tut.data import get_texts
from ulmfit_tut.encoder import about, load_encoder, load_text_model, save_encoder, save_text_model
from ulmfit_tut.files import load_weights, save_weights
from ulmfit_tut.lm import lm_learner, pretrained_lm
from ulmfit_tut.predict import load_classifier, predict, predict_csv
from ulmfit_tut.ulmfit import ulmfit
from ulmfit_tut.unfreeze import Stage, fit_stages

small = dict(emb_sz=8, n_hid=10, n_layers=2)

def classifier(df, backwards=False, seed=0, **kw):
    "With weights so large that another order of the words shows"
    corpus = text_corpus(df)
    dls = text_dls(corpus, corpus.vocab(), bs=8, seq_len=8, backwards=backwards, device='cpu')
    learn = text_classifier_learner(dls, AWD_LSTM, config={**awd_lstm_clas_config, **small}, pretrained=False, seq_len=8, **kw)
    g = torch.Generator().manual_seed(seed)
    for p in learn.model.parameters(): p.data.copy_(torch.randn(p.shape, generator=g)*.5)
    return learn

def lm(df, backwards=False, **kw):
    corpus = text_corpus(df)
    dls = text_dls(corpus, corpus.vocab(), is_lm=True, bs=4, seq_len=8, backwards=backwards, device='cpu')
    return language_model_learner(dls, AWD_LSTM, config={**awd_lstm_lm_config, **small}, pretrained=False, **kw)

def probs(*a): return predict(*a).iloc[:, 1:].to_numpy(float)

@pytest.fixture(scope='module')
def df(short): return get_texts(short, split_col='part')

@pytest.fixture(scope='module')
def pair(df): return [classifier(df), classifier(df, backwards=True, seed=1)]

@pytest.fixture(scope='module')
def file(pair, tmp_path_factory): return save_text_model(pair, tmp_path_factory.mktemp('both')/'pair.safetensors')

texts = ['A film that I liked, and liked the more the longer it was.', 'no', '', 'Two hours! Two hours of nothing, and then the end.']

# --- one code path ------------------------------------------------------------------------------------------------------------------------------

def test_batches_are_stocks(df):
    "Stock `TextDataLoaders(..., backwards=True)` with the same words: the same ids, `xxbos` last"
    ours = classifier(df, backwards=True)
    rows = df[df.part.eq('train')]
    stock = TextDataLoaders.from_df(rows, text_col='text', label_col='label', valid_col='is_valid', text_vocab=ours.dls.vocab[0], backwards=True, bs=4, device='cpu', num_workers=0)
    for i, t in enumerate(rows.text[~rows.is_valid]):
        a, b = stock.train_ds[i][0].tolist(), ours.dls.train_ds[i][0].tolist()
        assert a == b and ours.dls.vocab[0][a[-1]] == 'xxbos'
    assert about(ours)['backwards'] is True and about(text_classifier_learner(stock, AWD_LSTM, config={**awd_lstm_clas_config, **small}, pretrained=False))['backwards'] is True

def test_an_encoder_knows_its_direction(df, tmp_path):
    for a, b in ((False, True), (True, False)):
        enc = save_encoder(lm(df, a), tmp_path/f'{a}.safetensors')
        assert load_encoder(classifier(df, a), enc)['unchecked'] == []
        with pytest.raises(ValueError, match=f'backwards {a} / {b}'): load_encoder(classifier(df, b), enc)
        whole = save_text_model(classifier(df, a), tmp_path/f'c{a}.safetensors')
        with pytest.raises(ValueError, match=f'backwards {a} / {b}'): load_text_model(classifier(df, b), whole)
        assert about(load_classifier(whole, device='cpu'))['backwards'] is a

def test_a_language_model_reads_as_its_loaders(df, short):
    "Ours and stock loaders; one direction for the texts and another for the weights is an error"
    corpus = text_corpus(df)
    for dls in (text_dls(corpus, corpus.vocab(), is_lm=True, bs=4, seq_len=8, backwards=True, device='cpu'),
                TextDataLoaders.from_df(short.assign(v=short.index % 2), text_col='text', valid_col='v', is_lm=True, backwards=True, bs=4, seq_len=8, device='cpu', num_workers=0)):
        with pytest.raises(ValueError, match='dls must be made with is_lm=True, backwards=False'): lm_learner(dls, 'none')
        assert about(lm_learner(dls, 'none', backwards=True))['backwards'] is True

def test_stages_and_the_main_job(short, tmp_path):
    "What `ulmfit` wrote on reading from the end reads from the end"
    back = ulmfit(short, tmp_path/'run', 'none', backwards=True, split_col='part', lm_epochs=(0, 1), epochs=(1, 1, 1, 1), bs=8, compare=(), device='cpu', progress=False)
    clas = load_classifier(tmp_path/'run', device='cpu')
    assert about(clas)['backwards'] and json.loads((tmp_path/'run/config.json').read_text())['backwards'] is True
    saved = pd.read_csv(tmp_path/'run/predictions.csv')
    assert np.abs(probs(clas, saved.text) - saved.iloc[:, 3:].to_numpy()).max() < 1e-5 and len(back)

# --- the pretrained models ----------------------------------------------------------------------------------------------------------------------

def test_what_has_a_backwards_model(short, tmp_path):
    with pytest.raises(ValueError, match="'wiki' reads forwards: use pretrained=\"movies\""): pretrained_lm('wiki', backwards=True)
    assert pretrained_lm('none', backwards=True)[0] is None
    with pytest.raises(ValueError, match='pretrained=None is none of wiki'): pretrained_lm(None)
    with pytest.raises(ValueError, match='wiki reads forwards'): ulmfit(short, tmp_path/'run', 'movies', split_col='part', backwards=True, compare=('direct',))
    assert not (tmp_path/'run').exists()

@pytest.mark.skipif(not (lm_._files.parent/'models/movies-bwd.safetensors').exists(), reason='not trained')
def test_movies_backwards():
    "The words of `movies`, other weights; and its file says which way it reads"
    (a, words, sizes), (b, words_b, sizes_b) = pretrained_lm('movies'), pretrained_lm('movies', backwards=True)
    assert words == words_b and sizes == sizes_b and a.keys() == b.keys() and not torch.equal(a['0.encoder.weight'], b['0.encoder.weight'])
    metas = [load_weights(lm_._files.parent/f'models/{o}.safetensors')[1] for o in ('movies', 'movies-bwd')]
    assert [o.pop('backwards') for o in metas] == [False, True] and metas[0] == metas[1]

# --- together -----------------------------------------------------------------------------------------------------------------------------------

def test_mean_of_two_tables(pair):
    a, b = (probs(o, texts) for o in pair)
    assert np.abs(a - b).max() > .05 and np.abs(probs(pair, texts) - (a + b)/2).max() < 1e-6
    got = predict(pair, pd.Series(texts, index=list('wxyx')))
    assert list(got.index) == list('wxyx') and list(got.columns) == ['label', 'neg', 'pos']
    assert (got.label == [('neg', 'pos')[i] for i in ((a + b)/2).argmax(1)]).all()
    for a, b in [((pair[0], texts), (pair[:1], texts)), ((pair[::-1], texts), (pair, texts)), ((pair, iter(texts)), (pair, texts)), ((tuple(pair), 'no'), (pair, ['no']))]:
        pd.testing.assert_frame_equal(predict(*a), predict(*b))
    with pytest.raises(TypeError, match=r'Texts \[1\] are no strings'): predict(pair, ['a', None])

def test_each_its_own_words_columns_and_rules(df, short):
    "Another vocabulary, another window, a stock learner: only the classes must agree"
    corpus = text_corpus(df)
    dls = text_dls(corpus, corpus.vocab(min_freq=6), bs=8, seq_len=5, device='cpu')
    other = text_classifier_learner(dls, AWD_LSTM, config={**awd_lstm_clas_config, **small, 'n_hid': 14}, pretrained=False, seq_len=5)
    rows = short[short.label.ne('')].rename(columns={'text': 'review'}).assign(v=lambda o: o.index % 3 == 0)
    stock = text_classifier_learner(TextDataLoaders.from_df(rows, text_col='review', label_col='label', valid_col='v', bs=4, seq_len=8, backwards=True, device='cpu', num_workers=0), AWD_LSTM,
                                    config={**awd_lstm_clas_config, **small}, pretrained=False, seq_len=8)
    three = [classifier(df), other, stock]
    assert np.abs(probs(three, texts) - np.mean([probs(o, texts) for o in three], 0)).max() < 1e-6
    table = pd.DataFrame(dict(text=texts, review=texts[::-1]))
    assert np.abs(probs(three, table) - np.mean([probs(three[0], texts), probs(other, texts), probs(stock, texts[::-1])], 0)).max() < 1e-6
    with pytest.raises(ValueError, match=r"no single column \['review'\]"): predict(three, table[['text']])

def test_several_labels(short, tmp_path):
    raw = short[short.part.ne('unsup')].assign(good=short.label.eq('pos').astype(int), long=(short.text.str.len() > 60).astype(int))
    df = get_texts(raw, label_col=['good', 'long'], split_col='part')
    two = [classifier(df, loss_func=BCEWithLogitsLossFlat(thresh=.4)), classifier(df, backwards=True, seed=1, loss_func=BCEWithLogitsLossFlat(thresh=.4))]
    want = predict(two, texts)
    assert (want.label == [';'.join(c for c in ('good', 'long') if r[c] > .4) for _, r in want.iterrows()]).all()
    pd.testing.assert_frame_equal(predict(load_classifier(save_text_model(two, tmp_path/'p.safetensors'), device='cpu'), texts), want)
    with pytest.raises(ValueError, match="'thresh': 0.4.*'thresh': 0.5"): predict([two[0], classifier(df)], texts)

def test_mixed_classes(df, short, pair, tmp_path):
    other = classifier(get_texts(short.assign(label=short.label.replace({'pos': 'good'})), split_col='part'))
    for work in (lambda o: predict(o, texts), lambda o: save_text_model(o, tmp_path/'x.safetensors')):
        with pytest.raises(ValueError, match=r"\['neg', 'pos'\].*\['good', 'neg'\]"): work([pair[0], other])
        with pytest.raises(ValueError, match='no text classifier'): work([pair[0], lm(df)])
        with pytest.raises(ValueError, match='twice'): work([pair[0], pair[0]])
        with pytest.raises(ValueError, match='holds no classifier'): work([])
    assert not list(tmp_path.iterdir())

# --- one file -----------------------------------------------------------------------------------------------------------------------------------

def test_save_and_load(pair, file, tmp_path):
    again = load_classifier(file, device='cpu')
    assert [about(o)['backwards'] for o in again] == [False, True] and [type(o) for o in again] == [type(o) for o in pair]
    pd.testing.assert_frame_equal(predict(again, texts), predict(pair, texts))
    assert save_text_model(again, tmp_path/'again.safetensors').read_bytes() == file.read_bytes()
    for a, b in zip(pair, again): pd.testing.assert_frame_equal(predict(a, texts), predict(b, texts))
    one = save_text_model(pair[1:], tmp_path/'one.safetensors')
    assert one.read_bytes() == save_text_model(pair[1], tmp_path/'o.safetensors').read_bytes() and about(load_classifier(one, device='cpu'))['backwards']

def test_same_direction_twice(df, pair, tmp_path):
    "Two that read forwards may answer together as well"
    two = [pair[0], classifier(df, seed=5)]
    again = load_classifier(save_text_model(two, tmp_path/'two.safetensors'), device='cpu')
    assert np.abs(probs(again, texts) - (probs(two[0], texts) + probs(two[1], texts))/2).max() < 1e-6

def test_a_pair_is_no_single_model(df, pair, file):
    before = {k: v.clone() for k, v in pair[0].model.state_dict().items()}
    for load in (load_text_model, load_encoder):
        with pytest.raises(ValueError, match='another kind: classifiers, for load_classifier'): load(pair[0], file)
    assert all(torch.equal(v, before[k]) for k, v in pair[0].model.state_dict().items())

def test_damaged_or_mixed(df, file, tmp_path):
    good, rng, f = file.read_bytes(), np.random.default_rng(0), tmp_path/'f.safetensors'
    for _ in range(40):
        i = int(rng.integers(len(good)))
        f.write_bytes([good[:i] + bytes([good[i] ^ int(rng.integers(1, 256))]) + good[i+1:], good[:i], good[:i] + good[i+1:]][int(rng.integers(3))])
        with pytest.raises(ValueError, match='f.safetensors'): load_classifier(f)
    w, meta = load_weights(file, ('models',))
    a, b = meta['models']
    def other(weights=w, models=None): return save_weights(f, weights, **{**meta, 'models': models or [a, b]})
    for bad, has in [(dict(models=[a, {**b, 'classes': ['bad', 'good']}]), 'agree'), (dict(models=[a, {**b, 'kind': 'lm'}]), 'no AWD_LSTM classifier, but: lm'),
                     (dict(models=[a, b, b]), 'do not fit'), (dict(weights={k: v for k, v in w.items() if k[:2] != '1.'}), 'do not fit'),
                     (dict(models=[a, {k: v for k, v in b.items() if k != 'arch'}]), 'classifier, None'), (dict(weights={k: v for k, v in w.items() if '1.1.layers' not in k}), 'do not fit')]:
        with pytest.raises(ValueError, match=has): load_classifier(other(**bad))

def test_command(pair, file, tmp_path):
    "The command takes the file of a pair as it takes that of one"
    pd.DataFrame(dict(text=texts)).to_csv(tmp_path/'in.csv', index=False)
    cmd = [sys.executable, '-W', 'ignore', '-c', 'from ulmfit_tut.cli import predict_main; predict_main()', file, tmp_path/'in.csv', tmp_path/'out.csv', '--device', 'cpu']
    res = subprocess.run(list(map(str, cmd)), capture_output=True, text=True)
    assert res.returncode == 0, res.stderr
    one = [save_text_model(o, tmp_path/f'{i}.safetensors') for i, o in enumerate(pair)]
    res = subprocess.run(list(map(str, [*cmd[:5], *one, tmp_path/'in.csv', tmp_path/'two.csv', '--device', 'cpu'])), capture_output=True, text=True)
    assert res.returncode == 0, res.stderr
    for f in (tmp_path/'out.csv', tmp_path/'two.csv', predict_csv(pair, tmp_path/'in.csv', tmp_path/'want.csv', rows=3)):
        got = pd.read_csv(f)
        assert list(got.columns) == ['label', 'neg', 'pos'] and np.abs(got.pos - predict(pair, texts).pos).max() < 1e-6

def test_a_language_model_on_classes(short):
    corpus = text_corpus(get_texts(short, split_col='part'))
    with pytest.raises(ValueError, match='dls must be made with is_lm=True, backwards=False'): lm_learner(text_dls(corpus, bs=4, device='cpu'), 'none')
