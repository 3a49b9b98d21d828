"""How many epochs a classifier wants, by the number of its labels: what the default of `ulmfit` rests on.

    python bench/epochs.py run                 # schedules x labels x seeds; goes on where it stopped, and writes each row at once
    python bench/epochs.py collect             # the summary in bench/results/epochs.json, which the results page reads

IMDb's training reviews, their last 150 words. `wiki` is fine-tuned once, as `ulmfit` does by default, on 2,000 reviews without labels. Labels are drawn by
seed, half of each class, small draws within large ones. 2,000 training reviews that are drawn once lie idle: they alone are asked. Never reads a test text.
Beside the schedules stand word counts, tuned on the same labels.
Two processes may share the work: `run --seeds 0` and `run --seeds 1`.

Draws 0 and 1 choose, draws 10 to 13 judge:

    python bench/epochs.py run --labels 400 --seeds 10 11 12 13 --schedules "14, gentle" "14, gentle, 16" "14, twice gentle, 16" "14, twice gentle, 16, clip" "word counts" \\
                                                                            "14, twice gentle, 16, clip .5"
    python bench/epochs.py run --labels 400 --seeds 10 11 --schedules "38, gentle, 16, .5"
    python bench/epochs.py run --labels 1000 --seeds 10 11 --schedules "14, gentle" "14, gentle, 16" "14, twice gentle, 16" "14, twice gentle, 16, clip" "word counts" \\
                                                                       "14, twice gentle, 16, clip .5"
    python bench/epochs.py run --labels 2500 --seeds 10 --schedules "14, gentle" "14, gentle, 16" "word counts"
"""
import argparse, fcntl, json, os, time, warnings
from pathlib import Path
warnings.filterwarnings('ignore')
import numpy as np, pandas as pd
from fastai.text.all import GradientClip, set_seed
from labels import fit, machine
from ulmfit_tut.batches import text_dls
from ulmfit_tut.compare import paired_difference, tfidf
from ulmfit_tut.corpus import TextCorpus, text_corpus
from ulmfit_tut.data import get_texts, read_text, text_vocab
from ulmfit_tut.encoder import save_encoder
from ulmfit_tut.files import replacing
from ulmfit_tut.lm import lm_learner, pretrained_lm
from ulmfit_tut.runs import steady_memory
from ulmfit_tut.ulmfit import classifier_learner
from ulmfit_tut.unfreeze import classifier_stages, lm_stages

out = Path(__file__).parent/'results/epochs.json'
N_IDLE,N_LM,LAST = 2000,2000,150
tutorial,paper,high = (2e-2, 1e-2, 5e-3, 1e-3),(1e-2,)*4,(2e-2,)*4                # the second: Howard & Ruder 2018, section 4.1
even,half,steep = (5e-3,)*4,(5e-2,)*4,(1e-1,)*4     # the same for all layers, falling from half of the best, from the best: by waking.py; `gentle` by rates.py
schedules = {'tutorial': dict(epochs=(1, 1, 1, 2), lrs=tutorial, bs=32),
             '5, high': dict(epochs=(1, 1, 1, 2), lrs=high, bs=32),
             '14, paper': dict(epochs=(2, 2, 2, 8), lrs=paper, bs=32),
             '14, even': dict(epochs=(2, 2, 2, 8), lrs=even, bs=32, ratio=1),
             '14, gentle': dict(epochs=(2, 2, 2, 8), lrs=paper, bs=32, ratio=1.2),
             '14, half': dict(epochs=(2, 2, 2, 8), lrs=half, bs=32),
             '14, steep': dict(epochs=(2, 2, 2, 8), lrs=steep, bs=32),
             '14, high': dict(epochs=(2, 2, 2, 8), lrs=high, bs=32),
             '22, tutorial': dict(epochs=(2, 2, 2, 16), lrs=tutorial, bs=32),
             '22, high': dict(epochs=(2, 2, 2, 16), lrs=high, bs=32),
             '14, gentle, 16': dict(epochs=(2, 2, 2, 8), lrs=paper, bs=16, ratio=1.2),
             '14, gentle, 8': dict(epochs=(2, 2, 2, 8), lrs=paper, bs=8, ratio=1.2),
             '14, twice gentle, 16': dict(epochs=(2, 2, 2, 8), lrs=high, bs=16, ratio=1.2),
             '14, twice gentle, 16, clip': dict(epochs=(2, 2, 2, 8), lrs=high, bs=16, ratio=1.2, clip=.2),       # the norm of the gradient
             '14, twice gentle, 16, clip .1': dict(epochs=(2, 2, 2, 8), lrs=high, bs=16, ratio=1.2, clip=.1),
             '14, twice gentle, 16, clip .5': dict(epochs=(2, 2, 2, 8), lrs=high, bs=16, ratio=1.2, clip=.5),
             '14, gentle, 16, clip': dict(epochs=(2, 2, 2, 8), lrs=paper, bs=16, ratio=1.2, clip=.2),
             '14, gentle, 16, clip .5': dict(epochs=(2, 2, 2, 8), lrs=paper, bs=16, ratio=1.2, clip=.5),
             '14, four times gentle, 16': dict(epochs=(2, 2, 2, 8), lrs=(4e-2,)*4, bs=16, ratio=1.2),
             '14, four times gentle, 16, clip': dict(epochs=(2, 2, 2, 8), lrs=(4e-2,)*4, bs=16, ratio=1.2, clip=.2),
             '14, twice gentle, 16, .5': dict(epochs=(2, 2, 2, 8), lrs=high, bs=16, ratio=1.2, drop_mult=.5),
             '22, twice gentle, 16, .5': dict(epochs=(2, 2, 2, 16), lrs=high, bs=16, ratio=1.2, drop_mult=.5),
             '22, gentle, 16': dict(epochs=(2, 2, 2, 16), lrs=paper, bs=16, ratio=1.2),
             '38, gentle': dict(epochs=(2, 2, 2, 32), lrs=paper, bs=32, ratio=1.2),
             '38, gentle, 16': dict(epochs=(2, 2, 2, 32), lrs=paper, bs=16, ratio=1.2),
             '38, gentle, 16, .5': dict(epochs=(2, 2, 2, 32), lrs=paper, bs=16, ratio=1.2, drop_mult=.5)}

counts = 'word counts'
choice,judges = (0, 1),(10, 11, 12, 13)                                             # draws: those that choose, and those that judge on the same idle texts
pairs = [('14, gentle, 16', '14, gentle'), ('14, twice gentle, 16', '14, gentle, 16'), ('14, twice gentle, 16, clip', '14, gentle, 16'),
         ('14, twice gentle, 16, clip .5', '14, gentle, 16'), ('38, gentle, 16, .5', '14, gentle, 16'), (counts, '14, gentle, 16')]

def texts(work):
    "IMDb's train and some of its unlabelled reviews, cut; written once"
    file = work/'texts.csv'
    if not file.exists():
        df = get_texts('imdb', read=False, seed=0)
        unsup = np.random.default_rng(0).permutation(np.flatnonzero(df.part.eq('unsup')))[:N_LM]
        df = df.iloc[np.sort(np.concatenate([np.flatnonzero(df.part.eq('train')), unsup]))]
        res = pd.DataFrame(dict(text=[' '.join(read_text(f'{df.attrs["path"]}/{f}').split()[-LAST:]) for f in df.file], label=df.label.to_numpy(), part=df.part.to_numpy()))
        with replacing(file) as tmp: res.to_csv(tmp, index=False)
    return pd.read_csv(file, keep_default_na=False).assign(is_valid=False)

def drawn(df, seed):
    "Rows of the two classes in turn, in an order of the seed; without the idle ones, which are the same for all"
    def turns(rng, use): return np.stack([rng.permutation(np.flatnonzero(use & df.label.eq(l))) for l in ('neg', 'pos')], 1).ravel()
    train = df.part.eq('train').to_numpy()
    idle = turns(np.random.default_rng(10_000), train)[:N_IDLE]
    return np.sort(idle),turns(np.random.default_rng(seed), train & ~np.isin(np.arange(len(df)), idle))

def prepared(work):
    df = texts(work)
    corpus,(_,old,sizes) = text_corpus(df, progress=False),pretrained_lm('wiki')
    vocab,enc = text_vocab(corpus.counts(np.flatnonzero(df.part.eq('unsup'))), old),work/'encoder.safetensors'
    with open(work/'lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)                                            # one process makes it, the other waits
        if not enc.exists():
            own,rows = df.copy(),np.flatnonzero(df.part.eq('unsup'))
            own.loc[own.part.eq('train'), 'part'] = 'unused'
            own.loc[rows[::10], 'is_valid'] = True
            set_seed(42)
            learn = lm_learner(text_dls(TextCorpus(corpus.path, own, corpus.tok), vocab, is_lm=True, device='cpu'), 'wiki', .3)
            fit(learn, lm_stages((1, 4), (2e-2, 5e-3)), 42)
            print('language model', learn.validate(), flush=True)
            save_encoder(learn, enc)
    return corpus,vocab,sizes,enc

def counted(df, n, seed):
    "Word counts with a logistic regression, from the same labels"
    idle,order = drawn(df, seed)
    some = pd.concat([df.iloc[order[:n]].assign(part='train'), df.iloc[idle].assign(part='test')])
    t = time.time()
    right = (tfidf(some, seed)[0] == df.label.iloc[idle]).to_numpy()
    return dict(schedule=counts, labels=n, seed=seed, accuracy=float(right.mean()), seconds=round(time.time() - t, 1), right=np.packbits(right).tobytes().hex())

def one(corpus, vocab, sizes, enc, name, n, seed):
    if name == counts: return counted(corpus.df, n, seed)
    s,df = schedules[name],corpus.df.copy()
    idle,order = drawn(df, seed)
    df.loc[df.part.eq('train') & ~np.isin(np.arange(len(df)), [*idle, *order[:n]]), 'part'] = 'unused'
    set_seed(seed)
    dls = text_dls(TextCorpus(corpus.path, df, corpus.tok), vocab, bs=s['bs'], valid=idle, seed=seed, device='cpu')
    learn,t = classifier_learner(dls, sizes, enc, s.get('drop_mult', .3)),time.time()
    if 'clip' in s: learn.add_cb(GradientClip(s['clip']))
    fit(learn, classifier_stages(s['lrs'], s['epochs'], ratio=s.get('ratio', 2.6)), seed)
    seconds = time.time() - t
    with learn.no_bar(): probs,y = learn.get_preds()
    right = (probs.argmax(1) == y).numpy()
    return dict(schedule=name, labels=n, seed=seed, accuracy=float(right.mean()), seconds=round(seconds, 1), right=np.packbits(right).tobytes().hex())

def load(file=out): return json.loads(file.read_text()) if file.exists() else dict(rows=[])

def change(f, file=out, indent=None):
    "Two processes may write at the same time"
    fd = os.open(file.parent, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    f(d := load(file))
    with replacing(file) as tmp: tmp.write_text(json.dumps(d, indent=indent) + '\n')
    os.close(fd)

def add(row):
    change(lambda d: d['rows'].append(row | dict(cpu=machine()['cpu'])))
    print({k: v for k,v in row.items() if k != 'right'}, flush=True)

def run(work, seeds, sizes, some):
    things = prepared(work)
    for n in sizes:
        for seed in seeds:
            for name in some:
                if not any((r['schedule'], r['labels'], r['seed']) == (name, n, seed) for r in load()['rows']): add(one(*things, name, n, seed))

def collect():
    "Means of the first two draws, and gains over the tutorial's epochs; then what the other draws say of those in `pairs`"
    d = load()
    table = {(r['schedule'], r['labels'], r['seed']): np.unpackbits(np.frombuffer(bytes.fromhex(r['right']), np.uint8))[:N_IDLE].astype(int) for r in d['rows']}
    summary = []
    for n in sorted({r['labels'] for r in d['rows']}):
        for name in (*schedules, counts):
            seeds = sorted(s for a,b,s in table if (a, b) == (name, n) and s in choice)
            if not seeds: continue
            mine,base = (np.array([table[o, n, s] for s in seeds if (o, n, s) in table]) for o in (name, 'tutorial'))
            more = {} if name == 'tutorial' or len(mine) != len(base) else dict(zip(('gain', 'low', 'high'), paired_difference(mine, base)))
            summary.append(dict(labels=n, schedule=name, accuracy=float(mine.mean()), seeds=len(seeds), seconds=float(np.median([r['seconds'] for r in d['rows'] if (r['schedule'], r['labels']) == (name, n) and r['seed'] in choice])), **more))
    def judged(o, n): return np.array([table[o, n, s] for s in judges if (o, n, s) in table])
    later = [dict(labels=n, schedule=o, accuracy=float(x.mean()), lowest=float(x.mean(1).min()), seeds=len(x),
                  seconds=float(np.median([r['seconds'] for r in d['rows'] if (r['schedule'], r['labels']) == (o, n) and r['seed'] in judges])))
             for n in sorted({r['labels'] for r in d['rows']}) for o in (*schedules, counts) if len(x := judged(o, n))]
    def both(a, b, n): return [s for s in judges if (a, n, s) in table and (b, n, s) in table]
    differences = [dict(labels=n, schedule=a, less=b, seeds=len(s), **dict(zip(('mean', 'low', 'high'), paired_difference([table[a, n, i] for i in s], [table[b, n, i] for i in s]))))
                   for n in sorted({o['labels'] for o in later}) for a,b in pairs if (s := both(a, b, n))]
    change(lambda d: d.update(summary=summary, judged=later, differences=differences, schedules=schedules, settings=dict(drop_mult=.3, seq_len=72, idle=N_IDLE, lm_texts=N_LM, last_words=LAST, start='wiki'), machine=d.get('machine', machine()),     # of the first rows; later ones say theirs
                              date=time.strftime('%Y-%m-%d'), command='python bench/epochs.py run --seeds 0; python bench/epochs.py run --seeds 1; the four of its docstring with --seeds 10 and more; python bench/epochs.py collect'))
    for o in (summary, later, differences): print(pd.DataFrame(o).round(3).to_string())

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=['run', 'collect'])
    p.add_argument('--work', type=Path, default=Path('~/.fastai/epochs').expanduser())
    p.add_argument('--seeds', nargs='+', type=int, default=[0, 1])
    p.add_argument('--labels', nargs='+', type=int, default=[400, 1000])
    p.add_argument('--schedules', nargs='+', choices=[*schedules, counts], default=[*schedules, counts])
    a = p.parse_args()
    steady_memory()
    a.work.mkdir(parents=True, exist_ok=True)
    if a.what == 'collect': collect()
    else: run(a.work, a.seeds, a.labels, a.schedules)
