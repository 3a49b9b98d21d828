"A score a word is what the network itself loses without the word, for every kind of classifier, and the learner is left as it was."
import html, json, re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from fastai.text.all import AWD_LSTM, Categorize, ColReader, Datasets, Numericalize, SortedDL, TextDataLoaders, awd_lstm_clas_config, store_attr, text_classifier_learner
from hypothesis import given, strategies as st
from test_predict import classifier, lm, quiet, small, strong
from ulmfit_tut.data import get_texts
from ulmfit_tut.encoder import words_of
from ulmfit_tut.predict import _ids, predict
from ulmfit_tut.why import _words, why

@pytest.fixture(scope='module')
def df(short): return get_texts(short, split_col='part')

texts = ['What a film!!! no no no', '!'*150 + ' end', 'xxpad neverseenbefore', 'The cow is GOOD, and the end of the film is not. '*9, ' \n a']

def log_odds(learn, ids, c, several):
    "From fastai's own model, one text alone, no padding but to fill its last window"
    n = learn.model[0].bptt
    x = torch.full((1, -(-len(ids)//n)*n), 1)
    x[0, :len(ids)] = torch.tensor(ids)
    learn.model.reset(); learn.model.eval()
    with torch.no_grad(): z = learn.model(x)[0][0].double()
    return float(z[c] if several else -torch.log(sum(torch.exp(o - z[c]) for i, o in enumerate(z) if i != c)))

def check(learn, some, several=False):
    list(learn.model[1].parameters())[-1].data *= 60                                                     # a head that takes notice
    vocab, back = words_of(learn), getattr(learn.dls.train, 'backwards', False)
    got = why(learn, some, bs=7)
    assert got.score.abs().max() > .1
    for n, ids in enumerate(_ids(learn, some)):
        t, ids = got[got.text.eq(n)], ids[::-1].tolist() if back else ids.tolist()
        label, c = t.label.iloc[0], predict(learn, some).iloc[n, 1:].to_numpy(float).argmax()
        assert label == learn.dls.vocab[1][c] and len(t) == len(_words([vocab[i] for i in ids]))
        turn = -1 if back else 1
        full = log_odds(learn, ids[::turn], c, several)
        for s, at in zip(t.score, _words([vocab[i] for i in ids])):
            other = [0 if i in at else o for i, o in enumerate(ids)]
            assert s == pytest.approx(full - log_odds(learn, other[::turn], c, several), rel=1e-3, abs=1e-3)

def test_ours(df): check(classifier(df), texts)
def test_repetition_is_one_word(df):
    assert len(why(classifier(df), 'a ' + '!'*150 + ' film film film film')) == len(why(classifier(df), 'a !!!! film film film film')) == 3
def test_backwards(df):
    learn = classifier(df, backwards=True)
    check(learn, texts)
    assert why(learn, texts[0]).word.tolist()[:3] == ['What', 'a', 'film']
@pytest.mark.parametrize('max_len', [32, 28])
def test_longer_than_what_is_pooled(df, max_len): check(classifier(df, max_len=max_len), texts)             # whole windows, and not

def test_stock(short):
    d = short[short.label.ne('')].assign(is_valid=[i % 4 == 0 for i in range((short.label != '').sum())])
    dls = TextDataLoaders.from_df(d, text_col='text', label_col='label', valid_col='is_valid', bs=8, seq_len=16, device='cpu', num_workers=0)
    check(quiet(strong(text_classifier_learner(dls, AWD_LSTM, config={**awd_lstm_clas_config, **small}, pretrained=False, seq_len=16))), texts)

def test_several_labels_and_two_columns(short):
    raw = short[short.part.ne('unsup')].assign(title=short.text.str[:9], good=short.label.eq('pos').astype(int), long=(short.text.str.len() > 60).astype(int))
    learn = classifier(get_texts(raw, text_col=['title', 'text'], label_col=['good', 'long'], split_col='part'))
    check(learn, [f'xxfld 1 {t[:9]} xxfld 2 {t}' for t in texts], several=True)
    rows = raw.head(2)
    pd.testing.assert_frame_equal(why(learn, rows, 'good'), why(learn, [f'xxfld 1 {a} xxfld 2 {b}' for a, b in zip(rows.title, rows.text)], 'good'))

def test_the_marks_of_columns_are_no_reasons():
    assert _words('xxbos xxfld 1 1 xxfld 2 xxmaj film 2'.split()) == [[3], [6, 7], [8]]
    assert _words('▁xxbos ▁xxfld ▁1 ▁fi lm ▁xxfld ▁2 ▁2'.split()) == [[3, 4], [7]]

def test_leaves_the_learner_as_it_was_and_takes_turns(df):
    learn = classifier(df)
    learn.model.train()
    for p in learn.model.parameters(): p.grad = torch.ones_like(p)
    before, rng = {k: v.clone() for k, v in learn.model.state_dict().items()}, torch.get_rng_state()
    serial = [why(learn, t) for t in texts]
    with ThreadPoolExecutor(8) as ex:
        for a, b in zip(ex.map(lambda t: why(learn, t), texts*3), serial*3): pd.testing.assert_frame_equal(a, b)
    assert learn.model.training and torch.equal(rng, torch.get_rng_state()) and all((p.grad == 1).all() for p in learn.model.parameters())
    assert all(torch.equal(before[k], v) for k, v in learn.model.state_dict().items()) and all((h == 0).all() for l in learn.model[0].module.hidden for h in l)

def test_what_it_refuses(df):
    learn = classifier(df)
    for bad, kind, has in [((learn, ['a', '', ' ']), ValueError, r'Texts \[1, 2\] hold no word'), ((learn, []), ValueError, 'no word'), ((learn, 'a', 'good'), ValueError, "label='good'"), ((learn, ['a', None]), TypeError, r'\[1\]'),
                           ((lm(df), 'a'), ValueError, 'no text classifier'), (([learn, learn], 'a'), TypeError, 'one by one'), ((learn, None), TypeError, 'NoneType'), ((learn, 5), TypeError, 'int')]:
        with pytest.raises(kind, match=has): why(*bad)

def test_made_from_numbers(df):
    "No tokenizer is there to read a text with"
    rows = pd.DataFrame(dict(text=[['xxbos', 'a', 'film']]*8, label=['neg', 'pos']*4))
    ds = Datasets(rows, [[ColReader('text'), Numericalize(words_of(classifier(df)))], [ColReader('label'), Categorize()]], splits=[range(6), range(6, 8)], dl_type=SortedDL)
    learn = text_classifier_learner(ds.dataloaders(bs=2, device='cpu'), AWD_LSTM, config={**awd_lstm_clas_config, **small}, pretrained=False)
    with pytest.raises(ValueError, match='made from numbers'): why(learn, 'a')

@pytest.fixture(scope='module')
def Marked():
    "The class of the chapter's page, which is no part of the package"
    cells = json.loads((Path(__file__).resolve().parent.parent/'nbs/15_why.ipynb').read_text(encoding='utf8'))['cells']
    names = dict(pd=pd, store_attr=store_attr, escape=html.escape)
    exec(next(s for o in cells if (s := ''.join(o['source'])).startswith('class Marked')), names)
    return names['Marked']

@given(st.lists(st.tuples(st.text(min_size=1), st.floats(-5, 5)), min_size=1, max_size=8), st.text())
def test_marks_are_escaped(Marked, rows, label):
    "Without its tags, the HTML is the text; no tag but ours, and none left open"
    words, scores = zip(*rows)
    got = Marked(pd.DataFrame(dict(text=0, label=label, word=words, score=scores)))._repr_html_()
    tags = re.findall('<[^>]*>', got)
    assert {re.match(r'</?(\w+)', o)[1] for o in tags} <= {'p', 'strong', 'b', 'i'} and sum(o[1] == '/' for o in tags)*2 == len(tags)
    assert html.unescape(re.sub('<[^>]*>', '', got)) == html.unescape(html.escape(f'{label}: {" ".join(words)}'))
