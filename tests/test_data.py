"""What makes a bad source: each a clear error before any work, with nothing written."""
import time, warnings
from concurrent.futures import ThreadPoolExecutor
import numpy as np, pandas as pd, pytest
from fastai.text.all import URLs
from ulmfit_tut import data
from ulmfit_tut.batches import CorpusText, text_dls
from ulmfit_tut.corpus import text_corpus
from ulmfit_tut.data import get_texts, mini_reviews, mini_reviews_df, read_text, text_vocab, texts_from_df, texts_from_folder
from ulmfit_tut.tokens import tokenize

@pytest.fixture
def folder(tmp_path):
    "A folder in IMDb's layout with two texts in each class and part"
    for part in ('train', 'test'):
        for c in ('bad', 'good'):
            (tmp_path/part/c).mkdir(parents=True)
            for i in range(2): (tmp_path/part/c/f'{i}.txt').write_text(f'a {c} film', encoding='utf8')
    return tmp_path

def fails(f, *has, kind=ValueError):
    with pytest.raises(kind) as e: f()
    for h in has: assert str(h) in str(e.value), f'{h!r} is not in: {e.value}'

def test_folder(folder):
    df = get_texts(folder)
    assert df.part.value_counts().to_dict() == dict(train=4, test=4) and df[df.is_valid].part.eq('train').all() and df.is_valid.sum() == 2

def test_no_such_source(tmp_path):
    fails(lambda: get_texts(tmp_path/'nowhere'), tmp_path/'nowhere', kind=FileNotFoundError)
    fails(lambda: get_texts(tmp_path/'nowhere.csv'), tmp_path/'nowhere.csv', kind=FileNotFoundError)
    fails(lambda: get_texts('mimi'), 'mimi', 'mini, imdb')

def test_folder_with_one_class(folder):
    for p in ('train', 'test'): [f.unlink() for f in (folder/p/'bad').iterdir()]; (folder/p/'bad').rmdir()
    fails(lambda: get_texts(folder), 'one class', 'good')

def test_folder_with_empty_class(folder):
    for f in (folder/'train/bad').iterdir(): f.unlink()
    fails(lambda: get_texts(folder), folder/'train'/'bad', 'no .txt')

def test_folder_without_test(folder):
    (folder/'test').rename(folder/'other')
    fails(lambda: get_texts(folder), 'has no texts of classes in a "test" or "valid" part')

def test_valid_serves_as_test(folder):
    (folder/'test').rename(folder/'valid')
    assert get_texts(folder).part.eq('test').sum() == 4

def test_valid_beside_test_is_validation(folder):
    (folder/'valid').mkdir()
    for c in ('bad', 'good'): (folder/'train'/c).rename(folder/'valid'/c); (folder/'train'/c).mkdir(); [(folder/'train'/c/f'{i}.txt').write_text('x y z') for i in (8, 9)]
    df = get_texts(folder)
    assert df[df.is_valid].text.str.startswith('a ').all() and df.is_valid.sum() == 4

def test_named_classes_and_unlabelled(folder):
    (folder/'train/ugly').mkdir(); (folder/'train/ugly/0.txt').write_text('an ugly film')
    (folder/'more').mkdir(); (folder/'more/0.txt').write_text('no label')
    df = get_texts(folder, labels=['bad', 'good'], unlabelled=['more', 'ugly'])
    assert set(df[df.part.eq('train')].label) == {'bad', 'good'} and df.part.eq('unsup').sum() == 2

def test_a_class_named_twice(folder):
    assert len(get_texts(folder, labels=['bad', 'good', 'bad'])) == len(get_texts(folder, labels=['bad', 'good']))

def test_unreadable_bytes(folder):
    f = folder/'train/bad/0.txt'; f.write_bytes('caf\xe9'.encode('latin-1'))
    fails(lambda: get_texts(folder), f, 'encoding="cp1252"')
    assert 'café' in set(get_texts(folder, encoding='latin-1').text)

def test_capital_endings_and_another_folder_to_work_in(folder, monkeypatch):
    (folder/'train/bad/9.TXT').write_text('one bad film')
    monkeypatch.chdir(folder.parent)
    df = get_texts(folder.name, read=False)
    assert 'train/bad/9.TXT' in set(df.file)
    corpus = text_corpus(df, cache='corpora')
    monkeypatch.chdir('/')
    assert len(text_corpus(df, cache=folder.parent/'corpora')) == len(df) and corpus.vocab()

def test_what_a_class_folder_holds_beside_texts_is_told(folder):
    "Folders one deeper, and texts of another ending, were left out without a word; what is hidden is no text"
    (folder/'train/bad/.trash.txt').write_text('gone')
    with warnings.catch_warnings(record=True) as said: n = len(get_texts(folder))
    assert not any('left out' in str(o.message) for o in said)
    (folder/'train/bad/2019').mkdir()
    (folder/'train/bad/2019/a.txt').write_text('a bad film')
    (folder/'train/bad/b.md').write_text('a bad film')
    with pytest.warns(UserWarning, match=r"train/bad: 2 entries that are no .txt files are left out, \['2019', 'b.md'\]"): assert len(get_texts(folder)) == n

def test_semicolons(tmp_path):
    "A table whose columns are kept apart by something else is refused with the way out, whether its texts hold commas or not"
    f = tmp_path/'s.csv'
    f.write_text('text;label\n' + 'fine, really, I say;a\ndull;b\n'*9)
    fails(lambda: get_texts(f), f, 'pd.read_csv(f, sep=";")')
    assert get_texts(pd.read_csv(f, sep=';')).label.nunique() == 2
    f.write_text('text;label\n' + 'fine;a\ndull;b\n'*9)
    fails(lambda: get_texts(f), f, "'text;label'", 'pd.read_csv(f, sep=";")')

def test_one_class_of_any_kind():
    for label in (['pos']*20, pd.Categorical(['pos']*20)): fails(lambda: get_texts(pd.DataFrame(dict(text='fine', label=label))), 'one class')

def test_one_table_is_read_at_a_time(tmp_path, monkeypatch):
    "`catch_warnings` is not made for threads"
    inside, most = [], []
    class Slow:
        n = 1
        def __next__(self):
            if not self.n: raise StopIteration
            self.n -= 1
            inside.append(1); most.append(len(inside)); time.sleep(.05); inside.pop()
            return pd.DataFrame(dict(text=['a']))
    monkeypatch.setattr(data.pd, 'read_csv', lambda *a, **k: Slow())
    (f := tmp_path/'x.csv').write_text('text\na\n')
    with ThreadPoolExecutor(6) as ex: assert [len(o[0]) for o in ex.map(lambda _: list(data._csv(f, 'utf8')), range(6))] == [1]*6
    assert max(most) == 1 and len(most) == 6

def test_a_mark_of_windows_is_no_text(folder):
    (folder/'train/bad/0.txt').write_text('one bad film', encoding='utf-8-sig')
    df = get_texts(folder, read=False)
    assert get_texts(folder).text[0] == read_text(folder/df.file[0]) == 'one bad film' and tokenize(folder/df.file[0])[0][1] == 'one'

def test_columns():
    df = pd.DataFrame(dict(text=['a', 'b', 'c', 'd', 'e', 'f'], label=['x', 'y']*3, part=['train']*4 + ['test']*2))
    assert len(texts_from_df(df, split_col='part')) == 6
    fails(lambda: texts_from_df(df, 'review'), "'review'", "'text'")
    fails(lambda: texts_from_df(df, label_col='stars'), "'stars'")
    fails(lambda: texts_from_df(df.rename(columns={'part': 'text'})), "2 columns named 'text'")
    for bad, word in [(None, 'text'), (float('nan'), 'text'), ('  ', 'text')]: fails(lambda: texts_from_df(df.assign(text=['a', bad, *'cdef'])), 'rows [1]', word)
    fails(lambda: texts_from_df(df.assign(label=['x', None, *'xyxy'])), 'rows [1]', 'label')
    fails(lambda: texts_from_df(df.assign(label='x')), 'one class')
    fails(lambda: texts_from_df(df.assign(part=['train', 'held'] + ['test']*4), split_col='part'), 'rows [1]', 'train, valid', "but ['held']")
    fails(lambda: texts_from_df(df.assign(label=list('xyxyxz')), split_col='part'), "['z']")
    fails(lambda: texts_from_df(df.assign(label=list('xyyyxy')), split_col='part'), "one text of class 'x'")

def test_several_labels_are_0_or_1():
    df = pd.DataFrame(dict(text=[f'text {i}' for i in range(8)], a=[1, 0, '1', 'True', 1., True, 0., '0.0'], b=[0, 1]*4, part=['train']*6 + ['test', 'unsup']))
    assert texts_from_df(df, label_col=['a', 'b'], split_col='part').label.tolist() == [('a',), ('b',), ('a',), ('a', 'b'), ('a',), ('a', 'b'), (), '']
    for bad in (2, .5, None, float('nan'), 'yes', ''):
        with pytest.raises(ValueError, match=r"'a' is neither 0 nor 1 in rows \[2\]"): texts_from_df(df.assign(a=[*df.a[:2], bad, *df.a[3:]]), label_col=['a', 'b'], split_col='part')
        texts_from_df(df.assign(a=[*df.a[:7], bad]), label_col=['a', 'b'], split_col='part')

def test_the_same_text_on_both_sides_is_told():
    df = pd.DataFrame(dict(text=['good', 'bad', 'good film', 'bad film', 'good', 'worse'], label=['a', 'b']*3, part=['train']*4 + ['test']*2))
    with pytest.warns(UserWarning, match='of the test texts 1 stand in another part'): texts_from_df(df, split_col='part')
    with warnings.catch_warnings(action='error'): texts_from_df(df.assign(text=[*df.text[:4], 'fine', 'worse']), split_col='part')

def test_labels_of_every_kind():
    "Numbers with gaps, booleans, the words None and N/A: what is meant, not what a parser makes of it"
    df = pd.DataFrame(dict(text=['None', 'N/A', *'cdefgh'], label=[0, 1]*4, part=['train']*4 + ['test']*2 + ['unsup']*2))
    df.loc[6:, 'label'] = None
    assert sorted(set(texts_from_df(df, split_col='part').label)) == ['', '0', '1']
    assert sorted(set(texts_from_df(df.iloc[:6].assign(label=[True, False]*3), split_col='part').label)) == ['False', 'True']
    assert set(texts_from_df(df.assign(label=['x', 'y']*4), split_col='part').query('part=="unsup"').label) == {''}

def test_split_words(tmp_path):
    df = pd.DataFrame(dict(text=list('abcdef'), label=['x', 'y']*3, is_valid=[False]*4 + [True]*2))
    df.to_csv(tmp_path/'r.csv', index=False)
    for d in (df, df.assign(is_valid=df.is_valid.astype(int)), df.assign(is_valid=df.is_valid.map({False: 'TRAIN', True: 'Test'}))):
        assert texts_from_df(d, split_col='is_valid').part.tolist() == ['train']*4 + ['test']*2
    assert get_texts(tmp_path/'r.csv', split_col='is_valid', valid_pct=.5).part.eq('test').sum() == 2

def test_rows_with_more_fields_than_the_header(tmp_path):
    "pandas takes the first field for the name of the row, and the text is gone without a word"
    f = tmp_path/'c.csv'
    for rows in ('good film, really,a\nbad, no,b\n', '1,good,a\n2,bad,b\n'):
        f.write_text('text,label\n' + rows*6)
        fails(lambda: get_texts(f), f, 'loss of data', 'quotes')
        fails(lambda: list(data._csv(f, 'utf8', chunksize=2, skip_blank_lines=False)), f, 'loss of data')
    f.write_text('text,label\n' + '"good film, really",a\nbad,b\n'*6)
    assert get_texts(f).text.str.startswith('good film, really').sum() == 6

def test_two_tables_read_by_turns(tmp_path):
    "What is an error for one reader is none for the rest of the process"
    (f := tmp_path/'c.csv').write_text('text\n' + 'good\n'*4)
    a, b = (data._csv(f, 'utf8', chunksize=2) for _ in 'ab')
    before = warnings.filters[:]
    next(a), next(b), list(a), list(b)
    assert warnings.filters == before

def test_share_of_test():
    for bad in (0, 1, 5): fails(lambda: texts_from_df(mini_reviews_df(), test_pct=bad), f'test_pct={bad}')

def test_columns_that_are_numbers():
    "A table without a header has a column 0, which is not the same as none"
    df = pd.DataFrame({0: ['train']*6 + ['test']*2, 1: list('abcdefgh'), 2: ['x', 'y']*4})
    assert get_texts(df, 1, 2, split_col=0).part.tolist() == df[0].tolist()

def test_a_field_that_is_missing():
    df = pd.DataFrame(dict(a=['x', None, 'z'], b=['p', 'q', 'r'])).astype({'b': 'category'})
    with pytest.raises(TypeError, match="'a'"): CorpusText(None, ['a', 'b']).texts(df)
    assert CorpusText(None, ['b', 'a']).texts(df[:1]) == ['xxfld 1 p xxfld 2 x']
    fails(lambda: texts_from_df(df.assign(b=pd.Categorical(['p', '  ', 'p']), label='l'), 'b'), 'rows [1]')

def test_several_labels_and_none_are_cut_apart():
    df = pd.DataFrame(dict(text=[f'text {i}' for i in range(100)], a=[0, 1]*50, b=1, part=['train']*10 + ['test']*5 + ['unsup']*85))
    for seed in range(20): assert get_texts(df, label_col=['a', 'b'], split_col='part', seed=seed).query('part=="train"').is_valid.sum() == 1

def test_rows_without_a_label():
    "Labelled and unlabelled rows in one table: the test is cut from the labelled, as it is when they stand alone"
    df = pd.DataFrame(dict(text=[f'text {i}' for i in range(60)], label=(['a', 'b']*15 + [None]*30), part=['train']*30 + ['unsup']*30)).sample(frac=1, random_state=0)
    fails(lambda: get_texts(df), "'label' is empty", 'unsup')
    whole, alone = get_texts(df, split_col='part', seed=3), get_texts(df[df.label.notna()], seed=3)
    assert whole.part.value_counts().to_dict() == dict(unsup=30, train=24, test=6)
    assert whole.text[whole.part.eq('test')].tolist() == alone.text[alone.part.eq('test')].tolist()
    fails(lambda: get_texts(df[df.label.ne('a') | (df.index < 4)], split_col='part'), "2 texts of class 'a'")
    fails(lambda: get_texts(df.assign(part='unsup'), split_col='part'), 'has no texts of classes in a "test" or "valid" part')

def test_what_macos_leaves_beside_a_text(folder):
    n = len(get_texts(folder))
    (folder/'train/bad/._0.txt').write_bytes(b'\0\5\x16\7')
    assert len(get_texts(folder)) == n

def test_class_without_training_text():
    df = pd.DataFrame(dict(text=list('abcdef'), label=list('xxyyxy'), part=['train', 'train', 'valid', 'valid', 'test', 'test']))
    fails(lambda: get_texts(df, split_col='part'), "['y']", 'valid_pct')

def test_folders_that_do_not_agree(folder):
    fails(lambda: get_texts(folder, unlabelled='more'), "['more']")
    fails(lambda: get_texts(folder, labels=['bad', 'good'], unlabelled=['good']), "['good']", 'labels=')
    (folder/'test/meh').mkdir(); (folder/'test/meh/0.txt').write_text('meh')
    fails(lambda: get_texts(folder), "class 'meh'", 'labels=')
    assert get_texts(folder, labels=['bad', 'good']).part.eq('test').sum() == 4

def test_labels_in_lists():
    for kind in (list, tuple, np.array):
        df = pd.DataFrame(dict(text=[f'text {i}' for i in range(20)], label=[kind(['a']), kind(['a', 'b'])]*10))
        fails(lambda: get_texts(df), "'label' holds lists", 'label_col=[...]')

def test_hidden_folders_are_no_classes(folder):
    (folder/'train/.ipynb_checkpoints').mkdir()
    assert set(get_texts(folder).label) == {'bad', 'good'}

def test_line_ends_of_a_field(tmp_path):
    "A text is the same from a file and from a field of a table"
    (tmp_path/'t.txt').write_bytes(b'one\r\n\r\ntwo\rthree')
    (tmp_path/'t.csv').write_bytes(b'text,label\r\n' + b'"one\r\n\r\ntwo\rthree",a\r\n"x",b\r\n'*6)
    assert get_texts(tmp_path/'t.csv').text[0] == read_text(tmp_path/'t.txt') == 'one\n\ntwo\nthree'
    df = pd.DataFrame(dict(text=['one\r\n\r\ntwo\rthree', 'x']*6, title=['a\r\nb', 'c']*6, label=['a', 'b']*6))
    assert get_texts(df).text[0] == get_texts(df.text.tolist()).text[0] == get_texts(df.astype(dict(text='category'))).text[0] == 'one\n\ntwo\nthree'
    assert get_texts(df, ['title', 'text']).text[0] == 'xxfld 1 a\nb xxfld 2 one\n\ntwo\nthree'

def test_a_split_that_nobody_asked_for_is_told():
    df = pd.DataFrame(dict(text=['good', 'bad']*6, label=['a', 'b']*6, is_valid=[False]*8 + [True]*4))
    with pytest.warns(UserWarning, match="split_col='is_valid' says so"): get_texts(df)
    with warnings.catch_warnings(action='ignore', category=UserWarning): assert get_texts(df, split_col='is_valid').part.eq('test').sum() == 4

def test_csv(tmp_path):
    f = tmp_path/'r.csv'
    pd.DataFrame(dict(review=['a b', 'c d']*10, stars=[1, 5]*10)).to_csv(f, index=False)
    df = get_texts(f, text_col='review', label_col='stars')
    assert set(df.label) == {'1', '5'} and df.part.eq('test').sum() == 4
    fails(lambda: get_texts(f), "columns named 'text'", "'review'")
    f.write_bytes('text,label\ncaf\xe9,a\n'.encode('latin-1'))
    fails(lambda: get_texts(f), f, 'encoding')
    f.write_text('')
    fails(lambda: get_texts(f), f)

def test_the_order_of_files_does_not_matter(folder, monkeypatch):
    want, listdir = get_texts(folder), data.os.listdir
    monkeypatch.setattr(data.os, 'listdir', lambda p: sorted(listdir(p), reverse=True))
    pd.testing.assert_frame_equal(get_texts(folder), want)

def test_fetch_failure_names_the_remedy(monkeypatch):
    def no_network(*a, **k): raise OSError('no network')
    monkeypatch.setattr(data, 'untar_data', no_network)
    fails(lambda: get_texts('imdb'), URLs.IMDB, 'mini', kind=FileNotFoundError)

def test_corpus_smaller_than_a_batch(tmp_path):
    df = pd.DataFrame(dict(text=['a fine film', 'a dull film']*8, label=['x', 'y']*8, part='train', is_valid=[False]*8+[True]*8))
    corpus = text_corpus(df, cache=tmp_path/'cache')
    vocab = corpus.vocab(min_freq=1)
    fails(lambda: text_dls(corpus, vocab, bs=9), 'bs=8')
    assert len(text_dls(corpus, vocab, bs=8, device='cpu').train) == 1
    fails(lambda: text_dls(corpus, vocab, is_lm=True, bs=32), 'bs=31')
    assert text_dls(corpus, vocab, is_lm=True, bs=31, device='cpu').one_batch()[0].shape == (31, 1)

def test_vocabulary_does_not_depend_on_order():
    toks = [['b', 'a', 'a', 'b', 'c', 'c', 'd']]
    assert text_vocab(toks, min_freq=2) == text_vocab([toks[0][::-1]], min_freq=2)
    assert 'd' not in text_vocab(toks, min_freq=2)

def test_embedded_folder_is_whole(tmp_path, monkeypatch):
    p = mini_reviews(tmp_path/'m')
    assert sorted(f.read_text(encoding='utf8') for f in p.rglob('*.txt')) == sorted(mini_reviews_df().text)
    assert [o.name for o in tmp_path.iterdir()] == ['m']
    from pathlib import Path
    monkeypatch.setattr(Path, 'write_text', lambda *a, **k: (_ for _ in ()).throw(OSError('No space left on device')))
    with pytest.raises(OSError, match='No space'): mini_reviews(tmp_path/'n')
    assert [o.name for o in tmp_path.iterdir()] == ['m']

@pytest.mark.parametrize('change', [lambda t: t.replace(b' ', b'\r\n', 1), lambda t: t + b'\xff', lambda t: t + b'\n'])
def test_embedded_folder_that_was_changed(tmp_path, change):
    f = next((mini_reviews(tmp_path/'m')/'unsup').iterdir())
    f.write_bytes(change(f.read_bytes()))
    fails(lambda: mini_reviews(tmp_path/'m'), 'differs', 'delete the folder')

def test_padding_does_not_change_a_prediction():
    "A text alone, and beside a longer one whose length is no multiple of `seq_len` (fastai issue 3379)"
    import torch
    from fastai.text.all import AWD_LSTM, TensorText, get_text_classifier, pad_input_chunk, set_seed
    from ulmfit_tut.data import PadChunks
    set_seed(0)
    cfg = dict(emb_sz=8, n_hid=8, n_layers=3)
    model = get_text_classifier(AWD_LSTM, 30, 2, seq_len=10, config=cfg).eval()
    a, b = TensorText(torch.arange(2, 9)), TensorText(torch.arange(2, 29))
    def pred(*texts):
        with torch.no_grad(): return model(torch.stack([o[0] for o in PadChunks(seq_len=10)([(t,) for t in texts])]))[0]
    assert torch.allclose(pred(b, a)[1], pred(a)[0], atol=1e-6)
    with torch.no_grad(): stock = model(torch.stack([o[0] for o in pad_input_chunk([(b,), (a,)], seq_len=10)]))[0][1]
    assert not torch.allclose(stock, pred(a)[0], atol=1e-4)                     # stock fails here: if it does not, the guard can go

def test_a_class_of_few_texts():
    df = pd.DataFrame(dict(text=[f'Text {i}.' for i in range(9)], label=['a']*4 + ['b']*4 + ['c']))
    with pytest.raises(ValueError, match="1 texts of class 'c': three are the least"): get_texts(df)

def test_options_of_another_kind_of_source(folder, tmp_path):
    "`ulmfit --text-col review my.csv` reads my.csv as a second column, and would train on the embedded reviews"
    fails(lambda: get_texts('mini', text_col=['review', 'my.csv']), 'mini', 'text_col=')
    for kw in (dict(label_col='stars'), dict(split_col='part')): fails(lambda: get_texts(folder, **kw), folder, 'are for tables')
    df = pd.DataFrame(dict(text=[f'film {i}' for i in range(40)], label=['a', 'b']*20))
    for kw in (dict(labels=['a']), dict(unlabelled=['b']), dict(unlabelled=None)): fails(lambda: get_texts(df, **kw), 'The table: text_col=', 'labels=, unlabelled= for folders')
    assert get_texts(df, unlabelled='unsup').equals(get_texts(df))                                             # the default, as folders take it

def test_a_column_twice_in_a_file(tmp_path):
    (tmp_path/'t.csv').write_text('text,label,text\n' + 'good,a,other\nbad,b,other\n'*9)
    fails(lambda: get_texts(tmp_path/'t.csv'), "2 columns named 'text'", 'text.1')
    twice = pd.DataFrame(dict(text=['a', 'b']*10, label=['x', 'y']*10))
    for cols in (['text', 'label'], ['text', 'text']): fails(lambda: get_texts(twice, text_col=cols), 'one each for text_col=, label_col=, split_col=')

def test_blanks_around_labels_and_parts():
    df = pd.DataFrame(dict(text=[f'film {i}' for i in range(12)], label=['a', 'a ', ' b']*4, part=['train']*6 + ['Test ']*2 + [' valid', 'val', 'unsup', 'TRAIN']))
    got = texts_from_df(df, split_col='part')
    assert set(got.label) == {'a', 'b', ''} and got.part.tolist() == ['train']*6 + ['test']*2 + ['train']*2 + ['unsup', 'train'] and got.is_valid.tolist() == [False]*8 + [True]*2 + [False]*2
    assert texts_from_df(df.assign(part=[0., 1.]*6), split_col='part').part.tolist() == ['train', 'test']*6

@pytest.mark.parametrize('name', ['valid', 'val', 'validation', 'dev'])
def test_the_folder_to_validate_on(folder, name):
    for o in ('good', 'bad'): (folder/name/o).mkdir(parents=True); (folder/name/o/'1.txt').write_text(f'a {o} one')
    df = get_texts(folder)
    assert df[df.is_valid].text.tolist() == ['a bad one', 'a good one'] and df[df.is_valid].part.eq('train').all()

def test_seed_chooses_what_is_held_back(short):
    df = short[short.part.ne('unsup')].drop(columns='part')
    a, b, c = (get_texts(df, seed=o) for o in (1, 1, 2))
    assert a.equals(b) and not a.part.equals(c.part)
    a, c = (get_texts(short, split_col='part', seed=o) for o in (1, 2))
    assert a.part.equals(c.part) and not a.is_valid.equals(c.is_valid) and a.is_valid.sum() == c.is_valid.sum()

def test_columns_by_index():
    df = pd.DataFrame(dict(text=[f'film {i}' for i in range(12)], a=[0, 1]*6, b=[1, 0, 0]*4, part=['train']*8 + ['test']*4))
    same = [texts_from_df(df, t, l, 'part') for t, l in [('text', ['a', 'b']), (df.columns[:1], df.columns[1:3]), (np.array(['text']), np.array(['a', 'b']))]]
    for o in same[1:]: pd.testing.assert_frame_equal(same[0], o); assert o.attrs == same[0].attrs
