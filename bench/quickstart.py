"""What `fine_tune`, and a second `fine_tune`, are worth on the embedded reviews: the quick start's recipe, each training text validated once a seed.

    python bench/quickstart.py run             # language models x seeds x 4 parts of train; goes on where it stopped
    python bench/quickstart.py collect         # the summary in bench/results/quickstart.json, which the page reads

Never reads a test text. `run --seeds 0 1 --lm wiki` runs a share.
"""
import argparse, json, os, platform, time, warnings
from importlib.metadata import version
from pathlib import Path
warnings.filterwarnings('ignore', category=FutureWarning)
import numpy as np, torch
import ulmfit_tut
from fastai.text.all import *
from ulmfit_tut.compare import paired_difference, tfidf
from ulmfit_tut.data import mini_reviews_df
from ulmfit_tut.encoder import load_encoder
from ulmfit_tut.files import replacing
from ulmfit_tut.lm import pretrained_lm

out = Path(__file__).parent/'results/quickstart.json'
FOLDS,BS,DROP,EPOCHS,LR = 4,16,0.5,4,1e-2

def texts(fold):
    "Labelled training reviews; every fourth of each class, from `fold` on, is held back"
    df = mini_reviews_df()
    df = df[df.split.eq('train')].reset_index(drop=True)
    df['is_valid'] = df.groupby('label').cumcount()%FOLDS == fold
    return df[['text', 'label', 'is_valid']]

def one(lm, seed, fold):
    "Right or wrong on the texts held back, after one and after two calls of `fine_tune`"
    df,(_,words,sizes) = texts(fold),pretrained_lm(lm)
    dls = TextDataLoaders.from_df(df, text_col='text', label_col='label', valid_col='is_valid', text_vocab=words, bs=BS, device='cpu', num_workers=0)
    set_seed(seed)
    learn = text_classifier_learner(dls, AWD_LSTM, config={**awd_lstm_clas_config, **sizes}, pretrained=False, drop_mult=DROP, metrics=accuracy)
    load_encoder(learn, Path(ulmfit_tut.__file__).parent/f'models/{lm}.safetensors')
    t,res = time.time(),[]
    with learn.no_bar(), learn.no_logging():
        for _ in range(2):
            learn.fine_tune(EPOCHS, LR)
            preds,y = learn.get_preds()
            res.append((preds.argmax(1) == y).int().tolist())
    return dict(lm=lm, seed=seed, fold=fold, once=res[0], twice=res[1], seconds=time.time() - t)

def write(d):
    with replacing(out) as tmp: tmp.write_text(json.dumps(d) + '\n')

def load(): return json.loads(out.read_text()) if out.exists() else dict(runs=[])

def run(lms, seeds):
    for seed in seeds:
        for lm in lms:
            for fold in range(FOLDS):
                d = load()
                if any((r['lm'], r['seed'], r['fold']) == (lm, seed, fold) for r in d['runs']): continue
                r = one(lm, seed, fold)
                d['runs'].append(r); write(d)
                print(lm, seed, fold, np.mean(r['once']), np.mean(r['twice']), round(r['seconds']), flush=True)

def baseline():
    "TF-IDF and logistic regression on the same parts"
    res = []
    for fold in range(FOLDS):
        df = texts(fold)
        df['part'] = np.where(df.is_valid, 'test', 'train')
        res += (tfidf(df, 0)[0] == df[df.is_valid].label).astype(int).tolist()
    return res

def collect():
    d,rows = load(),[]
    base = baseline()
    lms,seeds = list(dict.fromkeys(r['lm'] for r in d['runs'])),sorted({r['seed'] for r in d['runs']})
    table = {(r['lm'], r['seed'], r['fold']): r for r in d['runs']}
    seeds = [s for s in seeds if all((lm, s, f) in table for lm in lms for f in range(FOLDS))]           # whole ones
    def grid(lm, k): return np.array([sum((table[lm, s, f][k] for f in range(FOLDS)), []) for s in seeds])
    arms = {f'{lm}, {k}': grid(lm, k) for lm in lms for k in ('once', 'twice')}
    summary = [dict(name=n, accuracy=a.mean(), sd_over_seeds=a.mean(1).std(ddof=1) if len(seeds) > 1 else None, low=paired_difference(a, 0*a)[1], high=paired_difference(a, 0*a)[2]) for n,a in arms.items()]
    summary.append(dict(name='TF-IDF + logistic regression', accuracy=np.mean(base), sd_over_seeds=None, **dict(zip(('low', 'high'), paired_difference(base, np.zeros(len(base)))[1:]))))
    pairs = [(f'{lm}, twice', f'{lm}, once') for lm in lms] + [(f'{b}, twice', f'{a}, twice') for a,b in zip(lms, lms[1:])]
    diffs = [dict(a=a, b=b, **dict(zip(('difference', 'low', 'high'), paired_difference(arms[a], arms[b])))) for a,b in pairs]
    machine = dict(cores=os.cpu_count(), threads=torch.get_num_threads(), python=platform.python_version(), torch=torch.__version__, fastai=version('fastai'),
                   processor=platform.machine())
    write(dict(summary=summary, differences=diffs, seeds=seeds, texts=len(base), settings=dict(bs=BS, drop_mult=DROP, epochs=EPOCHS, lr=LR, folds=FOLDS), machine=machine,
               command='python bench/quickstart.py run', date=time.strftime('%Y-%m-%d'), runs=d['runs']))
    for r in summary + diffs: print(r)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=['run', 'collect'])
    p.add_argument('--lm', nargs='+', default=['wiki', 'movies'])
    p.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    a = p.parse_args()
    run(a.lm, a.seeds) if a.what == 'run' else collect()
