"Columns beside the text: what they become, where they join, and that neither neighbours nor strangers change an answer."
import warnings
warnings.filterwarnings('ignore')
import numpy as np, pandas as pd, pytest, torch
from fastai.text.all import Callback, PoolingLinearClassifier, TextDataLoaders, accuracy_multi, load_learner, nn, set_seed, tensor
from ulmfit_tut.batches import text_dls
from ulmfit_tut.columns import ColumnLoader, Columns, ColumnsHead, add_columns, join_columns
from ulmfit_tut.corpus import text_corpus
from ulmfit_tut.data import get_texts
from ulmfit_tut.encoder import load_encoder, load_text_model, save_encoder, save_text_model
from ulmfit_tut.predict import load_classifier, predict
from ulmfit_tut.tokens import get_tokenizer
from ulmfit_tut.ulmfit import classifier_learner
from ulmfit_tut.unfreeze import classifier_stages, fit_stages

small = dict(emb_sz=6, n_hid=5, n_layers=3)

@pytest.fixture(scope='module')
def df():
    rng, words = np.random.default_rng(0), 'a film so dull fine long short good bad odd'.split()
    t = pd.DataFrame(dict(text=[' '.join(rng.choice(words, n)) for n in rng.integers(8, 40, 80)], label=['neg', 'pos']*40, part=['train']*50 + ['valid']*10 + ['test']*20))
    shop, stars = rng.choice(['Moss', 'Tram', 'Reef'], 80).astype(object), rng.normal(5, 2, 80)
    shop[3], stars[[4, 70]] = None, np.nan
    return get_texts(t, split_col='part').assign(shop=shop, stars=stars, day=rng.integers(1, 8, 80))

@pytest.fixture(scope='module')
def corpus(df, tmp_path_factory): return text_corpus(df, get_tokenizer(), tmp_path_factory.mktemp('corpora'))

def loaders(corpus, cats=('shop', 'day'), conts=('stars',), **kw):
    dls = text_dls(corpus, bs=8, seq_len=8, device='cpu', **kw)
    return add_columns(dls, list(cats), list(conts)) if cats or conts else dls

def quiet(learn, f):
    with learn.no_bar(), learn.no_logging(): return f()

def learner(dls, seed=1, enc=None):
    set_seed(seed)
    learn = classifier_learner(dls, small, enc)
    return join_columns(learn) if isinstance(dls.train, ColumnLoader) else learn

def probs(learn, t): return quiet(learn, lambda: learn.get_preds(dl=learn.dls.test_dl(t))[0])

@pytest.fixture(scope='module')
def joined(corpus):
    learn = learner(loaders(corpus))
    quiet(learn, lambda: learn.fit_one_cycle(2, 1e-2))
    return learn

def new(df): return df[df.part.eq('test')].drop(columns=['label', 'part', 'is_valid'])

def test_columns_by_hand(df):
    "Sorted categories from 1, 0 for missing; the median for a missing number, a mark that it was, mean and spread of these rows and no others"
    five = pd.DataFrame(dict(shop=['b', 'a', None, 'b'], stars=[1., 3, None, 8]))
    cats, conts = (c := Columns(five, 'shop', 'stars'))(five)
    x = np.array([1., 3, 3, 8])
    assert cats.tolist() == [[2, 1], [1, 1], [0, 2], [2, 1]]
    np.testing.assert_allclose(conts[:, 0], (x - x.mean())/x.std(), atol=1e-5)
    assert c(pd.DataFrame(dict(shop=['c'], stars=[100.])))[1].item() == pytest.approx((100 - x.mean())/x.std(), rel=1e-5)
    back = c.decode(cats, conts)
    assert back['shop'].tolist() == ['b', 'a', '#na#', 'b'] and back.stars.tolist() == pytest.approx([1, 3, 3, 8], abs=1e-5)

def test_one_kind_alone():
    t = pd.DataFrame(dict(shop=['a', 'b', 'a'], stars=[1, 2, 3]))
    with pytest.raises(ValueError, match='none at all'): Columns(t.assign(stars=np.nan), 'shop', 'stars')
    assert Columns(t, 'shop')(t)[1].shape == (3, 0) and Columns(t, [], 'stars')(t)[0].shape == (3, 0)

def test_the_lists_of_the_caller_stay(df):
    cats, conts = ['shop'], ['stars']
    Columns(df, cats, conts)
    assert (cats, conts) == (['shop'], ['stars'])

def test_values_count_not_codes(df):
    "fastai takes the codes of a pandas category, whatever they stand for, and counts categories that other rows have"
    c = Columns(df[df['shop'].ne('Moss')], 'shop')
    assert list(c.classes['shop']) == ['#na#', 'Reef', 'Tram']
    for kind in (object, 'category', 'str'): assert c(pd.DataFrame(dict(shop=['Tram', 'Tram'])).astype(kind))[0].tolist() == [[2], [2]]

@pytest.mark.parametrize('day', [[3, 1], [3., 1.], pd.array([3, 1], 'Int64'), np.array([3, 1], 'int8'), np.array([3, 1], object)])
def test_a_number_as_category_has_any_type(df, day): assert Columns(df, 'day')(pd.DataFrame(dict(day=day)))[0].tolist() == [[3], [1]]

@pytest.mark.parametrize('change,words', [(dict(shop=['Moss', 'Loch']), r"shop is \['Loch'\] in the rows \[1\]"), (dict(shop=['Moss', None]), r'shop is \[(None|nan)\] in the rows \[1\]'),
    (dict(stars=[1., np.nan]), r'stars is \[nan\] in the rows \[1\]'), (dict(stars=[1., np.inf]), 'finite numbers'), (dict(stars=['1', 'many']), 'finite numbers')])
def test_what_training_did_not_have(df, change, words):
    c = Columns(df.dropna(), 'shop', 'stars')
    with pytest.raises(ValueError, match=words): c(pd.DataFrame({**dict(shop=['Moss', 'Moss'], stars=[1., 2.]), **change}))

def test_what_training_had_missing(df):
    cats, conts = (c := Columns(df, 'shop', 'stars'))(pd.DataFrame(dict(shop=['Loch', None], stars=[np.nan, 5])))
    assert cats.tolist() == [[0, 2], [0, 1]] and c.decode(cats, conts).stars[0] == pytest.approx(df.stars.median())

def test_a_number_that_never_varies(df):
    with pytest.raises(ValueError, match="'year'.*all the same"): Columns(df.assign(year=2023.), [], 'year')

@pytest.mark.parametrize('cats,conts,words', [(['shop', 'shop'], [], 'name a column once'), (['stars'], ['stars'], 'name a column once'), (['town'], [], 'name a column once'),
    ([], ['shop'], 'finite numbers'), (['label'], [], 'to be predicted')])
def test_columns_that_cannot_be(corpus, cats, conts, words):
    with pytest.raises(ValueError, match=words): loaders(corpus, cats, conts)

def test_categories_of_several_types(df):
    "Have no order, as fastai wants one; true, false and 1 have"
    with pytest.raises(ValueError, match=r"'shop'.*several types.*'int' and 'str'.*astype\(str\)"): Columns(df.assign(shop=[i % 2 or 'x' for i in range(len(df))]), 'shop')
    assert Columns(df.assign(shop=pd.Series([True, 2]*len(df), dtype=object)[:len(df)].tolist()), 'shop').classes['shop'] == ['#na#', True, 2]

def test_a_table_with_a_column_twice(df):
    with pytest.raises(ValueError, match='name a column once'): Columns(pd.concat([df, df[['shop']]], axis=1), 'shop')

def test_several_labels_are_refused_as_columns(tmp_path):
    t = pd.DataFrame(dict(text=['a film', 'a fine film']*10, a=[0, 1]*10, b=[1, 1, 0, 0]*5, part=['train']*12 + ['valid']*4 + ['test']*4))
    c = text_corpus(get_texts(t, label_col=['a', 'b'], split_col='part').assign(b=t.b, c=t.b), cache=tmp_path)
    dls = text_dls(c, bs=4, seq_len=8, device='cpu')
    with pytest.raises(ValueError, match='to be predicted'): add_columns(dls, 'b')
    learn = join_columns(classifier_learner(add_columns(dls, 'c'), small, metrics=accuracy_multi))
    quiet(learn, lambda: learn.fit(1, 1e-2))
    assert probs(learn, t.assign(c=t.b)).shape == (20, 2)

def test_stock_loaders_are_refused():
    t = pd.DataFrame(dict(text=['a film', 'a fine film']*6, label=['a', 'b']*6, shop='x', is_valid=[False]*8 + [True]*4))
    with pytest.raises(ValueError, match='text_dls'): add_columns(TextDataLoaders.from_df(t, valid_col='is_valid', bs=4, device='cpu', num_workers=0), 'shop')

def test_batches_hold_the_rows_of_their_texts(df, corpus):
    dls, plain = loaders(corpus), loaders(corpus, (), ())
    for a, b in zip(dls, plain):
        for (x, cats, conts, y), (x2, y2) in zip(a, b, strict=True): assert x.equal(x2) and y.equal(y2)
    for dl in dls:
        rows, seen = df.iloc[[*dl.dataset.items]].reset_index(drop=True), 0
        order = dl.get_idxs() if dl is dls.valid else None
        for i, (x, cats, conts, y) in enumerate(dl):
            back = dl.columns.decode(cats, conts)
            if order is None: continue
            own = rows.iloc[order[seen:seen + len(x)]]; seen += len(x)
            assert back['shop'].tolist() == own['shop'].fillna('#na#').tolist() and back.day.tolist() == own.day.tolist()
            np.testing.assert_allclose(back.stars, own.stars.fillna(df.stars[df.part.eq('train') & ~df.is_valid].median()), atol=1e-4)
        assert order is None or seen == len(rows)

def test_shuffled_batches_keep_rows_together(df, corpus):
    "By a column that says which text it is"
    dls = add_columns(text_dls(corpus, bs=8, seq_len=8, device='cpu'), [], 'stars')
    n = {tuple(o.tolist()): s for o, s in zip((dls.train.table[dls.train.text(i)] for i in range(len(dls.train.lens))), dls.train.cols[1][:, 0].tolist())}
    seen = {}
    for x, cats, conts, y in dls.train:
        for row, s in zip(x, conts[:, 0].tolist()): seen[tuple(row[row != 1].tolist())] = s
    assert len(seen) > 30 and all(n[k] == v for k, v in seen.items())

def test_it_begins_as_the_text_classifier(corpus):
    dls = loaders(corpus)
    text, both = learner(loaders(corpus, (), ())), learner(dls)
    x, cats, conts, y = dls.one_batch()
    for o in (text, both): o.model.eval()
    with torch.no_grad():
        assert both.model(x, cats, conts)[0].equal(text.model(x)[0])
        both.model[1].layers[0][2].weight[:, -1] = 1.
        assert not both.model(x, cats, conts)[0].equal(text.model(x)[0])

def test_it_keeps_what_a_trained_classifier_knows(df, corpus):
    text = learner(loaders(corpus, (), ()))
    quiet(text, lambda: text.fit(1, 1e-2))
    was = probs(text, new(df))
    text.dls = loaders(corpus)
    assert (probs(join_columns(text), new(df)) - was).abs().max() < 1e-6

def test_no_columns_is_the_text_classifier(corpus):
    text = learner(loaders(corpus, (), ()))
    x, head = text.dls.one_batch()[0], ColumnsHead(text.model[1], [], 0).eval()
    text.model.eval()
    with torch.no_grad(): assert head(text.model[0](x))[0].equal(text.model(x)[0])

def test_pooled_and_embedded_by_hand():
    "Two tokens of width 2, one category, one number: last, maximum, mean, row, number, one layer"
    head = PoolingLinearClassifier([6, 2], [0.], 4)
    h = ColumnsHead(head, [(3, 2)], 1).eval()
    with torch.no_grad():
        h.embeds[0].weight.copy_(tensor([[0., 0], [1, 2], [3, 4]]))
        lin = next(o for o in h.layers.modules() if isinstance(o, nn.Linear))
        lin.weight.copy_(torch.arange(18.).view(2, 9))
        bn = next(o for o in h.layers.modules() if isinstance(o, nn.BatchNorm1d))
        bn.bias.zero_(); bn.eps = 0.
        out = h((tensor([[[1., 5], [3, 2], [9, 9]]]), tensor([[False, False, True]])), tensor([[2]]), tensor([[7.]]))[0]
    row = torch.tensor([3., 2, 3, 5, 2, 3.5, 3, 4, 7])
    torch.testing.assert_close(out, torch.stack([row @ torch.arange(9.), row @ torch.arange(9., 18)])[None])

def test_alone_equals_batch(df, joined):
    t = new(df)
    all_ = probs(joined, t)
    for i in range(len(t)): assert (probs(joined, t.iloc[[i]])[0] - all_[i]).abs().max() < 1e-6
    assert (probs(joined, t.sample(frac=1, random_state=0)).flip(0) - probs(joined, t.sample(frac=1, random_state=0)[::-1])).abs().max() < 1e-6
    assert (quiet(joined, lambda: joined.predict(t.iloc[2]))[2] - all_[2]).abs().max() < 1e-6

def test_shown(joined, capsys):
    rows = joined.dls.valid.show_batch(max_n=2, show=False)[2]
    assert len(rows) == 2 and len(rows[0]) == 4 and 'shop ' in rows[0][1] and 'stars ' in rows[0][2]
    joined.dls.valid.show_batch(max_n=2); quiet(joined, lambda: joined.show_results(max_n=2))

def test_groups_and_stages(corpus, tmp_path):
    text = learner(loaders(corpus, (), ()))
    enc = save_encoder(text, tmp_path/'enc.safetensors')
    learn = learner(loaders(corpus), enc=enc)
    assert len(learn.opt.param_lists) == 5 and learn.opt.frozen_idx == 4
    assert {id(p) for p in learn.model[1].parameters()} == {id(p) for p in learn.opt.param_lists[4]}
    assert [p.requires_grad for p in learn.model[1].embeds.parameters()] == [True]*3 and not any(p.requires_grad for p in learn.model[0].module.rnns[0].module.parameters())
    hist, lrs = quiet(learn, lambda: fit_stages(learn, classifier_stages()))
    assert len(hist) == 5 and np.isfinite(hist.valid_loss).all()
    load_encoder(learn, enc)

def test_resumed_is_whole(corpus, tmp_path):
    "And a checkpoint of other columns is refused"
    stages = classifier_stages(epochs=(1, 1, 1, 1))
    class Stop(Callback):
        def before_epoch(self):
            if self.learn.opt.frozen_idx == 2: raise KeyboardInterrupt
    whole = learner(loaders(corpus)); quiet(whole, lambda: fit_stages(whole, stages))
    cut = learner(loaders(corpus)); cut.add_cb(Stop())
    with pytest.raises(KeyboardInterrupt): quiet(cut, lambda: fit_stages(cut, stages, file=tmp_path/'c.safetensors'))
    other = learner(loaders(corpus, ('day', 'shop')))
    with pytest.raises(ValueError, match='another run'): quiet(other, lambda: fit_stages(other, stages, file=tmp_path/'c.safetensors'))
    rest = learner(loaders(corpus)); quiet(rest, lambda: fit_stages(rest, stages, file=tmp_path/'c.safetensors'))
    assert all(a.equal(b) for a, b in zip(whole.model.state_dict().values(), rest.model.state_dict().values()))

def test_export(df, joined, tmp_path):
    joined.dls.path = joined.path = tmp_path
    joined.export(tmp_path/'x.pkl')
    again = load_learner(tmp_path/'x.pkl')
    assert probs(again, new(df)).equal(probs(joined, new(df)))
    assert b'Moss' in (tmp_path/'x.pkl').read_bytes() and len(again.dls.train.columns.to.items) == 0
    with pytest.raises(ValueError, match='stayed behind'): again.dls.test_dl([0, 1])

def test_weights_know_their_columns(df, corpus, joined, tmp_path):
    file = save_text_model(joined, tmp_path/'m.safetensors')
    other = learner(loaders(corpus), seed=2)
    load_text_model(other, file)
    assert probs(other, new(df)).equal(probs(joined, new(df)))
    renamed = df.assign(shop=df['shop'].replace({'Moss': 'Zoo'}))
    strange = learner(loaders(type(corpus)(corpus.path, renamed, corpus.tok)))
    with pytest.raises(ValueError, match='categories'): load_text_model(strange, file)
    with pytest.raises(ValueError, match='reads columns beside the text'): load_classifier(file)
    with pytest.raises(ValueError, match='do not fit'): load_text_model(learner(loaders(corpus, (), ())), file)

def test_the_wrong_way(df, corpus, joined):
    with pytest.raises(ValueError, match='test_dl'): predict(joined, 'a film')
    with pytest.raises(ValueError, match="'day', 'shop', 'stars'"): probs(joined, ['a film'])
    with pytest.raises(ValueError, match="'stars'"): probs(joined, new(df).drop(columns='stars'))
    for learn in (joined, learner(loaders(corpus, (), ()))):
        with pytest.raises(ValueError, match='no columns yet'): join_columns(learn)

def test_missing_values_of_any_kind(df):
    "pandas has several, and one of them cannot be compared"
    for kind in (object, 'category', 'string', 'str'): assert Columns(df.astype({'shop': kind}), 'shop')(df)[0].equal(Columns(df, 'shop')(df)[0])

def test_rows_are_named_by_their_index(df):
    c = Columns(df.dropna(), 'shop', 'stars')
    with pytest.raises(ValueError, match=r"shop is \['Loch'\] in the rows \['b'\]"): c(pd.DataFrame(dict(shop=['Moss', 'Loch'], stars=[1., 2.]), index=['a', 'b']))

def test_what_a_file_with_columns_wants(corpus, tmp_path):
    learn = join_columns(classifier_learner(loaders(corpus), small))
    with pytest.raises(ValueError, match=r"reads columns beside the text, \['day', 'shop', "): load_classifier(save_text_model(learn, tmp_path/'c.safetensors'))
    with pytest.raises(ValueError, match='average what get_preds'): save_text_model([learn, classifier_learner(text_dls(corpus, bs=8, seq_len=8, device='cpu'), small)], tmp_path/'d.safetensors')

def test_columns_are_added_once(corpus):
    "A second call would have dropped those of the first"
    with pytest.raises(ValueError, match='knows no table, or has columns: start with'): add_columns(loaders(corpus), [], 'stars')
