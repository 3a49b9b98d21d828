"""Accuracy against the number of labels, with and without language model fine-tuning, TF-IDF beside them.

    python bench/labels.py choose   # how many epochs few labels want, on training texts alone, with a seed that `run` does not use
    python bench/labels.py run      # every arm, size and seed: goes on where it stopped, and writes bench/results/labels.json after each

The labels are a part of the training texts of the embedded reviews, half of each class, the small parts within the large ones. The other texts of
train and all of unsup are read by the language model without labels. Each classifier is tested once; nothing is chosen by what the test says.
"""
import argparse, json, os, platform, time, warnings
from importlib.metadata import version
from pathlib import Path
warnings.filterwarnings('ignore')
import numpy as np, torch
from fastai.text.all import set_seed
from ulmfit_tut.batches import text_dls
from ulmfit_tut.compare import tfidf
from ulmfit_tut.corpus import TextCorpus, text_corpus
from ulmfit_tut.data import get_texts
from ulmfit_tut.encoder import save_encoder
from ulmfit_tut.files import replacing
from ulmfit_tut.lm import lm_learner, pretrained_lm
from ulmfit_tut.predict import predict
from ulmfit_tut.ulmfit import classifier_learner
from ulmfit_tut.unfreeze import classifier_stages, fit_stages, lm_stages

results = Path(__file__).parent/'results'
sizes, seeds = (25, 50, 100, 200, 360), range(3)        # 40 of the 400 training texts are held back for validation, as everywhere here
best = json.loads((results/'settings-wiki.json').read_text())['best']

def subset(df, n, seed):
    "Positions of `n` training texts, as many of each class as can be"
    rng, use = np.random.default_rng(seed), df.part.eq('train') & ~df.is_valid
    order = [rng.permutation(np.flatnonzero(use & df.label.eq(l))) for l in sorted(set(df.label[use]))]
    return np.sort(np.stack(order, 1).ravel()[:n])

def quiet(learn, stages, seed):
    with learn.no_bar(), learn.no_logging(): return fit_stages(learn, [o._replace(moms=(0.95, 0.85, 0.95)) for o in stages], seed)[0]       # as `ulmfit`

def classifier(corpus, vocab, net, enc, keep, scale, seed, held=None):
    "Trained on the texts `keep`; `held` are validation texts instead of the usual ones"
    df = corpus.df.copy()
    used = np.isin(np.arange(len(df)), keep)
    held = df.is_valid.to_numpy() & df.part.eq('train').to_numpy() if held is None else held
    df.loc[df.part.eq('train') & ~used & ~held, 'part'] = 'unused'
    set_seed(seed)
    learn = classifier_learner(text_dls(TextCorpus(corpus.path, df, corpus.tok), vocab, bs=best['bs'], valid=held, seed=seed, device='cpu'), net, enc, best['drop_mult'])
    return learn, quiet(learn, classifier_stages(best['lrs'], [round(e*scale) for e in best['epochs']]), seed)

def start(seed):
    df = get_texts(seed=seed)
    corpus, (_, old, net) = text_corpus(df), pretrained_lm('wiki')
    return df, corpus, corpus.vocab(old), net

def encoder(corpus, vocab, fine_tune, seed, file):
    set_seed(seed)
    learn = lm_learner(text_dls(corpus, vocab, is_lm=True, seed=seed, device='cpu'), 'wiki')
    if fine_tune: quiet(learn, lm_stages(best['lm_epochs'], best['lm_lrs']), seed)
    return save_encoder(learn, file)

def write(**kw):
    file = results/'labels.json'
    old = json.loads(file.read_text()) if file.exists() else dict(rows=[], chosen=[])
    mach = dict(cores=os.cpu_count(), threads=torch.get_num_threads(), python=platform.python_version(), torch=torch.__version__, fastai=version('fastai'),
                processor=platform.machine())
    with replacing(file) as tmp:
        tmp.write_text(json.dumps({**old, **kw, 'source': 'mini', 'settings': best, 'command': 'python bench/labels.py run', 'machine': mach,
                                   'date': time.strftime('%Y-%m-%d')}, indent=1) + '\n')

def read(k): return json.loads((results/'labels.json').read_text())[k] if (results/'labels.json').exists() else []

def choose(work):
    "Epochs as for 360 labels, or more of them by the root of the ratio: accuracy on the training texts that lie idle"
    df, corpus, vocab, net = start(100)
    enc, rows = encoder(corpus, vocab, False, 100, work/'choose.safetensors'), []
    for n in (25, 50, 100):
        keep = subset(df, n, 100)
        held = df.part.eq('train').to_numpy() & ~np.isin(np.arange(len(df)), keep)
        for name, scale in (('same', 1), ('root', (sizes[-1]/n)**.5)):
            h = classifier(corpus, vocab, net, enc, keep, scale, 100, held)[1]
            rows.append(dict(labels=n, epochs=name, accuracy=float(h.accuracy.iloc[-1]), n=int(held.sum()))); print(rows[-1], flush=True)
    write(chosen=rows)

def run(work):
    rows, chosen = read('rows'), read('chosen')
    mean = {e: np.mean([o['accuracy'] for o in chosen if o['epochs'] == e]) for e in ('same', 'root')}
    rule = max(mean, key=mean.get)
    for seed in seeds:
        df, corpus, vocab, net = start(seed)
        test = df[df.part.eq('test')]
        for arm in ('tfidf', 'direct', 'wiki'):
            enc = None
            for n in sizes:
                if any((o['arm'], o['labels'], o['seed']) == (arm, n, seed) for o in rows): continue
                t, keep = time.time(), subset(df, n, seed)
                if arm == 'tfidf': pred = tfidf(df.iloc[np.sort(np.concatenate([keep, test.index]))], seed)[0]
                else:
                    file = work/f'{arm}-{seed}.safetensors'
                    enc = enc or (file if file.exists() else encoder(corpus, vocab, arm == 'wiki', seed, file))
                    learn, _ = classifier(corpus, vocab, net, enc, keep, (sizes[-1]/n)**.5 if rule == 'root' else 1, seed)
                    pred = predict(learn, test.text).iloc[:, 0].set_axis(test.index)
                rows.append(dict(arm=arm, labels=n, seed=seed, accuracy=float((pred == test.label).mean()), n=len(test), seconds=round(time.time() - t, 1)))
                print(rows[-1], flush=True)
                write(rows=rows, epochs=rule)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=['choose', 'run']); p.add_argument('--work', type=Path, default=Path('~/.fastai/labels').expanduser())
    a = p.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    dict(choose=choose, run=run)[a.what](a.work)
