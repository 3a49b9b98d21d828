"""Columns beside the text, in the network and in TF-IDF with logistic regression: what each of them is worth on the embedded reviews.

    python bench/columns.py            # every arm and seed: goes on where it stopped, and writes bench/results/columns.json after each

The network starts from `movies` as it ships, and trains as in nbs/14_text_with_columns.ipynb; nothing about it was chosen here. TF-IDF is tuned by
cross-validation on train, with the reviews of a film in one fold, because the test part has other films. Every arm is tested once a seed. A seed chooses
what the network holds back, its random numbers, the folds, and how the coins fall: `coin` is made up, and agrees with the label eight times of ten.
"""
import argparse, json, os, platform, tempfile, time, warnings
from importlib.metadata import version
from pathlib import Path
warnings.filterwarnings('ignore')
import numpy as np, torch
from fastai.text.all import set_seed
from scipy import sparse
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from ulmfit_tut.batches import text_dls
from ulmfit_tut.columns import add_columns, join_columns
from ulmfit_tut.compare import paired_difference
from ulmfit_tut.corpus import text_corpus
from ulmfit_tut.data import get_texts, mini_reviews_df
from ulmfit_tut.encoder import save_encoder
from ulmfit_tut.files import replacing
from ulmfit_tut.lm import lm_learner, pretrained_lm
from ulmfit_tut.ulmfit import classifier_learner
from ulmfit_tut.unfreeze import classifier_stages, fit_stages

file, seeds = Path(__file__).parent/'results'/'columns.json', range(5)
arms   = dict(text={}, film=dict(cat_names=['film']), words=dict(cont_names=['words']), coin=dict(cat_names=['coin']))
stages = classifier_stages(lrs=(2e-2,)*4, epochs=(1, 1, 1, 3))

def table(seed):
    "The reviews with their columns; of the films those that three training rows have, the others are empty"
    t = mini_reviews_df()
    df = get_texts(t, split_col='split', seed=seed)
    train = df.part.eq('train') & ~df.is_valid
    df['group'], df['words'] = t.film, t.text.str.split().str.len()
    df['film'] = t.film.where(t.film.map(t.film[train].value_counts()) >= 3)
    df['coin'] = np.where((np.random.default_rng(seed).random(len(df)) < .8) == df.label.eq('pos'), 'heads', 'tails')
    return df

def network(seed, arm):
    "Probability of `pos` of each test review, and seconds of the process"
    df, t0 = table(seed), time.process_time()
    corpus, (_, words, sizes), tmp = text_corpus(df), pretrained_lm('movies'), tempfile.TemporaryDirectory()
    vocab = corpus.vocab(words)
    enc = save_encoder(lm_learner(text_dls(corpus, vocab, is_lm=True, device='cpu'), 'movies'), Path(tmp.name)/'enc.safetensors')
    dls = text_dls(corpus, vocab, bs=16, seed=seed, device='cpu')
    if arms[arm]: dls = add_columns(dls, **arms[arm])
    set_seed(seed)
    learn = classifier_learner(dls, sizes, enc)
    if arms[arm]: join_columns(learn)
    with learn.no_bar(), learn.no_logging():
        fit_stages(learn, stages, seed)
        test = df[df.part.eq('test')]
        return learn.get_preds(dl=learn.dls.test_dl(test))[0][:, 1].numpy(), time.process_time() - t0

def tfidf(seed, arm):
    "The same for TF-IDF, and beside it one-hot categories and scaled numbers, in one logistic regression"
    df, t0 = table(seed), time.process_time()
    train, test = (df[df.part.eq(o)].fillna({'film': ''}) for o in ('train', 'test'))
    cats, conts = (arms[arm].get(k, []) for k in ('cat_names', 'cont_names'))
    folds = list(StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(train, train.label, train.group))
    def features(a, b, ngrams):
        "Words and columns of both tables, fitted on the first"
        words, more = TfidfVectorizer(sublinear_tf=True, ngram_range=ngrams), ColumnTransformer([('cat', OneHotEncoder(handle_unknown='ignore'), cats), ('num', StandardScaler(), conts)], sparse_threshold=1)
        return [(words.fit_transform(a.text), more.fit_transform(a)), (words.transform(b.text), more.transform(b))]
    def fit(x, label, weight, C): return LogisticRegression(C=C, max_iter=1000).fit(beside(x, weight), label)
    def beside(x, weight): return sparse.hstack([x[0], weight*sparse.csr_matrix(x[1])]).tocsr()
    grid = {}
    for ngrams in ((1, 1), (1, 2)):
        for i, j in folds:
            a, b = train.iloc[i], train.iloc[j]
            xa, xb = features(a, b, ngrams)
            for weight in (.1, .3, 1) if arms[arm] else (0,):                    # how loudly the columns speak beside the words
                for C in (.3, 1, 3, 10, 30, 100): grid.setdefault((ngrams, weight, C), []).append(fit(xa, a.label, weight, C).score(beside(xb, weight), b.label))
    ngrams, weight, C = max(grid, key=lambda k: np.mean(grid[k]))
    xa, xb = features(train, test, ngrams)
    return fit(xa, train.label, weight, C).predict_proba(beside(xb, weight))[:, 1], time.process_time() - t0

def summary(rows):
    "Accuracy of each arm over the seeds that all have, and how far it is from the same method on the text alone"
    methods = list(dict.fromkeys(o['method'] for o in rows))
    both = [s for s in seeds if len([o for o in rows if o['seed'] == s]) == 2*len(arms)]
    if not both: return {}
    label = mini_reviews_df().query("split == 'test'").label.eq('pos').to_numpy()
    ok = {(m, a): np.array([(np.array(next(o['pos'] for o in rows if (o['method'], o['arm'], o['seed']) == (m, a, s))) > .5) == label for s in both]) for m in methods for a in arms}
    def three(a, b): return dict(zip(('mean', 'low', 'high'), map(float, paired_difference(a, b))))
    return dict(done=both, summary=[dict(method=m, arm=a, accuracy=three(o, np.zeros_like(o)), gain=three(o, ok[m, 'text'])) for (m, a), o in ok.items()])

def main():
    rows = json.loads(file.read_text())['rows'] if file.exists() else []
    for seed in seeds:
        for f in (network, tfidf):
            for arm in arms:
                if any((o['method'], o['arm'], o['seed']) == (f.__name__, arm, seed) for o in rows): continue
                pos, seconds = f(seed, arm)
                rows.append(dict(method=f.__name__, arm=arm, seed=seed, seconds=round(seconds, 1), pos=[round(float(o), 4) for o in pos]))
                mach = dict(cores=os.cpu_count(), threads=torch.get_num_threads(), python=platform.python_version(), processor=platform.machine(),
                            **{o: version(o) for o in ('torch', 'fastai', 'scikit-learn')})
                with replacing(file) as tmp:
                    tmp.write_text(json.dumps(dict(command='python bench/columns.py', machine=mach, stages=[list(map(str, o)) for o in stages], **summary(rows), rows=rows)) + '\n')
                print(f.__name__, arm, seed, rows[-1]['seconds'], flush=True)

if __name__ == '__main__':
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    main()
