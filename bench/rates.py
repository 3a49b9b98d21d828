"""Which learning rates, when epochs are few: what the default rates of `ulmfit` rest on, beside `epochs.py` and `waking.py`.

    python bench/rates.py run --seeds 0                                            # goes on where it stopped, and writes each row at once
    python bench/rates.py run --seeds 1 --rates gentle steep paper double even
    python bench/rates.py run --seeds 10 11 --rates gentle steep paper
    python bench/rates.py run --seeds 10 11 --sources mini --epochs 14 --rates "twice gentle, 16"        # what epochs.py chose on IMDb, here
    python bench/rates.py collect              # the summary in bench/results/rates.json, which the results page reads

mini  The 400 embedded training reviews, in thirds: each is asked once a seed, by a classifier of the other two thirds.
imdb  400 training reviews of IMDb, drawn by seed, and 2,000 idle ones to judge: those of `epochs.py`.
Both start from `wiki`, fine-tuned as `ulmfit` does by default, in batches of 32: on all embedded reviews but the tests, labels unused; on 2,000 reviews of
IMDb without labels. No test review is read.

Seed 0 tries eight kinds of rates, seed 1 five of them again: the best mean over both, both sources and all counts of epochs is chosen. Seeds 10 and 11 judge
it beside the rates that came before; what is asked are the same texts. Two processes may share the work, by `--sources`.
"""
import argparse, fcntl, functools, time
import epochs
from epochs import Path, classifier_learner, classifier_stages, drawn, fit, get_texts, lm_learner, lm_stages, machine, np, paired_difference, pd, \
    pretrained_lm, save_encoder, set_seed, steady_memory, text_corpus, text_dls, TextCorpus
from sklearn.model_selection import StratifiedKFold

out = Path(__file__).parent/'results/rates.json'
rates = {'paper': (1e-2, 2.6), 'double': (2e-2, 2.6), 'half': (5e-2, 2.6), 'steep': (1e-1, 2.6), 'even': (5e-3, 1.), 'medium': (2e-2, 1.5),
         'gentle': (1e-2, 1.2), 'warm': (1e-1, 2.6),
         'twice gentle, 16': (2e-2, 1.2)}                                          # rate of the head, ratio of neighbouring groups; the last by epochs.py
first = {'warm': 2e-2}                                                             # rate of the first stage, where the head alone learns, if another
patterns = {3: (1, 0, 0, 2), 5: (1, 1, 1, 2), 14: (2, 2, 2, 8)}
batch = {'twice gentle, 16': 16}                                                   # of batches, where not `bs`
sources, bs, folds, lm_seed = ('mini', 'imdb'), 32, 3, 42
choice, judges = (0, 1), (10, 11)

def stages(name, n):
    lr, ratio = rates[name]
    return classifier_stages((first.get(name, lr), lr, lr, lr), patterns[n], ratio=ratio)

@functools.cache
def mini(work):
    "Corpus, vocabulary, sizes and encoder of the embedded reviews; tests are left out"
    df = get_texts(seed=0)
    df = df[df.part != 'test'].reset_index(drop=True)
    corpus, (_, old, sizes), enc = text_corpus(df, progress=False), pretrained_lm('wiki'), work/'mini.safetensors'
    vocab = corpus.vocab(old)
    with open(work/'lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)                                            # one process makes it, the other waits
        if not enc.exists():
            set_seed(lm_seed)
            learn = lm_learner(text_dls(corpus, vocab, is_lm=True, bs=bs, seed=lm_seed, device='cpu'), 'wiki', .3)
            fit(learn, lm_stages((1, 4), (2e-2, 5e-3)), lm_seed)
            save_encoder(learn, enc)
    return corpus, vocab, sizes, enc

@functools.cache
def imdb(work): return epochs.prepared(work)

def thirds(df, seed):
    "The embedded reviews and the positions of each third of their labels"
    lab = df[df.part.eq('train')]
    return [(df, lab.index[va]) for _, va in StratifiedKFold(folds, shuffle=True, random_state=seed).split(lab.text, lab.label)]

def answers(things, asked, stages, bs, seed):
    "Right answers in the order of the texts: of each table in `asked`, the texts at its positions, by a classifier that has not seen them"
    (corpus, vocab, sizes, enc), res = things, []
    for df, valid in asked:
        set_seed(seed)
        dls = text_dls(TextCorpus(corpus.path, df, corpus.tok), vocab, bs=bs, valid=valid, seed=seed, device='cpu')
        learn = classifier_learner(dls, sizes, enc, .3)
        fit(learn, stages, seed)
        with learn.no_bar(): probs, y = learn.get_preds()
        res.append(pd.Series((probs.argmax(1) == y).numpy(), valid))
    return pd.concat(res).sort_index().to_numpy()

def one(source, name, n, seed, work):
    things = dict(mini=mini, imdb=imdb)[source](work[source])
    df = things[0].df
    if source == 'mini': asked = thirds(df, seed)
    else:
        idle, order = drawn(df, seed)
        used = np.isin(np.arange(len(df)), [*idle, *order[:400]])
        asked = [(df.assign(part=df.part.mask(df.part.eq('train') & ~used, 'unused')), idle)]
    return answers(things, asked, stages(name, n), batch.get(name, bs), seed)

load = functools.partial(epochs.load, out)
change = functools.partial(epochs.change, file=out, indent=1)

def key(o): return o['source'], o['rates'], o['epochs'], o['seed']

def run(work, some, names, ns, seeds):
    for seed in seeds:
        for source in some:
            for n in ns:
                for name in names:
                    if (source, name, n, seed) in map(key, load()['rows']): continue
                    t = time.process_time()
                    right = one(source, name, n, seed, work)
                    row = dict(source=source, rates=name, epochs=n, seed=seed, accuracy=float(right.mean()), n=len(right),
                               cpu_seconds=round(time.process_time() - t, 1), right=np.packbits(right).tobytes().hex())
                    change(lambda d: d['rows'].append(row))
                    print({k: v for k, v in row.items() if k != 'right'}, flush=True)

def collect():
    """Means over the seeds of the choice; of what both seeds have on all six counts the best mean; then that one beside `paper` and `steep`, on seeds that
    no choice has seen, though the texts asked are the same"""
    d = load()
    def bits(o): return np.unpackbits(np.frombuffer(bytes.fromhex(o['right']), np.uint8))[:o['n']].astype(int)
    right = {key(o): bits(o) for o in d['rows']}
    def grid(source, n, name, seeds): return np.array([right[source, name, n, s] for s in seeds])
    def has(source, n, name, seeds): return [s for s in seeds if (source, name, n, s) in right]
    cases = [(a, b) for a in sources for b in patterns]
    tried = [dict(source=a, epochs=b, rates=r, accuracy=float(grid(a, b, r, s).mean()), seeds=s)
             for a, b in cases for r in rates if (s := has(a, b, r, choice))]
    both = [r for r in rates if all(has(a, b, r, choice) == [*choice] for a, b in cases)]
    mean = {r: float(np.mean([o['accuracy'] for o in tried if o['rates'] == r])) for r in both}
    best = max(both, key=mean.get)
    judged = [dict(source=a, epochs=b, rates=r, accuracy=float(grid(a, b, r, s).mean()), lowest=float(grid(a, b, r, s).mean(1).min()), seeds=s)
              for a, b in cases for r in rates if (s := has(a, b, r, judges))]
    names = ('mean', 'low', 'high')
    differences = [dict(source=a, epochs=b, rates=best, less=r, seeds=s, **dict(zip(names, paired_difference(grid(a, b, best, s), grid(a, b, r, s)))))
                   for a, b in cases for r in rates if r != best and (s := has(a, b, r, judges)) and has(a, b, best, s) == s]
    how = {k: dict(zip(('lr', 'lr_ratio'), v)) | (dict(first=first[k]) if k in first else {}) | (dict(bs=batch[k]) if k in batch else {}) for k, v in rates.items()}
    command = ('python bench/rates.py run --seeds 0; python bench/rates.py run --seeds 1 --rates gentle steep paper double even; '
               'python bench/rates.py run --seeds 10 11 --rates gentle steep paper; '
               'python bench/rates.py run --seeds 10 11 --sources mini --epochs 14 --rates "twice gentle, 16"; python bench/rates.py collect')
    change(lambda d: d.update(
        tried=tried, mean=mean, chosen=best, judged=judged, differences=differences, patterns={str(k): v for k, v in patterns.items()},
        settings=dict(rates=how, bs=bs, drop_mult=.3, folds=folds, choice_seeds=choice, judge_seeds=judges, start='wiki'),
        machine=machine(), date=time.strftime('%Y-%m-%d'), command=command))
    for o in (tried, judged, differences): print(pd.DataFrame(o).round(3).to_string())
    print(mean, best)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=['run', 'collect'])
    p.add_argument('--mini', type=Path, default=Path('~/.fastai/rates').expanduser(), help='folder for its encoder')
    p.add_argument('--imdb', type=Path, default=Path('~/.fastai/epochs').expanduser(), help='that of epochs.py')
    p.add_argument('--sources', nargs='+', choices=sources, default=sources)
    p.add_argument('--rates', nargs='+', choices=rates, default=list(rates))
    p.add_argument('--epochs', nargs='+', type=int, choices=patterns, default=list(patterns))
    p.add_argument('--seeds', nargs='+', type=int, default=choice)
    a = p.parse_args()
    steady_memory()
    work = dict(mini=a.mini, imdb=a.imdb)
    for o in work.values(): o.mkdir(parents=True, exist_ok=True)
    if a.what == 'collect': collect()
    else: run(work, a.sources, a.rates, a.epochs, a.seeds)
