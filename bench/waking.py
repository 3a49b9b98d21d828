"""Gradual unfreezing and falling rates on IMDb: each with and without the other, and each way at its best rate.

    python bench/waking.py choose            # a rate for each way, on reviews that judge nothing else
    python bench/waking.py run               # 400 labels; bench/results/waking.json: goes on where it stopped, writes after each row
    python bench/waking.py collect           # the summary in it, which chapter 05 reads

Group by group or all at once, times one rate for all layers or 2.6 between neighbours: four ways to train the same classifier, of 14 epochs each. The
fifth is what `ulmfit` does: group by group, 1.2 between neighbours. All start from `movies`, as it ships, which has read the training and unlabelled reviews
of IMDb without labels: what is left of ULMFiT after the language model. Everything else is as in `labels.py`, the last 150 words of a review too. Labels are
drawn by seed, half of each class, and 2,000 training reviews that no seed draws judge. No test review is read.

`choose` tries six or seven rates for each way, on two draws of 400 labels and 1,000 reviews to judge, none of which judges later. Two
processes may share the work, by `--ways`.
"""
import argparse, fcntl, functools, json, os, time
from labels import *
from labels import classifier as built
from ulmfit_tut.compare import paired_difference
from ulmfit_tut.unfreeze import Stage, discriminative

out, source = results/'waking.json', 'imdb'
pool, n_held, n_choice, few, seeds, choice_seeds = 1600, 2000, 1000, 400, range(5), (100, 101)
sizes, epochs = (400,), settings[source]['epochs']
lrs = (2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)                                          # and 2e-1 where the rates fall, whose best was the last one
ways = {'group by group, falling rates': lambda lr: classifier_stages((lr,)*4, epochs),
        'group by group, falling by 1.2': lambda lr: classifier_stages((lr,)*4, epochs, ratio=1.2),
        'group by group, one rate': lambda lr: classifier_stages((lr,)*4, epochs, ratio=1),
        'all at once, falling rates': lambda lr: [Stage(0, sum(epochs), discriminative(lr))],
        'all at once, one rate': lambda lr: [Stage(0, sum(epochs), lr)]}
base = next(iter(ways))

def rates(way): return lrs + (2e-1,)*('falling' in way)

@functools.cache
def drawn():
    "Reviews, their corpus, positions of those that judge, in the end and for the choice, and of what each seed draws"
    df = get_texts('imdb', read=False, seed=0)
    df = df[df.part.eq('train')].reset_index(drop=True).assign(is_valid=False)
    held = subset(df, n_held, len(seeds))                                     # those of `reading.py`
    df.loc[held, 'part'] = 'test'                                             # what `labels.py` calls the texts that judge
    draws = {s: subset(df, pool, s) for s in seeds}
    choice = subset(df, n_choice, choice_seeds[0])
    df.loc[choice, 'part'] = 'test'
    draws |= {s: subset(df, few, s) for s in choice_seeds}
    used = np.concatenate([held, choice, *draws.values()])
    spare = np.setdiff1d(np.arange(len(df)), used)[-1]                        # `text_dls` wants a text held back; nothing looks at it
    rows = np.unique([*used, spare])
    one = df.iloc[rows].reset_index(drop=True)
    one.insert(0, 'text', [' '.join(read_text(f'{df.attrs["path"]}/{f}').split()[-last_words:]) for f in one.file])
    one.loc[rows == spare, 'is_valid'] = True
    one['part'] = 'train'
    at = lambda o: np.searchsorted(rows, o)
    return one, text_corpus(one, progress=False), at(held), at(choice), {s: at(d) for s, d in draws.items()}

def subset_of(draw, df, n, seed):
    "The first `n` of a draw in a random order, as many of each class"
    rng = np.random.default_rng(seed)
    order = [rng.permutation(draw[df.label[draw].eq(l)]) for l in ('neg', 'pos')]
    return np.sort(np.stack([o[:n//2] for o in order]).ravel())

def load(): return json.loads(out.read_text()) if out.exists() else dict(tried=[], rows=[])

def add(key, row):
    with open(Path(tempfile.gettempdir())/'ulmfit_tut-waking.lock', 'w') as lock:             # another process may write at the same time
        fcntl.flock(lock, fcntl.LOCK_EX)
        d = load()
        d[key].append(row)
        write_all(d)
    print({k: v for k, v in row.items() if k != 'right'}, flush=True)

def write_all(d):
    with replacing(out) as tmp: tmp.write_text(json.dumps(d, indent=1) + '\n')

def key_of(o): return o['way'], o['lr'], o['labels'], o['seed']

def once(key, way, lr, n, seed, work):
    "One training and its answers, if it is not there already"
    if (way, lr, n, seed) in map(key_of, load()[key]): return
    df, corpus, held, choice, draws = drawn()
    judges, keep = choice if key == 'tried' else held, subset_of(draws[seed], df, n, seed)
    vocab, net, enc = encoder(source, 'movies', corpus, 0, work)
    learn, t = built(source, corpus, vocab, net, enc, keep, seed), time.process_time()
    fit(learn, ways[way](lr), seed)
    t = time.process_time() - t
    right = ask(learn, judges) == df.label[judges].to_numpy()
    add(key, dict(way=way, lr=lr, labels=n, seed=seed, accuracy=float(right.mean()), n=len(judges), cpu_seconds=round(t, 1),
                  right=np.packbits(right).tobytes().hex()))

def choose(work, some):
    for seed in choice_seeds:
        for way in some:
            for lr in rates(way): once('tried', way, lr, few, seed, work)

def chosen(d):
    "The rate with the most right answers over the draws; of equals the smaller"
    mean = {k: [o['accuracy'] for o in d['tried'] if key_of(o)[:2] == k] for k in [(w, lr) for w in ways for lr in rates(w)]}
    if short := [k for k, o in mean.items() if len(o) < len(choice_seeds)]: raise SystemExit(f'{short[0]} was not tried on all draws: run choose first')
    return {w: max(rates(w), key=lambda lr: (np.mean(mean[w, lr]), -lr)) for w in ways}

def run(work, some, ns):
    best = chosen(load())
    for n in ns:
        for seed in seeds:
            for way in some: once('rows', way, best[way], n, seed, work)
            if base in some and ('words', None, n, seed) not in map(key_of, load()['rows']): words(n, seed)

def words(n, seed):
    "TF-IDF and logistic regression on the same labels"
    df, _, held, _, draws = drawn()
    keep, t = subset_of(draws[seed], df, n, seed), time.process_time()
    one = pd.concat([df.iloc[keep], df.iloc[held].assign(part='test')])
    right = tfidf(one, seed)[0].to_numpy() == df.label[held].to_numpy()
    add('rows', dict(way='words', lr=None, labels=n, seed=seed, accuracy=float(right.mean()), n=len(held), cpu_seconds=round(time.process_time() - t, 1),
                     right=np.packbits(right).tobytes().hex()))

def collect():
    d = load()
    best, table = chosen(d), {(o['way'], o['labels'], o['seed']): o for o in d['rows'] if o['way'] == 'words' or o['lr'] == chosen(d)[o['way']]}
    def grid(way, n): return np.array([np.unpackbits(np.frombuffer(bytes.fromhex(table[way, n, s]['right']), np.uint8))[:n_held] for s in seeds_of[n]], int)
    names = ('mean', 'low', 'high')
    seeds_of = {n: [s for s in seeds if all((w, n, s) in table for w in (*ways, 'words'))] for n in sizes}            # those that all ways have
    summary = [dict(way=w, labels=n, lr=best.get(w), seeds=seeds_of[n], **dict(zip(names, paired_difference(grid(w, n), 0*grid(w, n)))),
                    cpu_seconds=float(np.mean([table[w, n, s]['cpu_seconds'] for s in seeds_of[n]]))) for n in sorted(sizes) if seeds_of[n] for w in (*ways, 'words')]
    differences = [dict(way=w, less=base, labels=n, **dict(zip(names, paired_difference(grid(w, n), grid(base, n)))))
                   for n in sorted(sizes) if seeds_of[n] for w in (*ways, 'words') if w != base]
    write_all({**d, 'summary': summary, 'differences': differences, 'settings': {**{k: settings[source][k] for k in ('epochs', 'bs', 'drop_mult')}, 'tried_lrs': {w: rates(w) for w in ways}, 'chosen': best, 'choice_seeds': choice_seeds, 'n_choice': n_choice},
               'command': 'python bench/waking.py choose; python bench/waking.py run; python bench/waking.py collect', 'machine': machine(), 'date': time.strftime('%Y-%m-%d')})
    for o in (summary, differences): print(pd.DataFrame(o).round(3).to_string())

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=['choose', 'run', 'collect'])
    p.add_argument('--work', type=Path, default=Path('~/.fastai/waking').expanduser(), help='folder for the encoder')
    p.add_argument('--ways', nargs='+', choices=ways, default=list(ways)); p.add_argument('--labels', nargs='+', type=int, choices=sizes, default=sizes)
    a = p.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    if a.what == 'choose': choose(a.work, a.ways)
    elif a.what == 'run': run(a.work, a.ways, a.labels)
    else: collect()
