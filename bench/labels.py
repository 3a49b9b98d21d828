"""Accuracy against the number of labels, with and without language model fine-tuning, TF-IDF beside them (Howard & Ruder 2018, figure 3).

    python bench/labels.py choose mini     # how many epochs few labels want, on training texts alone, with a seed that `run` does not use
    python bench/labels.py run SOURCE      # every arm, size and seed: goes on where it stopped, and writes the results file after each

SOURCE is `mini` (bench/results/labels.json) or `imdb` (bench/results/labels-imdb.json). Labels are drawn by seed, half of each class, the small draws
within the large ones. All arms of a source learn from the same labels, TF-IDF too, and are tested once; nothing is chosen by what the test says.

mini  `direct` takes the encoder of `wiki` as it is. `wiki` fine-tunes it first on all of train and unsup without labels: once a seed, for all sizes.
imdb  `wiki` takes the embedded model of that name as it is. `movies` is the same network after it was fine-tuned on IMDb's train and unsup without
      labels, as it ships. The words are each model's own. `-frozen` trains no layer of it: what the classifier's head would read, and a logistic
      regression. All read the last 150 words of a review. The test is 2,000 reviews drawn once from IMDb's. Settings and epochs are those of the
      embedded reviews; half as many epochs were tried once on idle training reviews, and made no difference (`tried` in the file).
"""
import argparse, fcntl, functools, json, os, platform, tempfile, time, warnings
from importlib.metadata import version
from pathlib import Path
warnings.filterwarnings('ignore')
import numpy as np, pandas as pd, torch
from fastai.text.all import Callback, CancelValidException, set_seed
from fastai.text.models.core import masked_concat_pool
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from ulmfit_tut.batches import text_dls
from ulmfit_tut.compare import tfidf
from ulmfit_tut.corpus import TextCorpus, text_corpus
from ulmfit_tut.data import get_texts, read_text
from ulmfit_tut.encoder import save_encoder
from ulmfit_tut.files import replacing
from ulmfit_tut.lm import lm_learner, pretrained_lm
from ulmfit_tut.ulmfit import classifier_learner
from ulmfit_tut.unfreeze import classifier_stages, fit_stages, lm_stages

results = Path(__file__).parent/'results'
files = dict(mini=results/'labels.json', imdb=results/'labels-imdb.json')
sizes = dict(mini=(25, 50, 100, 200, 360), imdb=(100, 400, 25, 50, 200, 800))   # 40 of the 400 embedded training texts are held back, as everywhere here
arms = dict(mini=('tfidf', 'direct', 'wiki'), imdb=('tfidf', 'movies-frozen', 'wiki-frozen', 'movies', 'wiki'))
seeds = range(5)
pool, n_test, last_words = 1600, 2000, 150                                      # of IMDb: reviews that a seed draws from train, then labels from these
# The same for all networks. Of IMDb what `arms.py` had chosen for `movies` by then; chosen again, with texts in another order, it has longer to train.
settings = dict(mini=json.loads((results/'settings-wiki.json').read_text())['best'], imdb=dict(epochs=[2, 2, 2, 8], lrs=[.02]*4, bs=16, drop_mult=.3))
scale = dict(same=lambda n: 1, root=lambda n: (360/n)**.5)                      # factor on the epochs, which were chosen for 360 labels

class NoValid(Callback):
    "The last epoch is taken whatever validation says, so it is left out: half of the time where labels are few"
    def before_validate(self): raise CancelValidException

def subset(df, n, seed):
    "Positions of `n` training texts, as many of each class as can be"
    rng, use = np.random.default_rng(seed), df.part.eq('train') & ~df.is_valid
    order = [rng.permutation(np.flatnonzero(use & df.label.eq(l))) for l in sorted(set(df.label[use]))]
    return np.sort(np.stack(order, 1).ravel()[:n])

def texts(source, seed, work):
    "The embedded reviews; of IMDb what a seed draws from train, and the same test reviews for all"
    if source == 'mini': return get_texts(seed=seed)
    file = work/f'imdb-{seed}.csv'
    if not file.exists():
        df = get_texts('imdb', read=False, seed=seed)
        test = np.sort(np.random.default_rng(0).permutation(np.flatnonzero(df.part.eq('test')))[:n_test])
        one = df.iloc[[*subset(df, pool, seed), np.flatnonzero(df.is_valid & df.part.eq('train'))[-1], *test]].reset_index(drop=True)
        one.insert(0, 'text', [' '.join(read_text(f'{df.attrs["path"]}/{f}').split()[-last_words:]) for f in one.file])
        one.to_csv(file, index=False)
    return pd.read_csv(file, keep_default_na=False)

@functools.cache
def opened(source, seed, work):
    df = texts(source, seed, work)
    return df, text_corpus(df, progress=False)

def fit(learn, stages, seed):
    stages = [o._replace(moms=(0.95, 0.85, 0.95)) for o in stages]                           # as `ulmfit`
    with learn.no_bar(), learn.no_logging(), learn.added_cbs(NoValid()): fit_stages(learn, stages, seed)

def encoder(source, arm, corpus, seed, work):
    "Vocabulary, sizes, and file of the encoder: made once a seed, for all sizes"
    start = 'wiki' if arm == 'direct' else arm
    _, old, net = pretrained_lm(start)
    vocab, file = corpus.vocab(old) if source == 'mini' else old, work/f'{source}-{arm}-{seed}.safetensors'
    if not file.exists():
        set_seed(seed)
        learn = lm_learner(text_dls(corpus, vocab, is_lm=True, bs=settings[source]['bs'], seed=seed, device='cpu'), start)
        if (source, arm) == ('mini', 'wiki'): fit(learn, lm_stages(settings[source]['lm_epochs'], settings[source]['lm_lrs']), seed)
        save_encoder(learn, file)
    return vocab, net, file

def classifier(source, corpus, vocab, net, enc, keep, seed, scale=None):
    "Trained on the texts `keep`, or with its layers as they are; the text that `text_dls` wants held back is never looked at"
    b, df = settings[source], corpus.df.copy()
    df.loc[df.part.eq('train') & ~np.isin(np.arange(len(df)), keep) & ~df.is_valid, 'part'] = 'unused'
    set_seed(seed)
    learn = classifier_learner(text_dls(TextCorpus(corpus.path, df, corpus.tok), vocab, bs=b['bs'], seed=seed, device='cpu'), net, enc, b['drop_mult'])
    if scale: fit(learn, classifier_stages(b['lrs'], [max(1, round(e*scale)) for e in b['epochs']], ratio=b.get('lr_ratio', 2.6)), seed)
    return learn

def ask(learn, rows):
    "Predicted labels of rows of the corpus"
    with learn.no_bar(): p = learn.get_preds(dl=learn.dls.test_dl(rows.tolist(), bs=64))[0]
    return np.array(learn.dls.vocab[1])[p.argmax(1).numpy()]

def pooled(learn, rows):
    "What the head reads of rows of the corpus: last, largest and mean state"
    dl, enc, res = learn.dls.test_dl(rows.tolist(), bs=64), learn.model[0].eval(), []
    order = np.array(dl.get_idxs())
    with torch.no_grad():
        for x, in dl: enc.reset(); res.append(masked_concat_pool(*enc(x), enc.bptt))
    return torch.cat(res).numpy()[order.argsort()]

def regression(x, y, test, seed):
    "Tuned by cross-validation on its own labels, as TF-IDF is"
    grid = dict(logisticregression__C=[1e-3, 1e-2, .1])
    cv = StratifiedKFold(5, shuffle=True, random_state=seed)
    return GridSearchCV(make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)), grid, cv=cv).fit(x, y).predict(test)

def machine():
    cpu = [o.split(':')[1].strip() for o in Path('/proc/cpuinfo').read_text().splitlines() if o.startswith('model name')] if Path('/proc/cpuinfo').exists() else ['']
    return dict(cpu=cpu[0], cores=os.cpu_count(), threads=torch.get_num_threads(), processor=platform.machine(), python=platform.python_version(),
                **{o: version(o) for o in ('torch', 'fastai', 'scikit-learn', 'spacy')})

def read(source, k): return json.loads(files[source].read_text()).get(k, []) if files[source].exists() else []

def write(source, row=None, **kw):
    "Two processes may do different arms or seeds at once"
    with open(Path(tempfile.gettempdir())/'ulmfit_tut-labels.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        old = json.loads(files[source].read_text()) if files[source].exists() else dict(rows=[])
        if row: old['rows'].append(row)
        with replacing(files[source]) as tmp:
            tmp.write_text(json.dumps({**old, **kw, 'source': source, 'settings': settings[source], 'command': f'python bench/labels.py run {source}',
                                       'machine': machine(), 'date': time.strftime('%Y-%m-%d')}, indent=1) + '\n')

def choose(work):
    "Epochs as for 360 labels, or more of them by the root of the ratio: accuracy on the training texts that lie idle"
    (df, corpus), rows = opened('mini', 100, work), []
    for n in (25, 50, 100):
        keep = subset(df, n, 100)
        idle = np.flatnonzero(df.part.eq('train') & ~np.isin(np.arange(len(df)), keep))
        for rule, factor in scale.items():
            learn = classifier('mini', corpus, *encoder('mini', 'direct', corpus, 100, work), keep, 100, factor(n))
            rows.append(dict(labels=n, epochs=rule, accuracy=float((ask(learn, idle) == df.label[idle]).mean()), n=len(idle))); print(rows[-1], flush=True)
    write('mini', chosen=rows)

def predictions(source, arm, df, corpus, keep, test, seed, work, scale):
    if arm == 'tfidf': return tfidf(df.iloc[np.sort(np.concatenate([keep, test]))], seed)[0].to_numpy()
    enc = encoder(source, arm.removesuffix('-frozen'), corpus, seed, work)
    if not arm.endswith('-frozen'): return ask(classifier(source, corpus, *enc, keep, seed, scale), test)
    top = max(sizes[source]) if len(keep) <= max(sizes[source]) else pool
    drawn, learn = subset(df, top, seed), None
    rows = {'test': test, seed if top < pool else f'{seed}-{top}': drawn}
    for k, r in rows.items():                                                                # the layers rest: a text is read once, the test for all seeds
        file = work/f'{source}-{arm}-{k}.npy'
        if not file.exists(): learn = learn or classifier(source, corpus, *enc, keep, seed); np.save(file, pooled(learn, r))
        rows[k] = np.load(file)
    x, of_test = rows.popitem()[1], rows['test']
    return regression(x[np.isin(drawn, keep)], df.label[keep], of_test, seed)

def run(source, work, only, some, few):
    mean = {e: np.mean([o['accuracy'] for o in read('mini', 'chosen') if o['epochs'] == e]) for e in scale}
    rule = max(mean, key=mean.get)
    for arm in only or arms[source]:
        for n, seed in [(n, s) for n in few or sizes[source] for s in some or seeds]:
            if any((o['arm'], o['labels'], o['seed']) == (arm, n, seed) for o in read(source, 'rows')): continue
            df, corpus = opened(source, seed, work)
            test, keep, t = np.flatnonzero(df.part.eq('test')), subset(df, n, seed), (time.time(), time.process_time())
            right = predictions(source, arm, df, corpus, keep, test, seed, work, scale[rule](n)) == df.label[test].to_numpy()
            row = dict(arm=arm, labels=n, seed=seed, accuracy=float(right.mean()), n=len(test),
                       seconds=round(time.time() - t[0], 1), cpu_seconds=round(time.process_time() - t[1], 1),
                       right=np.packbits(right).tobytes().hex())                                 # a bit a test text, in the order of the corpus
            print({k: v for k,v in row.items() if k != 'right'}, flush=True)
            write(source, row, epochs=rule)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=['choose', 'run']); p.add_argument('source', choices=list(files), nargs='?', default='mini')
    p.add_argument('--work', type=Path, default=Path('~/.fastai/labels').expanduser())
    p.add_argument('--arms', nargs='+', help='some of the arms'); p.add_argument('--seeds', nargs='+', type=int, help='some of the seeds')
    p.add_argument('--labels', nargs='+', type=int, help=f'some of the sizes; on IMDb {pool} too')
    a = p.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    if a.what == 'choose': choose(a.work)
    else: run(a.source, a.work, a.arms, a.seeds, a.labels)
