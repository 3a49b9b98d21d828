"""The same answer alone, in any batch, in any order, from any thread; generation that is the model's own."""
import subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from fastai.text.all import (AWD_LSTM, BaseTokenizer, BCEWithLogitsLossFlat, Callback, Categorize, ColReader, ColSplitter, Datasets, F, Numericalize, SortedDL, SpacyTokenizer, TextDataLoaders, Tokenizer, awd_lstm_clas_config, awd_lstm_lm_config, decode_spec_tokens, language_model_learner, set_seed, text_classifier_learner)
from hypothesis import given, settings, strategies as st
from ulmfit_tut.batches import text_dls
from ulmfit_tut.corpus import text_corpus
from ulmfit_tut.data import PadChunks, get_texts, mini_reviews_df, text_vocab
from ulmfit_tut.encoder import encoder_of, load_text_model, save_text_model
from ulmfit_tut.lm import lm_learner
from ulmfit_tut.predict import decode_tokens, generate, load_classifier, next_words, predict, predict_csv
from ulmfit_tut.tokens import get_tokenizer, tokenize
from ulmfit_tut.ulmfit import classifier_learner

small = dict(emb_sz=16, n_hid=20, n_layers=3)

def strong(learn):
    "Weights so large that a wrong hidden state shows"
    g = torch.Generator().manual_seed(0)
    for p in learn.model.parameters(): p.data.copy_(torch.randn(p.shape, generator=g)*.3)
    return learn

def quiet(learn):
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__ == 'ProgressCallback'])
    return learn

def classifier(df, backwards=False, **kw):
    corpus = text_corpus(df)
    set_seed(0)
    dls = text_dls(corpus, corpus.vocab(), bs=8, seq_len=16, backwards=backwards, device='cpu')
    return quiet(strong(text_classifier_learner(dls, AWD_LSTM, config={**awd_lstm_clas_config, **small}, pretrained=False, seq_len=16, **kw)))

def lm(df, backwards=False):
    corpus = text_corpus(df)
    dls = text_dls(corpus, corpus.vocab(min_freq=1), is_lm=True, bs=4, seq_len=16, backwards=backwards, device='cpu')
    return quiet(strong(language_model_learner(dls, AWD_LSTM, config={**awd_lstm_lm_config, **small}, pretrained=False)))

@pytest.fixture(scope='module')
def df(short): return get_texts(short, split_col='part')

@pytest.fixture(scope='module')
def texts():
    "Reviews of many lengths, and what nobody planned for"
    r = mini_reviews_df().text.tolist()
    return [' '.join(t.split()[:n]) for t, n in zip(r[:60], [1, 3, 7, 12, 15, 16, 17, 30, 31, 33, 47, 64]*5)] + ['', ' ', 'xxpad', 'xxpad xxbos xxpad', '\n\n', 'no '*400, '😀', 'a\0b']

def test_alone_as_in_any_batch(df, texts):
    learn, rng = classifier(df), np.random.default_rng(0)
    alone = np.concatenate([predict(learn, t).iloc[:, 1:].to_numpy() for t in texts])
    assert alone[:, 0].std() > .005
    for bs in (1, 2, 3, 7, 64):
        order = rng.permutation(len(texts))
        got = predict(learn, [texts[i] for i in order], bs=bs).iloc[:, 1:].to_numpy()
        assert np.abs(got - alone[order]).max() < 1e-5

@pytest.mark.parametrize('bs', (2, 64))
def test_alone_beyond_what_is_pooled(df, bs):
    "Texts longer than `max_len`, which is no multiple of the window: which windows are pooled must not hang on the longest neighbour"
    learn, words = classifier(df, max_len=40), ' '.join(mini_reviews_df().text[:9]).split()
    longer = [' '.join(words[:n]) for n in range(20, 120)]
    alone = np.concatenate([predict(learn, t).iloc[:, 1:].to_numpy() for t in longer])
    assert np.abs(predict(learn, longer, bs=bs).iloc[:, 1:].to_numpy() - alone).max() < 1e-5
    assert np.abs(learn.get_preds(dl=learn.dls.test_dl(longer, bs=bs))[0].numpy() - alone).max() < 1e-5

def test_a_classifier_without_a_bound(df, texts):
    learn = classifier(df, max_len=None)
    alone = np.concatenate([predict(learn, t).iloc[:, 1:].to_numpy() for t in texts])
    assert np.abs(predict(learn, texts).iloc[:, 1:].to_numpy() - alone).max() < 1e-5

def test_several_labels_with_any_loss(short):
    df = get_texts(short.assign(a=[0, 1]*60, b=1).drop(columns='label'), label_col=['a', 'b'], split_col='part')
    dls = text_dls(text_corpus(df), bs=8, seq_len=16, device='cpu')
    one, other = (text_classifier_learner(dls, AWD_LSTM, config={**awd_lstm_clas_config, **small}, pretrained=False, seq_len=16, loss_func=f) for f in (None, F.binary_cross_entropy_with_logits))
    other.model.load_state_dict(one.model.state_dict())
    assert predict(one, ['Fine film']).equals(predict(other, ['Fine film']))

def test_columns_that_are_numbers(df):
    table = pd.DataFrame({0: df.text, 1: df.label, 2: df.part})
    c = text_corpus(get_texts(table, 0, 1, 2))
    learn = text_classifier_learner(text_dls(c, bs=8, seq_len=16, device='cpu'), AWD_LSTM, config={**awd_lstm_clas_config, **small}, pretrained=False, seq_len=16)
    assert predict(learn, table[:3]).equals(predict(learn, table[0][:3]))

def test_as_stock_says_of_one_text(df, texts):
    "fastai's own `predict`, on texts without blanks that its rules leave behind (pains: D6)"
    learn = classifier(df)
    for t in texts[:40]: assert np.abs(np.array(learn.predict(t)[2]) - predict(learn, t).iloc[0, 1:].to_numpy(float)).max() < 1e-5

def test_stock_learner(short, texts):
    "A learner that never met our package: its own `get_preds` depends on the neighbours, `predict` does not"
    df = short[short.label.ne('')].assign(is_valid=[i % 4 == 0 for i in range((short.label != '').sum())])
    dls = TextDataLoaders.from_df(df, text_col='text', label_col='label', valid_col='is_valid', bs=64, seq_len=16, device='cpu', num_workers=0)
    learn = quiet(strong(text_classifier_learner(dls, AWD_LSTM, config={**awd_lstm_clas_config, **small}, pretrained=False, seq_len=16)))
    some = texts[:20] + ['a film']
    alone = np.concatenate([predict(learn, t).iloc[:, 1:].to_numpy() for t in some])
    assert np.abs(predict(learn, some).iloc[:, 1:].to_numpy() - alone).max() < 1e-5
    stock = learn.get_preds(dl=learn.dls.test_dl(some))[0].numpy()
    assert np.abs(stock - alone).max() > 1e-3
    assert np.abs(np.concatenate([learn.get_preds(dl=learn.dls.test_dl([t]))[0].numpy() for t in some]) - alone).max() < 1e-5

def test_line_ends_do_not_matter(df, tmp_path):
    "What Windows and HTML forms end lines with: the same answer by every way in"
    learn, a = classifier(df), 'A good film.\n\nThe end\nis bad.'
    b = a.replace('\n', '\r\n')
    want = predict(learn, a).pos[0]
    assert set(predict(learn, [a, b, a.replace('\n', '\r')]).pos) == {want} == set(predict(learn, pd.DataFrame(dict(text=[b, b]))).pos)
    for items in ([b], pd.DataFrame(dict(text=[b]))): assert learn.get_preds(dl=learn.dls.test_dl(items))[0][0, 1].item() == pytest.approx(want, abs=1e-5)
    (tmp_path/'in.csv').write_bytes(f'text\r\n"{b}"\r\n'.encode())
    assert pd.read_csv(predict_csv(learn, tmp_path/'in.csv', tmp_path/'out.csv')).pos[0] == pytest.approx(want, abs=1e-6)

def test_order_index_and_kinds(df):
    learn = classifier(df)
    s = pd.Series(['a film', 'the film was long', 'no'], index=['x', 'y', 'x'])
    want = predict(learn, s.tolist())
    assert list(want.index) == [0, 1, 2] and list(want.columns) == ['label', 'neg', 'pos'] and want.label.isin(['neg', 'pos']).all()
    for o in (s, pd.DataFrame(dict(other=1, text=s))):
        got = predict(learn, o)
        assert list(got.index) == list(s.index) and (got.to_numpy() == want.to_numpy()).all()
    assert len(predict(learn, [])) == 0 and len(predict(learn, 'one')) == 1
    for bad, kind, has in [(['a', None], TypeError, r'\[1\]'), ([3], TypeError, r'\[0\]'), (pd.DataFrame(dict(a=['b'])), ValueError, 'no single column'),
                           (Path('a.txt'), TypeError, 'Path'), (None, TypeError, 'NoneType'), (b'a', TypeError, 'bytes'), (5, TypeError, 'int')]:
        with pytest.raises(kind, match=has): predict(learn, bad)

def test_the_column_of_a_stock_learner(short, tmp_path):
    "A table's texts stand where they stood in training, also where another column is called `text`"
    df = short[short.label.ne('')].assign(is_valid=[i % 4 == 0 for i in range((short.label != '').sum())]).rename(columns={'text': 'review'}).assign(text='T0001')
    dls = TextDataLoaders.from_df(df, text_col='review', label_col='label', valid_col='is_valid', bs=4, seq_len=8, device='cpu', num_workers=0)
    learn = strong(text_classifier_learner(dls, AWD_LSTM, config={**awd_lstm_clas_config, **small}, pretrained=False, seq_len=8))
    pd.testing.assert_frame_equal(predict(learn, df.head(5)), predict(learn, df.review.head(5)))
    again = load_classifier(save_text_model(learn, tmp_path/'c.safetensors'), device='cpu')
    pd.testing.assert_frame_equal(predict(again, df.head(5)), predict(learn, df.review.head(5)))

def test_a_class_called_label(short):
    learn = classifier(get_texts(short.assign(label=short.label.replace({'pos': 'label'})), split_col='part'))
    got = predict(learn, ['A fine film'])
    assert list(got.columns) == ['label', 'label_', 'neg'] and abs(got.label_[0] + got.neg[0] - 1) < 1e-5
    with pytest.raises(ValueError, match='bs=0'): predict(learn, ['a'], bs=0)
    both = predict(classifier(get_texts(short.assign(label=short.label.replace({'pos': 'label', 'neg': 'label_'})), split_col='part')), ['A fine film'])
    assert list(both.columns) == ['label', 'label_', 'label__'] and abs(both.label_[0] + both.label__[0] - 1) < 1e-5

def test_two_text_columns_and_several_labels(short, tmp_path):
    "The columns of training are those of prediction; fastai reads another column without a word (pains: D7)"
    raw = short[short.part.ne('unsup')].assign(title=short.text.str[:9], good=short.label.eq('pos').astype(int), long=(short.text.str.len() > 60).astype(int))
    learn = classifier(get_texts(raw, text_col=['title', 'text'], label_col=['good', 'long'], split_col='part'))
    got = predict(learn, raw.head(5))
    assert list(got.columns) == ['label', 'good', 'long'] and (got.label == [';'.join(c for c in ('good', 'long') if r[c] > .5) for _, r in got.iterrows()]).all()
    again = load_classifier(save_text_model(learn, tmp_path/'c.safetensors'), device='cpu')
    pd.testing.assert_frame_equal(got, predict(again, raw.head(5)))
    with pytest.raises(ValueError, match="'title'"): predict(again, raw[['text']])
    marked = [f'xxfld 1 {a} xxfld 2 {b}' for a, b in zip(raw.title.head(5), raw.text.head(5))]
    pd.testing.assert_frame_equal(got.reset_index(drop=True), predict(again, marked))
    with pytest.raises(ValueError, match=r"read \['title', 'text'\]"): predict(again, [*marked, 'A fine film'])

def test_backwards(df, texts, tmp_path):
    learn = classifier(df, backwards=True)
    again = load_classifier(save_text_model(learn, tmp_path/'c.safetensors'), device='cpu')
    for t in texts[:10]: assert np.abs(np.array(learn.predict(t)[2]) - predict(again, t).iloc[0, 1:].to_numpy(float)).max() < 1e-5

def test_threads(df, texts):
    learn = classifier(df)
    serial = [predict(learn, t).pos[0] for t in texts]
    with ThreadPoolExecutor(8) as ex: assert list(ex.map(lambda t: predict(learn, t).pos[0], texts*6)) == serial*6

def test_leaves_the_learner_as_it_was(df):
    learn = classifier(df)
    learn.model.train()
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    n = len(learn.dls.vocab[0])
    predict(learn, ['neverseenbefore '*5])
    assert learn.model.training and all(torch.equal(before[k], v) for k, v in learn.model.state_dict().items()) and len(learn.dls.vocab[0]) == n

def test_very_long_text(df):
    learn = classifier(df)
    got = predict(learn, ['a film', 'a film '*50_000])
    assert len(tokenize(['a film '*50_000])[0]) > 100_000 and got.pos[0] == pytest.approx(predict(learn, 'a film').pos[0], abs=1e-5) and np.isfinite(got.pos).all()

def test_command(df, texts, tmp_path):
    learn = classifier(df)
    f = save_text_model(learn, tmp_path/'c.safetensors')
    some = [t for t in texts if '\0' not in t]
    pd.DataFrame(dict(id=range(len(some)), review=some)).to_csv(tmp_path/'in.csv', index=False)
    def cmd(*a): return subprocess.run([sys.executable, '-W', 'ignore', '-c', 'from ulmfit_tut.cli import predict_main; predict_main()', *map(str, a)], capture_output=True, text=True)
    r = cmd(f, tmp_path/'in.csv', tmp_path/'out.csv')
    assert r.returncode == 1 and "its columns are ['id', 'review']" in r.stderr and not (tmp_path/'out.csv').exists() and 'Traceback' not in r.stderr
    r = cmd(f, tmp_path/'in.csv', tmp_path/'out.csv', '--text-col', 'review')
    assert r.returncode == 0, r.stderr
    assert np.abs(pd.read_csv(tmp_path/'out.csv').pos - predict(learn, some).pos).max() < 1e-5
    before = (tmp_path/'out.csv').read_bytes()
    r = cmd(f, tmp_path/'in.csv', tmp_path/'out.csv', '--text-col', 'review')
    assert r.returncode == 1 and r.stderr.strip().endswith('out.csv exists: choose another file') and (tmp_path/'out.csv').read_bytes() == before
    r = cmd(tmp_path/'no', tmp_path/'in.csv', tmp_path/'o')
    assert r.returncode == 1 and 'No such file' in r.stderr and 'Traceback' not in r.stderr
    r = cmd(f, tmp_path/'in.csv', tmp_path/'o', '--device', 'gpu')
    assert r.returncode == 1 and r.stderr.startswith('ulmfit-predict: ') and 'Traceback' not in r.stderr

# --- generation ---------------------------------------------------------------------------------------------------------------------------------

def test_probabilities_are_the_models(df):
    "Fifty words forced, the hidden state carried along: what fastai's `get_preds` says of the whole text so far, each time"
    learn = lm(df)
    ids = torch.cat([learn.dls.train_ds[i][0] for i in range(8)])[:51]
    model = learn.model.eval()
    model.reset()
    with torch.no_grad():
        for i in range(50):
            carried = next_words(model[1](model[0](ids[None, i:i+1])[:, -1:])[0][:, -1])
            hidden = [tuple(h.clone() for h in o) for o in model[0].hidden]
            stock = learn.get_preds(dl=[(ids[None, :i+1],)])[0][0, -1]
            assert (carried[0] - stock).abs().max() < 1e-5
            model.eval(); model[0].hidden, model[0].bs = hidden, 1

@pytest.mark.parametrize('stock', [True, False])
def test_losses_by_window(df, stock):
    "Stock `get_preds` of a language model fails, and would keep tokens times words of numbers (pains: D25); by windows it does neither"
    learn = lm(df)
    if stock: learn.dls = TextDataLoaders.from_df(df.assign(valid=df.index % 2), text_col='text', valid_col='valid', is_lm=True, bs=4, seq_len=16, text_vocab=learn.dls.vocab, device='cpu', num_workers=0)
    with learn.no_bar():
        with pytest.raises(IndexError): learn.get_preds()
        preds, targs, losses = learn.get_preds(reorder=False, with_preds=False, with_loss=True)
        assert preds is None and losses.numel() == 4*len(learn.dls.valid) > 4 and float(losses.mean()) == pytest.approx(learn.validate()[0], rel=1e-5)
        assert torch.equal(targs, torch.cat([y for _, y in learn.dls.valid], 1))

def test_generate(df):
    learn = lm(df)
    a = generate(learn, 'The film', 12, n=4, seed=3)
    assert len(a) == 4 and len(set(a)) > 1 and all(o.startswith('The film') for o in a) and a == generate(learn, 'The film', 12, n=4, seed=3) != generate(learn, 'The film', 12, n=4, seed=4)
    greedy = generate(learn, 'The film', 12, temperature=0)
    assert greedy == generate(learn, 'The film', 12, top_k=1) == generate(learn, 'The film', 12, min_p=1.) == generate(learn, 'The film', 12, n=3, temperature=0)[:1]
    assert generate(lm(df, backwards=True), 'the film', 5, seed=0)[0].endswith('the film')
    odd = "Zorblax didn't like <b>2000</b> soooo good films, it"
    assert generate(learn, odd, 3, seed=0)[0].startswith(f'{odd} ') and generate(lm(df, backwards=True), odd, 3, seed=0)[0].endswith(f' {odd}')
    assert generate(learn, odd, 9, seed=0)[0].removeprefix(odd) == generate(learn, f' {odd}\n', 9, seed=0)[0].removeprefix(odd)
    for kw, has in [(dict(temperature=-1), 'temperature'), (dict(temperature=float('inf')), 'finite'), (dict(top_k=0), 'top_k'), (dict(top_k=2.5), 'whole number'), (dict(top_p=2), 'top_p'), (dict(n_words='9'), 'whole number'), (dict(n_words=None), 'n_words=None'), (dict(n=None), 'n=None'), (dict(temperature=None), 'temperature=None'), (dict(min_p='a'), 'a number'), (dict(min_p=2), 'min_p'), (dict(n_words=0), 'n_words'), (dict(n=0), 'n=0')]:
        with pytest.raises(ValueError, match=has): generate(learn, 'The film', **kw)

def test_next_words_by_hand():
    logits = torch.tensor([[.5, .25, .125, .125]]).log()
    assert next_words(logits)[0].tolist() == pytest.approx([.5, .25, .125, .125])
    assert next_words(logits, top_k=2)[0].tolist() == pytest.approx([2/3, 1/3, 0, 0])
    assert next_words(logits, min_p=.5)[0].tolist() == pytest.approx([2/3, 1/3, 0, 0])
    for p, want in [(.4, [1, 0, 0, 0]), (.6, [2/3, 1/3, 0, 0]), (.8, [4/7, 2/7, 1/7, 0]), (1, [.5, .25, .125, .125])]: assert next_words(logits, top_p=p)[0].tolist() == pytest.approx(want)
    assert next_words(logits.flip(-1), top_p=.6)[0].tolist() == pytest.approx([0, 0, 1/3, 2/3])
    assert next_words(logits, temperature=.5)[0].tolist() == pytest.approx((np.array([.25, .0625, .015625, .015625])/.34375).tolist())
    for cold in (0, 1e-50): assert next_words(logits, temperature=cold)[0].tolist() == [1, 0, 0, 0]
    for kw in (dict(top_k=2), dict(top_p=.6), dict(min_p=.5)): assert torch.equal(next_words(logits[0], **kw), next_words(logits, **kw)[0])

@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(['xxmaj', 'xxup', 'xxrep', 'xxwrep', 'xxbos', '3', '2', '0', '99999999999', 'a', 'film', '!', '²']), max_size=12))
def test_decoding_anything(toks):
    "No list of tokens can break it, or blow it up"
    assert sum(map(len, decode_tokens(toks))) < 2000
    assert sum(map(len, decode_tokens(['xxrep', '100']*6 + toks))) < 4000

def test_decoding():
    "fastai's decoder keeps a mark for ever (pains: D10)"
    toks = 'xxbos xxmaj one xxrep 3 ! b xxup ok xxwrep 2 no x'.split()
    assert decode_tokens(iter(toks)) == decode_tokens(toks) == ['One', '!!!', 'b', 'OK', 'no', 'no', 'x'] != decode_spec_tokens(toks[1:])
    for text in ['The film was GOOD !!! So so so good , good .', 'aaaa b 10 10 10', 'NO NO NO , Ha Ha Ha !', 'Very very very good']:
        plain = decode_tokens(tokenize([text])[0])
        assert ' '.join(plain) == text

def test_a_tokenizer_of_fastai_with_its_rules(df, tmp_path):
    "Given to `load_classifier` as it was to `text_corpus`, it reads as it did in training, and every way of asking says the same"
    tok = Tokenizer(BaseTokenizer())
    set_seed(0)
    dls = text_dls(text_corpus(df, tok, cache=tmp_path), bs=8, seq_len=16, device='cpu')
    learn = quiet(strong(text_classifier_learner(dls, AWD_LSTM, config={**awd_lstm_clas_config, **small}, pretrained=False, seq_len=16)))
    file, texts = save_text_model(learn, tmp_path/'model.safetensors'), ['A good FILM, so so so good.', 'no']
    again, want = quiet(load_classifier(file, tok=tok, device='cpu')), predict(learn, texts)
    assert predict(again, texts).equals(want) and want.pos[0] != predict(again, 'xxfake '*8).pos[0]
    assert np.abs(again.predict(texts[0])[2].numpy() - want.iloc[0, 1:].to_numpy(float)).max() < 1e-6

def test_a_prefix_of_stock_loaders_is_refused(short):
    "`ColReader` can put words before each text; `predict` would leave them out"
    from fastai.text.all import CategoryBlock, DataBlock, TextBlock
    rows = short[short.label.ne('')].iloc[:24].assign(is_valid=[i % 4 == 0 for i in range(24)])
    def learner(**kw):
        block = DataBlock((TextBlock.from_df('text', seq_len=16), CategoryBlock), get_x=ColReader('text', **kw), get_y=ColReader('label'), splitter=ColSplitter())
        return quiet(text_classifier_learner(block.dataloaders(rows, bs=4, seq_len=16, device='cpu', num_workers=0), AWD_LSTM, seq_len=16, pretrained=False, config={**awd_lstm_clas_config, **small}))
    assert len(predict(learner(), ['a film'])) == 1
    with pytest.raises(ValueError, match='changes its texts by'): predict(learner(pref='review '), ['a film'])

def test_a_table_with_two_columns_of_one_name(df, tmp_path):
    "pandas calls the second one of a file `text.1`, and which is meant nobody knows"
    (tmp_path/'a.csv').write_text('text,text\ngood,bad\n')
    with pytest.raises(ValueError, match=r"no single column \['text'\]"): predict_csv(classifier(df), tmp_path/'a.csv', tmp_path/'b.csv')
    assert [o.name for o in tmp_path.iterdir()] == ['a.csv']

def stock(short, **changes):
    "A learner on fastai's own loaders, and its table"
    rows = short[short.label.ne('')].iloc[:24].assign(is_valid=[i % 4 == 0 for i in range(24)])
    rows = rows.assign(**{k: f(rows) for k, f in changes.items()})
    dls = TextDataLoaders.from_df(rows, text_col='text', label_col='label', valid_col='is_valid', bs=4, seq_len=16, device='cpu', num_workers=0)
    return quiet(strong(text_classifier_learner(dls, AWD_LSTM, config={**awd_lstm_clas_config, **small}, pretrained=False, seq_len=16))), rows

def test_paragraphs_are_read_as_in_training(short):
    "fastai's `test_dl` leaves out the last rule of training: the end of a paragraph with a blank behind it is `xxunk` there (pains: D6)"
    learn, rows = stock(short, text=lambda o: o.text.str.replace(r'^(\S+ \S+) ', r'\1<br /><br /> ', regex=True))
    def ask(ids): learn.model.eval(); learn.model.reset(); return torch.softmax(learn.model(ids[None])[0], -1).detach().numpy()
    held = rows.text[rows.is_valid].tolist()
    want = np.concatenate([ask(learn.dls.valid_ds[i][0]) for i in range(len(held))])
    assert np.abs(predict(learn, held).iloc[:, 1:].to_numpy() - want).max() < 1e-5
    assert np.abs(np.concatenate([ask(learn.dls.test_dl([t]).dataset[0][0]) for t in held]) - want).max() > 1e-4

def test_what_an_exported_learner_holds(df, short, tmp_path):
    "fastai's each word of its texts, of the vocabulary or not, and each that it was asked (pains: D22, D29); ours none of these"
    import zipfile
    def holds(learn):
        learn.predict('askedword'); learn.path = tmp_path; learn.export('l.pkl')
        with zipfile.ZipFile(tmp_path/'l.pkl') as z: return [b''.join(map(z.read, z.namelist())).count(o) for o in (b'rareword', b'askedword')]
    assert min(holds(stock(short, text=lambda o: o.text + [f' rareword{i}' for i in range(len(o))])[0])) > 0
    assert holds(classifier(df.assign(text=df.text + [f' rareword{i}' for i in range(len(df))]))) == [0, 0]

def lose_blank(texts): return [o.split() for o in texts if o.strip()]

def test_a_tokenizer_that_loses_texts(df, tmp_path):
    "One list a text, or the answers would stand beside the wrong texts"
    set_seed(0)
    dls = text_dls(text_corpus(df, lose_blank, cache=tmp_path), bs=8, seq_len=16, device='cpu')
    learn = quiet(text_classifier_learner(dls, AWD_LSTM, config={**awd_lstm_clas_config, **small}, pretrained=False, seq_len=16))
    with pytest.raises(ValueError, match='gave 2 lists for 3 texts'): predict(learn, ['good', ' ', 'bad'])

def test_tables_row_by_row(df, tmp_path):
    "Empty lines are rows, a comma too many moves no column, a stale file of a killed process is not added to"
    import os
    learn = classifier(df)
    (tmp_path/'a.csv').write_text('text\na film\n\nno\n'); (tmp_path/'b.csv').write_text('text,id\na film,1,\nno,2,\n')
    (tmp_path/f'.a.out.{os.getpid()}.tmp').write_text('stale\n')
    want = predict(learn, ['a film', '', 'no'])
    got = pd.read_csv(predict_csv(learn, tmp_path/'a.csv', tmp_path/'a.out'))
    assert got.label.tolist() == want.label.tolist() and np.abs(got.pos - want.pos).max() < 1e-6
    assert np.abs(pd.read_csv(predict_csv(learn, tmp_path/'b.csv', tmp_path/'b.out')).pos - want.pos[[0, 2]].to_numpy()).max() < 1e-6
    with pytest.raises(ValueError, match='no utf-99 CSV'): predict_csv(learn, tmp_path/'a.csv', tmp_path/'c.out', encoding='utf-99')

def test_only_reading_is_blamed_on_the_encoding(df, tmp_path, monkeypatch):
    "What goes wrong in the prediction itself keeps its name, and no half file stays"
    import ulmfit_tut.predict as m
    (tmp_path/'a.csv').write_text('text\na film\n')
    def broken(*a, **k): raise KeyError('elsewhere')
    monkeypatch.setattr(m, 'predict', broken)
    with pytest.raises(KeyError, match='elsewhere'): predict_csv(None, tmp_path/'a.csv', tmp_path/'a.out')
    assert [o.name for o in tmp_path.iterdir()] == ['a.csv']

def test_a_learner_that_changes_its_texts(short):
    "`predict` tokenizes and numbers; what else a learner does to a text it does not repeat, and says so"
    own, tok = short.assign(is_valid=short.part.eq('test'))[short.label.ne('')], Tokenizer(SpacyTokenizer('en'))
    def learner(*more, front=(), get=ColReader('text'), batch=()):
        tfms = [[get, *front, tok, Numericalize(min_freq=1), *more], [ColReader('label'), Categorize()]]
        dls = Datasets(own, tfms, splits=ColSplitter()(own), dl_type=SortedDL).dataloaders(bs=8, before_batch=PadChunks(seq_len=16), after_batch=list(batch), device='cpu')
        return strong(text_classifier_learner(dls, AWD_LSTM, config={**awd_lstm_clas_config, **small}, pretrained=False, seq_len=16))
    assert len(predict(learner(), own[:3])) == 3
    def shout(x): return x.upper()
    for learn in (learner(lambda x: x[:5]), learner(front=[shout]), learner(get=lambda r: r.text[:9]), learner(batch=[lambda b: b])):
        with pytest.raises(ValueError, match='changes its texts by'): predict(learn, own[:3])

def test_writing_in_the_middle_of_an_epoch(df):
    "Training goes on as if nobody had asked: with its hidden state, and with what was in training"
    class Asks(Callback):
        run_valid = False
        def before_batch(self): generate(self.learn, 'The film', 3, seed=1)
    plain, asked = lm(df), lm(df)
    for learn, cbs in ((plain, []), (asked, [Asks()])):
        set_seed(1)
        with learn.no_logging(): learn.fit(1, 1e-3, cbs=cbs)
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), asked.model.parameters()))
    asked.model.train()
    asked.model[0].rnns[0].eval()
    generate(asked, 'The film', 3)
    assert asked.model.training and not asked.model[0].rnns[0].training and asked.model[0].rnns[1].training

def test_a_head_of_another_width(df, tmp_path):
    "One output for two classes, as for a yes or no in stock fastai, is not spread over both"
    for n in (1, 3):
        learn = classifier(df, n_out=n, loss_func=BCEWithLogitsLossFlat())
        for f in (lambda: predict(learn, 'a film'), lambda: save_text_model(learn, tmp_path/'c.safetensors')):
            with pytest.raises(ValueError, match=f'head has {n} outputs, and the DataLoaders have 2 classes'): f()

def test_a_head_of_other_layers(df, tmp_path):
    learn = classifier(df, lin_ftrs=[20, 10])
    back = load_classifier(save_text_model(learn, tmp_path/'c.safetensors'), device='cpu')
    assert np.abs(predict(back, df.text).pos - predict(learn, df.text).pos).max() < 1e-6

def test_a_head_with_a_range(df, tmp_path):
    "fastai's `y_range` bends the outputs: a file that forgot it gave other probabilities"
    learn = classifier(df, y_range=(-1, 3))
    file = save_text_model(learn, tmp_path/'c.safetensors')
    pd.testing.assert_frame_equal(predict(load_classifier(file, device='cpu'), df.text), predict(learn, df.text))
    with pytest.raises(ValueError, match=r'y_range \[-1, 3\] / None'): load_text_model(classifier(df), file)
    assert load_text_model(classifier(df, y_range=(-1, 3)), file)['unchecked'] == []

@pytest.mark.parametrize('learner', ['lm', 'classifier'])
def test_no_dropout_at_all(df, learner):
    "fastai 2.8.12 fails at `drop_mult=0`; in training the encoder then says what it says at rest, to the bit"
    corpus = text_corpus(df)
    dls = text_dls(corpus, corpus.vocab(min_freq=1), is_lm=learner == 'lm', bs=4, seq_len=16, device='cpu')
    learn = quiet(lm_learner(dls, 'none', 0, config={**awd_lstm_lm_config, **small}) if learner == 'lm' else classifier_learner(dls, small, drop_mult=0))
    x, enc, said = dls.one_batch()[0], encoder_of(learn), []
    for mode in (True, False):
        enc.train(mode); enc.reset()
        said.append(enc(x[:, :16]).detach())
    assert torch.equal(*said)
    with learn.no_logging(): learn.fit(1)

def test_the_wrong_kind_of_learner(df):
    with pytest.raises(ValueError, match='no text classifier'): predict(lm(df), 'a film')
    learn = classifier(df)
    with pytest.raises(ValueError, match='no language model'): generate(learn, 'a film')
    learn.dls.vocab = learn.dls.vocab[0]                                                 # as a regression learner has it
    with pytest.raises(ValueError, match='no language model'): generate(learn, 'a film')

@pytest.mark.parametrize('col', [pd.Index(['text']), np.array(['text']), ['text'], ('text',)])
def test_columns_named_by_what_pandas_gives(df, col):
    "By an Index all rows but the first had got probabilities of 0"
    learn = classifier(df)
    pd.testing.assert_frame_equal(predict(learn, df[:9], text_col=col), predict(learn, df[:9]))

def test_another_number_of_columns_is_refused(df, short, tmp_path):
    two = get_texts(short.assign(title='A title'), ['title', 'text'], split_col='part')
    learn = load_classifier(save_text_model(classifier(two), tmp_path/'two.safetensors'), device='cpu')
    table = short.assign(title='A title', more='more')
    assert len(predict(learn, table[:3])) == len(predict(learn, table[:3], text_col=['more', 'text'])) == 3
    for bad in ('text', ['title', 'text', 'more']):
        with pytest.raises(ValueError, match=r"learner read \['title', 'text'\]: give a table of them"): predict(learn, table, text_col=bad)
    with pytest.raises(ValueError, match=r"learner read \['text'\]"): predict(classifier(df), table, text_col=['title', 'text'])

def test_a_stock_learner_of_the_first_column(df, tmp_path):
    "fastai's `from_df` takes columns by place; of a table one then reads `text`, as fastai's own tables of tokens call it"
    dls = TextDataLoaders.from_df(df[df.part.eq('train')][['text', 'label']], bs=4, device='cpu', num_workers=0)
    learn = quiet(strong(text_classifier_learner(dls, AWD_LSTM, config={**awd_lstm_clas_config, **small}, pretrained=False)))
    pd.testing.assert_frame_equal(predict(learn, df[['label', 'text']][:5]), predict(learn, df.text[:5]))
    again = load_classifier(save_text_model(learn, tmp_path/'c.safetensors'), device='cpu')
    pd.testing.assert_frame_equal(predict(again, df[:5]), predict(learn, df.text[:5]))

def test_never_writes_an_unknown_word(df):
    learn = lm(df)
    for t in ('xxunk', 'xxpad'): learn.model[1].decoder.bias.data[learn.dls.vocab.index(t)] = 1e3
    got = generate(learn, 'The film', 9, seed=0)[0]
    assert 'xxunk' not in got and len(got.split()) > 3

def test_never_writes_a_word_that_fills_up(df):
    "fastai makes its vocabulary a multiple of eight by words `xxfake`"
    dls = TextDataLoaders.from_df(df[['text']], is_lm=True, text_col='text', bs=4, seq_len=16, num_workers=0, device='cpu')
    learn = quiet(strong(language_model_learner(dls, AWD_LSTM, config={**awd_lstm_lm_config, **small}, pretrained=False)))
    fakes = [i for i, o in enumerate(dls.vocab) if o == 'xxfake']
    learn.model[1].decoder.bias.data[fakes] = 1e3
    assert fakes and 'xxfake' not in generate(learn, 'The film', 9, seed=0)[0]

def test_the_fewest_words_are_one(df):
    logits = torch.tensor([[.5, 2., 1.]])
    assert next_words(logits, top_p=0).tolist() == next_words(logits, top_p=1e-9).tolist() == [[0, 1, 0]]
    assert generate(lm(df), 'The film', 5, seed=np.int64(3)) == generate(lm(df), 'The film', 5, seed=3)

def test_blank_lines_are_rows_where_they_can_be_texts(df, tmp_path):
    "Of several columns pandas drops a blank line, so a row for it would put all that follow out of step"
    learn = classifier(df)
    (tmp_path/'two.csv').write_text('id,text\n1,good\n\n2,bad\n3,dull\n\n')
    (tmp_path/'one.csv').write_text('text\ngood\n\nbad\n')
    assert len(pd.read_csv(predict_csv(learn, tmp_path/'two.csv', tmp_path/'o2.csv'))) == len(pd.read_csv(tmp_path/'two.csv')) == 3
    assert len(pd.read_csv(predict_csv(learn, tmp_path/'one.csv', tmp_path/'o1.csv'))) == 3

def test_what_is_no_table_is_found_before_a_text_is_read(df, tmp_path, monkeypatch):
    learn, asked = classifier(df), []
    monkeypatch.setattr('ulmfit_tut.predict.predict', lambda *a: asked.append(a))
    (tmp_path/'t.csv').write_text('id,text\n' + '1,good\n'*20 + '1,good,too many\n')
    with pytest.raises(ValueError, match='Expected 2 fields in line 22, saw 3'): predict_csv(learn, tmp_path/'t.csv', tmp_path/'o.csv', rows=5)
    (tmp_path/'ok.csv').write_text('id,text\n1,good\n')
    with pytest.raises(OSError): predict_csv(learn, tmp_path/'ok.csv', tmp_path/'ok.csv'/'o.csv')
    assert not asked and not (tmp_path/'o.csv').exists()

def test_a_class_with_a_blank_comes_back_from_its_file(df, tmp_path):
    "Folders may be called so; blanks are dropped from the labels of tables alone"
    train = df[df.part.eq('train')]
    dls = TextDataLoaders.from_df(pd.DataFrame(dict(text=train.text, label=train.label + ' ')), bs=4, device='cpu', num_workers=0)
    learn = quiet(strong(text_classifier_learner(dls, AWD_LSTM, config={**awd_lstm_clas_config, **small}, pretrained=False)))
    again = load_classifier(save_text_model(learn, tmp_path/'c.safetensors'), device='cpu')
    pd.testing.assert_frame_equal(predict(again, train.text[:5]), predict(learn, train.text[:5]))
    assert list(again.dls.vocab[1]) == ['neg ', 'pos ']

def test_a_text_of_no_tokens(df):
    "With rules of one's own even `xxbos` may be missing: then it is one unknown word, alone as beside others"
    corpus = text_corpus(df, get_tokenizer(rules=[str.lower]))
    set_seed(0)
    dls = text_dls(corpus, bs=8, seq_len=16, device='cpu')
    learn = quiet(strong(text_classifier_learner(dls, AWD_LSTM, config={**awd_lstm_clas_config, **small}, pretrained=False, seq_len=16)))
    alone, *rest = (predict(learn, o).iloc[:, 1:].to_numpy() for o in ([''], ['good film '*20, ''], ['good film', '']))
    assert np.isfinite(alone).all() and all(np.abs(o[-1:] - alone).max() < 1e-5 for o in rest)
