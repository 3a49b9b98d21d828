"""What waking the classifier group by group is worth on the embedded reviews, beside waking it at once and not at all.

    python bench/stages.py choose              # a learning rate for each way, on a seed that is not used again
    python bench/stages.py run                 # ways x seeds x 4 parts of train; goes on where it stopped
    python bench/stages.py collect             # the summary in bench/results/stages.json, which chapter 05 reads

Every way trains `movies` for ten epochs. Each quarter of the labelled training reviews is held back in turn, so each review is answered once a seed,
after every stage. Rates are chosen on two of the quarters; the same choice is open to every way. Never reads a test text.
Two processes may share the work: `run --seeds 0` and `run --seeds 1` write rows of their own.
"""
import argparse, fcntl, json, os, platform, time, warnings
from importlib.metadata import version
from pathlib import Path
warnings.filterwarnings('ignore', category=FutureWarning)
import numpy as np, torch
import ulmfit_tut
from fastai.text.all import *
from ulmfit_tut.batches import text_dls
from ulmfit_tut.compare import paired_difference
from ulmfit_tut.corpus import text_corpus
from ulmfit_tut.data import get_texts
from ulmfit_tut.files import replacing
from ulmfit_tut.lm import pretrained_lm
from ulmfit_tut.ulmfit import classifier_learner
from ulmfit_tut.unfreeze import Stage, classifier_stages, discriminative, fit_stages, paper_stages

out = Path(__file__).parent/'results/stages.json'
FOLDS,BS,SEQ,DROP,EPOCHS = 4,16,72,0.3,(2, 2, 2, 4)
LRS,CHOICE = (2e-3, 5e-3, 1e-2, 2e-2),dict(seed=100, folds=(0, 2))
n = sum(EPOCHS)
ways = {'head alone': lambda lr: [Stage(-1, n, lr)],
        'all at once, one rate': lambda lr: [Stage(0, n, lr)],
        'all at once, falling rates': lambda lr: [Stage(0, n, discriminative(lr))],
        'group by group, one cycle': lambda lr: classifier_stages((lr,)*4, EPOCHS),
        'group by group, triangle': lambda lr: paper_stages(lr, n - 4)}

def held_back(df, fold):
    "Every fourth labelled training review of each class, from `fold` on"
    train = df[df.part.eq('train')]
    return train.index[train.groupby('label').cumcount()%FOLDS == fold].to_numpy()

def one(way, lr, seed, fold):
    "Right or wrong on the reviews held back, after each stage"
    corpus,(_,words,sizes) = text_corpus(get_texts(), progress=False),pretrained_lm('movies')
    dls = text_dls(corpus, words, bs=BS, seq_len=SEQ, valid=held_back(corpus.df, fold), seed=1000*seed + fold, device='cpu')
    set_seed(1000*seed + fold)
    learn = classifier_learner(dls, sizes, Path(ulmfit_tut.__file__).parent/'models/movies.safetensors', DROP)
    t,right = time.time(),[]
    with learn.no_bar(), learn.no_logging():
        for stage in ways[way](lr):
            fit_stages(learn, [stage], seed)
            probs,y = learn.get_preds()
            right.append((probs.argmax(1) == y).int().tolist())
    return dict(way=way, lr=lr, seed=seed, fold=fold, right=right, seconds=time.time() - t)

def load(): return json.loads(out.read_text()) if out.exists() else dict(tried=[], rows=[])

def add(key, row):
    fd = os.open(out.parent, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)                                            # another process may write at the same time
    d = load()
    d[key].append(row)
    with replacing(out) as tmp: tmp.write_text(json.dumps(d) + '\n')
    os.close(fd)
    print(row['way'], row['lr'], row['seed'], row['fold'], [round(float(np.mean(o)), 2) for o in row['right']], round(row['seconds']), flush=True)

def done(key, way, lr, seed, fold): return any((r['way'], r['lr'], r['seed'], r['fold']) == (way, lr, seed, fold) for r in load()[key])

def choose(some):
    for fold in CHOICE['folds']:
        for way in some:
            for lr in LRS:
                if not done('tried', way, lr, CHOICE['seed'], fold): add('tried', one(way, lr, CHOICE['seed'], fold))

def chosen():
    "The rate with the most right answers at the end; of equals the smaller"
    tried = load()['tried']
    right = {(w, lr): [np.mean(r['right'][-1]) for r in tried if (r['way'], r['lr']) == (w, lr)] for w in ways for lr in LRS}
    if short := [k for k,o in right.items() if len(o) < len(CHOICE['folds'])]: raise SystemExit(f'Not all rates are tried, {short[0]} is missing: run choose first')
    return {w: max(LRS, key=lambda lr: (np.mean(right[w, lr]), -lr)) for w in ways}

def run(some, seeds):
    lrs = chosen()
    for seed in seeds:
        for fold in range(FOLDS):
            for way in some:
                if not done('rows', way, lrs[way], seed, fold): add('rows', one(way, lrs[way], seed, fold))

def collect():
    d,lrs = load(),chosen()
    table = {(r['way'], r['seed'], r['fold']): r['right'] for r in d['rows']}
    seeds = [s for s in sorted({r['seed'] for r in d['rows']}) if all((w, s, f) in table for w in ways for f in range(FOLDS))]           # whole ones
    def grid(way, stage=-1): return np.array([sum((table[way, s, f][stage] for f in range(FOLDS)), []) for s in seeds])
    def row(name, a, b, **more): return dict(name=name, **more, **dict(zip(('mean', 'low', 'high'), paired_difference(a, b))))
    summary = [row(w, grid(w), 0*grid(w), lr=lrs[w], sd_over_seeds=grid(w).mean(1).std(ddof=1) if len(seeds) > 1 else None) for w in ways]
    stages = [row(f'stage {i+1}', g, 0*g, over_last=paired_difference(g, grid('group by group, one cycle', i-1)) if i else None)
              for i,g in enumerate(grid('group by group, one cycle', i) for i in range(4))]
    base = 'group by group, one cycle'
    differences = [row(f'{base} - {w}', grid(base), grid(w)) for w in ways if w != base]
    machine = dict(cores=os.cpu_count(), threads=torch.get_num_threads(), python=platform.python_version(), torch=torch.__version__, fastai=version('fastai'), processor=platform.machine())
    d.update(summary=summary, stages=stages, differences=differences, seeds=seeds, texts=grid(base).shape[1], machine=machine, date=time.strftime('%Y-%m-%d'),
             settings=dict(bs=BS, seq_len=SEQ, drop_mult=DROP, epochs=EPOCHS, lrs=LRS, choice=CHOICE, chosen=lrs, folds=FOLDS), command='python bench/stages.py choose; python bench/stages.py run')
    with replacing(out) as tmp: tmp.write_text(json.dumps(d) + '\n')
    for o in (summary, stages, differences): print(pd.DataFrame(o).round(3).to_string())

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=['choose', 'run', 'collect'])
    p.add_argument('--ways', nargs='+', choices=ways, default=list(ways)); p.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    a = p.parse_args()
    if a.what == 'choose': choose(a.ways)
    elif a.what == 'run': run(a.ways, a.seeds)
    else: collect()
