"""Is it the direction, or is it averaging? Forwards, backwards, the mean of both, and the mean of two that read forwards.

    python bench/directions.py run                   # embedded reviews: 360 labels, 400 test reviews, 5 seeds
    python bench/directions.py run --source imdb     # IMDb: 900 labels, 2,000 test reviews, 3 seeds
    python bench/directions.py collect               # bench/results/directions.json, which the pages read

`run` goes on where it stopped. Each classifier starts from `movies` or from `movies-bwd` as they ship and is tested once a seed. Nothing is chosen here: the
settings of the embedded reviews are those that `arms.py` had chosen by then, for forwards models on training texts (chosen again, with texts in another
order, it has longer to train); those of IMDb are the tutorial's number of epochs at the same rates. For a seed all classifiers learn from the same texts.
The second that reads forwards has another seed for its head, its dropout and the order of the texts, as the one that reads backwards has too.
"""
import argparse, functools, json, os, platform, tempfile, time, warnings
from importlib.metadata import version
from pathlib import Path
warnings.filterwarnings('ignore')
import numpy as np, pandas as pd, torch
from fastai.text.all import URLs, set_seed, untar_data
from ulmfit_tut.batches import text_dls
from ulmfit_tut.compare import paired_difference
from ulmfit_tut.corpus import text_corpus
from ulmfit_tut.data import get_texts, read_text, texts_from_folder
from ulmfit_tut.encoder import save_encoder
from ulmfit_tut.files import replacing
from ulmfit_tut.lm import lm_learner, pretrained_lm
from ulmfit_tut.predict import predict
from ulmfit_tut.ulmfit import classifier_learner
from ulmfit_tut.unfreeze import classifier_stages, fit_stages

results = Path(__file__).parent/'results'
best = dict(epochs=[2, 2, 2, 8], lrs=[.02]*4, bs=16, drop_mult=.3)
settings = dict(mini=best, imdb={**best, 'epochs': [1, 1, 1, 2]})
seeds = dict(mini=range(5), imdb=range(3))
single = dict(fwd='forwards', bwd='backwards', fwd2='forwards, another seed')                             # a name of a file, and what it is
means = dict(both=('fwd', 'bwd'), two=('fwd', 'fwd2'))
names = dict(fwd='forwards', bwd='backwards', both='mean of both directions', two='mean of two forwards')

@functools.cache
def imdb(n_train=1000, n_test=2000):
    "Reviews of IMDb, half of each class, always the same ones"
    path, rng = untar_data(URLs.IMDB), np.random.default_rng(0)
    df = texts_from_folder(path, read=False)
    take = [rng.choice(np.flatnonzero((df.part == p) & (df.label == l)), n//2, replace=False) for p, n in (('train', n_train), ('test', n_test)) for l in ('neg', 'pos')]
    df = df.iloc[np.sort(np.concatenate(take))].drop(columns='is_valid')
    return df.assign(text=[read_text(path/f) for f in df.file])

def texts(source, seed): return get_texts('mini' if source == 'mini' else imdb(), split_col=None if source == 'mini' else 'part', seed=seed)

def one(source, arm, seed):
    "Probability of `pos` for each test text"
    c, back, df = settings[source], arm == 'bwd', texts(source, seed)
    corpus, (_, words, sizes) = text_corpus(df), pretrained_lm('movies', back)
    vocab, own = corpus.vocab(words), seed + 100*list(single).index(arm)
    lm = lm_learner(text_dls(corpus, vocab, is_lm=True, backwards=back, device='cpu'), 'movies', backwards=back)
    with tempfile.TemporaryDirectory() as tmp:
        enc = save_encoder(lm, Path(tmp)/'enc.safetensors')
        set_seed(own)
        learn = classifier_learner(text_dls(corpus, vocab, bs=c['bs'], backwards=back, seed=own, device='cpu'), sizes, enc, c['drop_mult'])
    with learn.no_bar(), learn.no_logging(): fit_stages(learn, [o._replace(moms=(0.95, 0.85, 0.95)) for o in classifier_stages(c['lrs'], c['epochs'])], own)       # as `ulmfit`
    return predict(learn, df.text[df.part.eq('test')]).pos.to_numpy()

def run(work, source, arms, some):
    for seed in some or seeds[source]:
        for arm in arms:
            file = work/source/f'{arm}-{seed}.npz'
            if file.exists(): continue
            t = time.time()
            pos = one(source, arm, seed)
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as tmp, open(tmp, 'wb') as f: np.savez(f, pos=pos, seconds=time.time() - t)
            print(source, arm, seed, f'{time.time() - t:.0f} s', flush=True)

def summary(source, pos, truth):
    "`pos`: arm -> seeds x texts. Accuracies, paired differences, and how often two answer alike"
    right = {a: ((p > .5) == truth).astype(float) for a, p in pos.items()}
    def interval(a, b): return dict(zip(('mean', 'low', 'high'), map(float, paired_difference(right[a], right[b] if b else 0*right[a]))))
    alike = [dict(a=a, b=b, share=float((right[a] == right[b]).mean()), both_wrong=float(((right[a] + right[b]) == 0).mean())) for a, b in means.values()]
    return dict(accuracy={a: dict(interval(a, None), seeds=right[a].mean(1).tolist()) for a in names}, alike=alike,
                differences=[dict(a=a, b=b, **interval(a, b)) for a, b in (('both', 'fwd'), ('both', 'bwd'), ('two', 'fwd'), ('both', 'two'), ('bwd', 'fwd'))],
                labels=int((~texts(source, 0).is_valid & texts(source, 0).part.eq('train')).sum()), tests=len(truth), seeds=len(pos['fwd']), settings=settings[source])

def collect(work):
    "What all arms have run, and nothing half"
    res = {}
    for source in seeds:
        whole = [s for s in seeds[source] if all((work/source/f'{a}-{s}.npz').exists() for a in single)]
        if not whole: continue
        runs = {a: [np.load(work/source/f'{a}-{s}.npz') for s in whole] for a in single}
        pos = {a: np.stack([o['pos'] for o in r]) for a, r in runs.items()}
        for k, (a, b) in means.items(): pos[k] = (pos[a] + pos[b])/2
        df = texts(source, 0)
        res[source] = dict(summary(source, pos, df.label[df.part.eq('test')].eq('pos').to_numpy()), seconds_a_classifier=float(np.median([o['seconds'] for r in runs.values() for o in r])))
    mach = dict(cores=os.cpu_count(), threads=torch.get_num_threads(), processor=platform.machine(), python=platform.python_version(), torch=torch.__version__, fastai=version('fastai'))
    with replacing(results/'directions.json') as tmp:
        tmp.write_text(json.dumps(dict(res, names=names, command='python bench/directions.py run', machine=mach, date=time.strftime('%Y-%m-%d')), indent=1) + '\n')
    for k, o in res.items(): print(k, pd.DataFrame(o['accuracy']).T.drop(columns='seeds').astype(float).round(3), pd.DataFrame(o['differences']).round(3), pd.DataFrame(o['alike']).round(3), sep='\n')

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=['run', 'collect'])
    p.add_argument('--source', default='mini', choices=list(seeds))
    p.add_argument('--arms', nargs='+', default=list(single), choices=list(single))
    p.add_argument('--seeds', nargs='+', type=int, help='some of them, to share the runs between processes')
    p.add_argument('--work', type=Path, default=Path('~/.fastai/directions').expanduser())
    a = p.parse_args()
    run(a.work, a.source, a.arms, a.seeds) if a.what == 'run' else collect(a.work)
