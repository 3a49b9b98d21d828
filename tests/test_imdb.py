"""Real IMDb, where it is laid in fastai's data folder: the same road as the embedded reviews."""
import hashlib, json, unicodedata
from importlib.metadata import version
from pathlib import Path
import pytest
from fastai.text.all import fastai_cfg
from ulmfit_tut.corpus import text_corpus
from ulmfit_tut.data import get_texts

def needs(name): return pytest.mark.skipif(not (fastai_cfg().path('data')/name).exists(), reason=f'{name} is not in the data folder of fastai')

@needs('imdb_sample')
def test_imdb_sample():
    df = get_texts('imdb_sample')
    assert df.part.value_counts().to_dict() == dict(train=800, test=200) and set(df.label) == {'negative', 'positive'}
    assert df.is_valid.sum() == 80 and df[df.is_valid].part.eq('train').all()

@needs('imdb')
def test_imdb():
    df = get_texts('imdb')
    assert df.groupby(['part', 'label']).size().to_dict() == {(p, l): 12500 for p in ('train', 'test') for l in ('neg', 'pos')} | {('unsup', ''): 50000}
    assert df.is_valid.sum() == 7500 and not df[df.part.eq('test')].is_valid.any() and df.file.is_unique

@needs('imdb')
def test_tokens_of_all_reviews_are_fastais():
    "By the digest of stock's tokens that bench/text.py has written, for the versions that made them"
    want = json.loads((Path(__file__).parents[1]/'bench/results/tokens.json').read_text())
    have = dict(spacy=version('spacy'), fastai=version('fastai'), unicode=unicodedata.unidata_version)
    if any(want[k] != v for k, v in have.items()): pytest.skip(f'the digest was made with {({k: want[k] for k in have})}, here are {have}')
    corpus, h = text_corpus(get_texts('imdb', read=False)), hashlib.sha256()
    for i in range(len(corpus)): h.update(hashlib.sha256(' '.join(corpus[i]).encode()).digest())
    assert h.hexdigest() == want['sha256'] and want['differ'] == 0 and want['texts'] == len(corpus) == 100_000
