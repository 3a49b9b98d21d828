"""What each part of ULMFiT is worth on the embedded reviews: every arm over ten seeds, by the same program that users run.

    python bench/arms.py choose --start wiki  # settings, by cross-validation on train: bench/results/settings-wiki.json; also movies, none.
                                              # of wiki and movies those of four stages, and those of all layers at once
    python bench/arms.py run                  # every arm, seeds 0 to 9: a run folder each, under --work, and its answers in bench/arms-runs.csv;
                                              # goes on where it stopped, with that file on another machine too
    python bench/arms.py collect              # bench/results/arms.csv and arms.json, which the pages read
    python bench/arms.py run --source imdb_2000 ...   # the same on 1,000 + 1,000 + 2,000 reviews of IMDb, chosen by seed
    python bench/arms.py run --choice once --only wiki movies tfidf # four stages beside all layers at once, and `collect` likewise: arms-once.json

`choose` never reads a test text. `run` tests each arm once a seed. `--part 0/2` and `--part 1/2` share the runs between two processes.
Rows of other settings than today's are passed over; those of an older loader or network are to be deleted by hand. The same seed gives other
answers on another kind of processor, so each row names its own.
"""
import argparse, csv, fcntl, json, os, platform, time, warnings
from importlib.metadata import version
from pathlib import Path
warnings.filterwarnings('ignore', category=FutureWarning)
import numpy as np, pandas as pd, torch
from fastai.text.all import set_seed, untar_data, URLs
from sklearn.model_selection import StratifiedKFold
from ulmfit_tut.compare import majority, paired_difference, tfidf
from ulmfit_tut.batches import text_dls
from ulmfit_tut.corpus import text_corpus
from ulmfit_tut.data import get_texts, texts_from_folder
from ulmfit_tut.encoder import save_encoder
from ulmfit_tut.files import replacing
from ulmfit_tut.lm import lm_learner, pretrained_lm
from ulmfit_tut.predict import predict
from ulmfit_tut.ulmfit import classifier_learner, ulmfit
from ulmfit_tut.unfreeze import Stage, classifier_stages, fit_stages, lm_stages

results, runs = Path(__file__).parent/'results', Path(__file__).parent/'arms-runs.csv'
SEEDS = range(10)
names = dict(majority='majority class', tfidf='TF-IDF + logistic regression', scratch='same network from scratch', direct='wiki, no LM fine-tuning',
             wiki='ULMFiT from wiki', movies='ULMFiT from movies')
starts = dict(scratch='none', direct='wiki', wiki='wiki', movies='movies')
once = {f'{a}_once': a for a in ('direct', 'wiki', 'movies')}             # of `--choice once`: the same encoder, its classifier trained with all layers awake
names.update({k: f'{names[a]}, all layers at once' for k, a in once.items()})

def arms_of(choice, only):
    "Each arm that is asked for; beside it its twin, where the choice has twins"
    return [o for a in only or (*starts, 'tfidf') for o in (a, f'{a}_once') if o == a or o in once and choice == 'once']

# What `choose` chooses from. The first classifier setting is the tutorial's.
lm_grid = [dict(lm_epochs=(1, 2), lm_lrs=(2e-2, 5e-3)), dict(lm_epochs=(1, 2), lm_lrs=(1e-2, 2e-3)), dict(lm_epochs=(1, 4), lm_lrs=(2e-2, 1e-2)),
           dict(lm_epochs=(1, 8), lm_lrs=(2e-2, 1e-2))]
clas_grid = [dict(epochs=(1, 1, 1, 2), lrs=(2e-2, 1e-2, 5e-3, 1e-3), bs=32, drop_mult=0.3),
             dict(epochs=(1, 1, 1, 3), lrs=(2e-2, 1e-2, 5e-3, 5e-3), bs=16, drop_mult=0.3),
             dict(epochs=(2, 2, 2, 6), lrs=(2e-2, 1e-2, 5e-3, 5e-3), bs=16, drop_mult=0.5),
             dict(epochs=(2, 2, 2, 8), lrs=(2e-2, 2e-2, 2e-2, 2e-2), bs=16, drop_mult=0.3),
             dict(epochs=(2, 2, 2, 16), lrs=(2e-2, 2e-2, 2e-2, 2e-2), bs=16, drop_mult=0.3),
             dict(epochs=(2, 2, 2, 16), lrs=(2e-2, 2e-2, 2e-2, 2e-2), bs=16, drop_mult=0.5),
             *[dict(epochs=(2, 2, 2, e), lrs=(lr,)*4, lr_ratio=r, bs=bs, drop_mult=d)                     # the first of these was once the default of `ulmfit`
               for e, lr, r, bs, d in [(8, 1e-2, 1.2, 32, 0.3), (16, 1e-2, 1.2, 16, 0.3), (16, 1e-2, 1.2, 16, 0.5), (16, 5e-3, 1., 16, 0.5), (32, 1e-2, 1.2, 16, 0.5), (8, 2e-2, 1.2, 16, 0.3)]]]
once_grid = [dict(epochs=(0, 0, 0, e), lrs=(lr,)*4, lr_ratio=1., bs=16, drop_mult=d)
             for e, lr, d in [(10, 2e-3, 0.3), (10, 5e-3, 0.3), (20, 2e-3, 0.3), (20, 2e-3, 0.5), (20, 5e-3, 0.3)]]
scratch_grid = [dict(epochs=(1, 1, 1, 2), lrs=(2e-2, 1e-2, 5e-3, 1e-3), bs=32, drop_mult=0.3),          # `lrs[1]` throughout, all layers at once
                dict(epochs=(2, 2, 2, 6), lrs=(2e-2, 5e-3, 5e-3, 5e-3), bs=16, drop_mult=0.5),
                dict(epochs=(2, 2, 2, 16), lrs=(2e-2, 1e-2, 1e-2, 1e-2), bs=16, drop_mult=0.3),
                dict(epochs=(2, 2, 2, 16), lrs=(2e-2, 5e-3, 5e-3, 5e-3), bs=16, drop_mult=0.3),
                dict(epochs=(2, 2, 2, 32), lrs=(2e-2, 1e-2, 1e-2, 1e-2), bs=16, drop_mult=0.3),
                dict(epochs=(2, 2, 2, 8), lrs=(2e-2,)*4, bs=16, drop_mult=0.3)]

def imdb_2000(seed=0):
    "1,000 train, 1,000 test and 2,000 unsup reviews of IMDb, half of each class, chosen by `seed`"
    df, rng = texts_from_folder(untar_data(URLs.IMDB)), np.random.default_rng(seed)
    take = [rng.choice(np.flatnonzero((df.part == p) & (df.label == l)), n, replace=False)
            for p, l, n in [('train', 'neg', 500), ('train', 'pos', 500), ('test', 'neg', 500), ('test', 'pos', 500), ('unsup', '', 2000)]]
    return df.iloc[np.sort(np.concatenate(take))].drop(columns=['file', 'is_valid'])

def source(name): return (imdb_2000(), 'part') if name == 'imdb_2000' else (name, None)

def machine():
    return dict(cores=os.cpu_count(), threads=torch.get_num_threads(), python=platform.python_version(), torch=torch.__version__, fastai=version('fastai'),
                processor=platform.machine())

# --- settings, from train alone -----------------------------------------------------------------------------------------------------------

def _quiet(learn, stages, seed):
    with learn.no_bar(), learn.no_logging(): return fit_stages(learn, [o._replace(moms=(0.95, 0.85, 0.95)) for o in stages], seed)[0]       # as `ulmfit`

def choose(work, start, folds=3):
    "Language model settings by perplexity on its validation part, classifier settings by accuracy over folds of train"
    df = get_texts(seed=0)
    df = df[df.part != 'test'].reset_index(drop=True)
    corpus, lab, file = text_corpus(df), df[df.part == 'train'], results/f'settings-{start}.json'
    before = json.loads(file.read_text()) if file.exists() else {}
    rows = before.get('tried', [])
    def tried(what, g):
        "The row of a setting that an earlier call has tried; a grid may grow"
        return next((r for r in rows if r['what'] == what and all(r.get(k) == (list(v) if isinstance(v, tuple) else v) for k, v in g.items())), None)
    def note(**r): rows.append(r); print(json.dumps(r), flush=True); save()
    def save(**best):
        results.mkdir(exist_ok=True)
        with replacing(file) as tmp:
            tmp.write_text(json.dumps(dict(start=start, **({k: before[k] for k in ('best', 'at_once') if k in before} | best), tried=rows, folds=folds, seed=0, machine=machine(), date=time.strftime('%Y-%m-%d')), indent=1) + '\n')
    (_, old, sizes), enc, lms = pretrained_lm(start), None, []
    vocab = corpus.vocab(old)
    if start != 'none':
        enc = save_encoder(lm_learner(text_dls(corpus, vocab, is_lm=True, device='cpu'), start), work/f'choose-{start}.safetensors')
        for g in lm_grid:
            if r := tried('language model', g): lms.append(r['perplexity'][-1]); continue
            set_seed(0)
            learn = lm_learner(text_dls(corpus, vocab, is_lm=True, device='cpu'), start)
            t, h = time.time(), _quiet(learn, lm_stages(**{k[3:]: v for k, v in g.items()}), 0)
            lms.append(float(h.perplexity.iloc[-1]))
            note(start=start, what='language model', **g, perplexity=h.perplexity.tolist(), seconds=time.time() - t)
    grid, accs = [*clas_grid, *once_grid] if enc else scratch_grid, []
    for g in grid:
        if r := tried('classifier', g): accs.append(r['accuracy']); continue
        t, right = time.time(), []
        for fold, (_, va) in enumerate(StratifiedKFold(folds, shuffle=True, random_state=0).split(lab.text, lab.label)):
            set_seed(fold)
            dls = text_dls(corpus, vocab, bs=g['bs'], valid=lab.index[va], device='cpu')
            learn = classifier_learner(dls, sizes, enc, g['drop_mult'])
            stages = classifier_stages(g['lrs'], g['epochs'], ratio=g.get('lr_ratio', 2.6)) if enc else [Stage(0, sum(g['epochs']), g['lrs'][1])]
            right.append(_quiet(learn, stages, fold).accuracy.tolist())
        accs.append(np.mean([o[-1] for o in right]))
        note(start=start, what='classifier', **g, accuracy=accs[-1], folds=right, seconds=time.time() - t)
    n, lm = len(clas_grid) if enc else len(grid), lm_grid[int(np.argmin(lms))] if lms else {}
    save(best={**grid[int(np.argmax(accs[:n]))], **lm}, **(dict(at_once=grid[n + int(np.argmax(accs[n:]))]) if accs[n:] else {}))

# --- every arm, every seed ----------------------------------------------------------------------------------------------------------------

def settings(arm, choice='settings'):
    "As chosen; of `once` those that its results name, once there are some: the two ways had about as many epochs in them"
    if choice == 'once' and (done := results/'arms-once.json').exists(): best = json.loads(done.read_text())['settings'][arm]
    else:
        d = json.loads((results/f'settings-{starts[once.get(arm, arm)]}.json').read_text())
        best = {**d['best'], **(d['at_once'] if arm in once else {})}
    return {'lr_ratio': 2.6, **{k: tuple(v) if isinstance(v, list) else v for k, v in best.items()}, **(dict(lm_epochs=(0, 0)) if arm in ('scratch', 'direct', 'direct_once') else {})}

def at_once(base, out, arm, data, split, seed, c):
    "The classifier anew, from the encoder of a finished run; its seconds with those of the run's language model"
    df, t = get_texts(data, split_col=split, seed=seed), time.time()
    _, old, sizes = pretrained_lm(starts[once[arm]])
    corpus = text_corpus(df)
    set_seed(seed)
    learn = classifier_learner(text_dls(corpus, corpus.vocab(old), bs=c['bs'], seed=seed, device='cpu'), sizes, base/'encoder.safetensors', c['drop_mult'])
    _quiet(learn, classifier_stages(c['lrs'], c['epochs'], ratio=c['lr_ratio']), seed)
    test = df[df.part.eq('test')]
    frame = test[['text', 'label']].assign(predicted=predict(learn, test.text).label)
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out/'predictions.csv') as tmp: frame.to_csv(tmp, index=False)
    return time.time() - t + pd.read_csv(base/'timings.csv').query('phase=="lm"').seconds.sum()

def cpu():
    f = Path('/proc/cpuinfo')
    return next((o.split(':')[1].strip() for o in f.read_text().splitlines() if o.startswith('model name')), '') if f.exists() else platform.processor()

def told(arm, choice): return '' if arm == 'tfidf' else json.dumps(settings(arm, choice), sort_keys=True)

def answers(src, arm, choice):
    "Seed -> row of the runs of an arm with its settings of today"
    if not runs.exists(): return {}
    rows = pd.read_csv(runs, dtype=dict(right=str), keep_default_na=False).query('source == @src and arm == @arm')
    return {o.seed: o for o in rows[rows.settings == told(arm, choice)].itertuples()}

def note(src, arm, seed, choice, out, seconds):
    "Two processes may end a run at once"
    p = pd.read_csv(out/'predictions.csv', keep_default_na=False)
    row = dict(source=src, arm=arm, seed=seed, seconds=round(seconds, 1), n=len(p), right=np.packbits(p.label == p.predicted).tobytes().hex(),
               settings=told(arm, choice), cpu=cpu(), torch=torch.__version__, date=time.strftime('%Y-%m-%d'))
    with open(runs, 'a+', newline='') as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        w = csv.DictWriter(f, row, lineterminator='\n')
        if not f.tell(): w.writeheader()
        w.writerow(row)
    print(f'{arm} seed {seed}: {seconds:.0f} s', flush=True)

def run(work, src, part, only, choice):
    "A run folder for each arm and seed, test predictions of the two baselines beside them; what is in the file of answers is not run again"
    k, n = map(int, part.split('/'))
    data, split = source(src)
    jobs = [(a, s) for s in SEEDS for a in (*starts, 'tfidf') if not only or a in only]
    for arm, seed in [(o, s) for a, s in jobs[k::n] for o in arms_of(choice, [a])]:
        out = work/src/f'{arm}-{seed}'
        whole = (out/'predictions.csv').exists() and (arm not in starts or (out/'report.html').exists())
        if seed in answers(src, arm, choice) and (whole or not (choice == 'once' and arm in once.values())): continue                # its twin wants the encoder
        t, cost = time.time(), None
        if arm in once: cost = at_once(work/src/f'{once[arm]}-{seed}', out, arm, data, split, seed, settings(arm, choice))
        elif arm == 'tfidf':
            df = get_texts(data, split_col=split, seed=seed)
            pred, params = tfidf(df, seed)
            out.mkdir(parents=True, exist_ok=True)
            (out/'config.json').write_text(json.dumps({k: str(v) for k, v in params.items()}))
            with replacing(out/'predictions.csv') as tmp: df.loc[pred.index, ['text', 'label']].assign(predicted=pred).to_csv(tmp, index=False)
        else: ulmfit(data, out, starts[arm], split_col=split, seed=seed, compare=(), device='cpu', progress=False, **settings(arm, choice))
        if seed not in answers(src, arm, choice): note(src, arm, seed, choice, out, cost or time.time() - t)

def collect(work, src, only, choice):
    "Accuracy of each arm and seed that all arms have run; mean, interval over texts and seeds, and paired differences"
    rows, right, all_arms = [], {}, arms_of(choice, only)
    done = {a: answers(src, a, choice) for a in all_arms}
    if not (seeds := [s for s in SEEDS if all(s in o for o in done.values())]): raise SystemExit(f'No seed of which all arms have run: { {a: [*o] for a,o in done.items()} }')
    for arm in all_arms:
        for seed in seeds:
            o = done[arm][seed]
            right.setdefault(arm, []).append(np.unpackbits(np.frombuffer(bytes.fromhex(o.right), np.uint8), count=o.n).astype(float))
            rows.append(dict(arm=arm, name=names[arm], starts_from=starts.get(once.get(arm, arm), ''), seed=seed, accuracy=right[arm][-1].mean(), n=o.n))
    df = get_texts(source(src)[0], split_col=source(src)[1])
    most = (majority(df) == df.label[df.part == 'test']).to_numpy(float)
    right['majority'] = [most]*len(seeds)
    summary = [dict(arm=a, name=names[a], accuracy=float(np.mean(r)), sd_over_seeds=float(np.std([o.mean() for o in r], ddof=1)), seeds=len(r), n=len(r[0]),
                    **dict(zip(('mean', 'low', 'high'), map(float, paired_difference(r, np.zeros_like(r)))))) for a, r in right.items()]
    pairs = [('direct', 'scratch'), ('wiki', 'direct'), ('movies', 'wiki'), ('movies', 'tfidf'), ('wiki', 'tfidf'),
             *once.items(), ('movies_once', 'tfidf'), ('movies_once', 'wiki_once'), ('wiki_once', 'direct_once'), ('direct_once', 'scratch')]
    pairs = [o for o in pairs if {*o} <= {*all_arms}]
    level = 1 - .05/len(pairs)                                                      # as many intervals are asked for, so each is also given wider (Bonferroni)
    diffs = [dict(a=a, b=b, **dict(zip(('difference', 'low', 'high'), map(float, paired_difference(right[a], right[b])))),
                  wide=[*map(float, paired_difference(right[a], right[b], level=level)[1:])]) for a, b in pairs]
    secs = {a: float(np.median([done[a][s].seconds for s in seeds])) for a in sorted(all_arms)}
    stem = 'arms' + f'-{src}'*(src != 'mini') + f'-{choice}'*(choice != 'settings')
    pd.DataFrame(rows).to_csv(results/f'{stem}.csv', index=False)
    with replacing(results/f'{stem}.json') as tmp:
        tmp.write_text(json.dumps(dict(source=src, seeds=seeds, summary=summary, differences=diffs, level_wide=level, median_seconds=secs, settings={a: settings(a, choice) for a in all_arms if a != 'tfidf'},
                                       command=f'python bench/arms.py run --source {src}' + (f' --choice {choice} --only {" ".join(only)}' if choice != 'settings' else ''), machine=machine(), processors=sorted({done[a][s].cpu for a in all_arms for s in seeds}), date=time.strftime('%Y-%m-%d')), indent=1) + '\n')
    print(pd.DataFrame(summary).round(3).to_string(), pd.DataFrame(diffs).round(3).to_string(), sep='\n\n')

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=['choose', 'run', 'collect'])
    p.add_argument('--work', type=Path, default=Path('~/.fastai/arms').expanduser()); p.add_argument('--source', default='mini', choices=['mini', 'imdb_2000'])
    p.add_argument('--start', default='wiki', choices=['none', 'wiki', 'movies']); p.add_argument('--part', default='0/1'); p.add_argument('--only', nargs='*', choices=[*starts, 'tfidf'])
    p.add_argument('--choice', default='settings', choices=['settings', 'once'])
    a = p.parse_args()
    a.work = a.work/a.choice if a.choice != 'settings' else a.work
    (a.work/a.source).mkdir(parents=True, exist_ok=True)
    if a.what == 'choose': choose(a.work, a.start)
    if a.what == 'run': run(a.work, a.source, a.part, a.only, a.choice)
    if a.what == 'collect': collect(a.work, a.source, a.only, a.choice)
