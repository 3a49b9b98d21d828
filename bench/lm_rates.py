"""Which learning rate, when the language model reads the texts in: by the accuracy of the classifier that follows.

    python bench/lm_rates.py run               # bench/results/lm-rates.json: goes on where it stopped, and writes each row at once
    python bench/lm_rates.py collect           # the summary in it, which the results page reads

mini  The embedded reviews but the tests. The 400 with labels are asked, in thirds, as in `rates.py`.
imdb  By seed 400 training reviews of IMDb and 400 without labels, their last 150 words, as a user might have them; the 2,000 idle ones of `epochs.py` are asked.
`wiki` reads them in as `ulmfit` does by default, but for the rate of the unfrozen epochs. What follows is the default too. Everything is drawn anew for
each seed: the labels, the language model, the classifier. Seeds 0 and 1 choose, 10 and 11 judge. No test review is read.
Two processes may share the work, by `--sources`.
"""
import argparse, functools, time
import epochs, rates
from epochs import Path, classifier_stages, drawn, fit, get_texts, lm_learner, lm_stages, machine, np, paired_difference, pd, pretrained_lm, save_encoder, \
    set_seed, steady_memory, text_corpus, text_dls, TextCorpus

out = Path(__file__).parent/'results/lm-rates.json'
lrs, sources, choice, judges = (5e-3, 1e-2, 2e-2), ('mini', 'imdb'), (0, 1), (10, 11)
lm_epochs, frozen_lr, bs, drop_mult, default = (1, 4), 2e-2, 16, .3, 5e-3
stages, n_lab, n_unsup = classifier_stages((1e-2,)*4, (2, 2, 2, 8), ratio=1.2), 400, 400

@functools.cache
def texts(source, seed, work):
    "Corpus whose train and unsup a language model may read; on IMDb the idle reviews are marked, for nothing reads them but the judge"
    if source == 'mini':
        df = get_texts(seed=0)
        return text_corpus(df[df.part != 'test'].reset_index(drop=True), progress=False)
    df = epochs.texts(work)
    idle, order = drawn(df, seed)
    mine, unsup = order[:n_lab], np.random.default_rng(seed).permutation(np.flatnonzero(df.part.eq('unsup')))[:n_unsup]
    df.loc[idle, 'part'] = 'idle'
    df.loc[np.concatenate([mine[::10], unsup[::10]]), 'is_valid'] = True
    return text_corpus(df.iloc[np.sort(np.concatenate([idle, mine, unsup]))].reset_index(drop=True), progress=False)

def asked(source, df, seed):
    "Table and positions to judge, of each classifier"
    if source == 'mini': return rates.thirds(df, seed)
    idle = np.flatnonzero(df.part.eq('idle'))
    return [(df.assign(part=df.part.replace('idle', 'train')), idle)]

load = functools.partial(epochs.load, out)
change = functools.partial(epochs.change, file=out, indent=1)

def key(o): return o['source'], o['lr'], o['seed']

def run(work, some, tried, seeds):
    for seed, source, lr in [(s, o, r) for s in seeds for o in some for r in tried]:
        if (source, lr, seed) in map(key, load()['rows']): continue
        corpus, (_, old, sizes), enc = texts(source, seed, work), pretrained_lm('wiki'), work/f'{source}.safetensors'
        vocab, t = corpus.vocab(old), time.process_time()
        set_seed(seed)
        learn = lm_learner(text_dls(corpus, vocab, is_lm=True, bs=bs, seed=seed, device='cpu'), 'wiki', drop_mult)
        fit(learn, lm_stages(lm_epochs, (frozen_lr, lr)), seed)
        with learn.no_bar(): perplexity = float(np.exp(learn.validate()[0]))
        save_encoder(learn, enc)
        lm_seconds = time.process_time() - t
        right = rates.answers((corpus, vocab, sizes, enc), asked(source, corpus.df, seed), stages, bs, seed)
        row = dict(source=source, lr=lr, seed=seed, perplexity=perplexity, steps=len(learn.dls.train)*sum(lm_epochs), accuracy=float(right.mean()), n=len(right),
                   lm_cpu_seconds=round(lm_seconds, 1), cpu_seconds=round(time.process_time() - t, 1), right=np.packbits(right).tobytes().hex())
        change(lambda d: d['rows'].append(row))
        print({k: v for k, v in row.items() if k != 'right'}, flush=True)

def collect():
    "Means of the choice; the best mean over both sources; then it and the default on the seeds that did not choose, and on all"
    d = load()
    right = {key(o): np.unpackbits(np.frombuffer(bytes.fromhex(o['right']), np.uint8))[:o['n']].astype(int) for o in d['rows']}
    ppl = {key(o): o['perplexity'] for o in d['rows']}
    def grid(source, lr, seeds): return np.array([right[source, lr, s] for s in seeds])
    summary = [dict(source=o, lr=lr, **{f'{what}_{k}': float(f(lr)) for k, seeds in dict(choice=choice, judges=judges).items() for what, f in dict(
        accuracy=lambda lr: grid(o, lr, seeds).mean(), perplexity=lambda lr: np.exp(np.mean([np.log(ppl[o, lr, s]) for s in seeds]))).items()})
        for o in sources for lr in lrs]
    mean = {lr: float(np.mean([o['accuracy_choice'] for o in summary if o['lr'] == lr])) for lr in lrs}
    best = max(lrs, key=mean.get)
    names = 'mean', 'low', 'high'
    differences = [dict(source=o, lr=lr, less=default, seeds=seeds, **dict(zip(names, paired_difference(grid(o, lr, seeds), grid(o, default, seeds)))))
                   for o in sources for lr in lrs if lr != default for seeds in (judges, choice + judges)]
    change(lambda d: d.update(summary=summary, mean=mean, chosen=best, differences=differences,
        settings=dict(start='wiki', lm_epochs=lm_epochs, frozen_lr=frozen_lr, bs=bs, drop_mult=drop_mult, default=default, stages=[list(map(str, o)) for o in stages],
                      labels=n_lab, unlabelled=n_unsup, choice_seeds=choice, judge_seeds=judges),
        machine=machine(), date=time.strftime('%Y-%m-%d'), command='python bench/lm_rates.py run; python bench/lm_rates.py collect'))
    for o in (summary, differences): print(pd.DataFrame(o).round(3).to_string())
    print(mean, best)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=['run', 'collect'])
    p.add_argument('--work', type=Path, default=Path('~/.fastai/lm_rates').expanduser())
    p.add_argument('--sources', nargs='+', choices=sources, default=sources); p.add_argument('--lrs', nargs='+', type=float, choices=lrs, default=lrs)
    p.add_argument('--seeds', nargs='+', type=int, default=choice + judges)
    a = p.parse_args()
    steady_memory()
    a.work.mkdir(parents=True, exist_ok=True)
    if a.what == 'collect': collect()
    else: run(a.work, a.sources, a.lrs, a.seeds)
