"""Which batch size, when a language model is fine-tuned to few texts: each size at its best learning rate.

    python bench/lm_batches.py run --seeds 0 --lrs 5e-3 1e-2 2e-2            # bench/results/lm-batches.json: goes on where it stopped, writes each row at once
    python bench/lm_batches.py run --seeds 0 --sizes 32 64 --lrs 4e-2        # where the best had been the highest on offer, or close to it
    python bench/lm_batches.py run --seeds 1 --sizes 8 16 --lrs 1e-2 2e-2    # the two best again
    python bench/lm_batches.py run --seeds 1 --sizes 32 64 --lrs 2e-2 4e-2
    python bench/lm_batches.py collect                                       # the summary in it, which the results page reads

`wiki` reads the embedded reviews for the epochs of `ulmfit`, one frozen and four unfrozen, in which the rate is varied. Of the texts held back every second
one chooses the rate of a batch size, by both seeds, and the others judge. Each is read alone, from a fresh state: a loader would cut the stream of texts
into as many rows as the batch has, and so ask each batch size another question. No test review is read.
"""
import argparse, functools, math, time
import epochs
from labels import fit, get_texts, lm_learner, lm_stages, machine, np, pd, pretrained_lm, results, set_seed, text_corpus, text_dls, torch
from ulmfit_tut.compare import paired_difference
from ulmfit_tut.runs import steady_memory

out = results/'lm-batches.json'
sizes, lrs, seeds = (8, 16, 32, 64), (5e-3, 1e-2, 2e-2, 4e-2), (0, 1)
lm_epochs, frozen_lr, drop_mult, base = (1, 4), 2e-2, .3, 16                         # the defaults of `ulmfit`

@functools.cache
def drawn():
    "Corpus without the tests, vocabulary, and positions of the texts held back"
    df = get_texts('mini', seed=0)
    df = df[df.part != 'test'].reset_index(drop=True)
    corpus = text_corpus(df, progress=False)
    return corpus, corpus.vocab(pretrained_lm('wiki')[1]), np.flatnonzero(df.is_valid)

def losses(learn, texts):
    "Sum of the losses of each text, read alone"
    res = []
    learn.model.eval()
    with torch.no_grad():
        for ids in texts:
            learn.model.reset()
            res.append(float(torch.nn.functional.cross_entropy(learn.model(ids[None, :-1])[0][0], ids[1:], reduction='sum')))
    return res

load = functools.partial(epochs.load, out)
change = functools.partial(epochs.change, file=out, indent=1)

def key(o): return o['bs'], o['lr'], o['seed']

def run(some, rates, draws):
    for seed, bs, lr in [(s, b, r) for s in draws for b in some for r in rates]:
        if (bs, lr, seed) in map(key, load()['rows']): continue
        corpus, vocab, held = drawn()
        set_seed(seed)
        learn, t = lm_learner(text_dls(corpus, vocab, is_lm=True, bs=bs, seed=seed, device='cpu'), 'wiki', drop_mult), time.process_time()
        fit(learn, lm_stages(lm_epochs, (frozen_lr, lr)), seed)
        row = dict(bs=bs, lr=lr, seed=seed, steps=len(learn.dls.train)*sum(lm_epochs), cpu_seconds=round(time.process_time() - t, 1),
                   losses=[round(o, 3) for o in losses(learn, [torch.as_tensor(learn.dls.valid.items[i]).long() for i in range(len(held))])])
        change(lambda d: d['rows'].append(row))
        print({k: v for k, v in row.items() if k != 'losses'}, round(math.exp(sum(row['losses'])/sum(asked())), 2), flush=True)

def asked():
    "Guesses in each text held back: one less than its tokens"
    corpus, _, held = drawn()
    return np.diff(corpus.offsets)[held] - 1

def collect():
    "The best rate of each size among those that all seeds have, and what it comes to on the texts that did not choose it"
    d, n = load(), asked()
    loss = {key(o): np.array(o['losses']) for o in d['rows']}
    def grid(bs, lr): return np.array([loss[bs, lr, s] for s in seeds])
    def perplexity(x, part): return float(np.exp(x[..., part].sum(-1).mean()/n[part].sum()))
    choice, judge = slice(0, None, 2), slice(1, None, 2)
    tried = [dict(bs=b, lr=lr, seeds=[s for s in seeds if (b, lr, s) in loss], perplexity=perplexity(np.array([loss[b, lr, s] for s in seeds if (b, lr, s) in loss]), slice(None)))
             for b in sizes for lr in lrs if (b, lr, seeds[0]) in loss]
    best = {b: min((o['lr'] for o in tried if o['bs'] == b and len(o['seeds']) == len(seeds)), key=lambda lr: perplexity(grid(b, lr), choice)) for b in sizes}
    per_guess = {b: grid(b, best[b])[:, judge]/n[judge].mean() for b in sizes}                   # their mean is the loss of a guess
    summary = [dict(bs=b, lr=best[b], steps=next(o['steps'] for o in d['rows'] if o['bs'] == b), perplexity=perplexity(grid(b, best[b]), judge),
                    by_seed=[perplexity(o, judge) for o in grid(b, best[b])], cpu_seconds=float(np.mean([o['cpu_seconds'] for o in d['rows'] if o['bs'] == b])),
                    **({} if b == base else dict(zip(('times', 'low', 'high'), map(float, np.exp(paired_difference(per_guess[b], per_guess[base]))))))) for b in sizes]
    change(lambda d: d.update(tried=tried, summary=summary, texts=dict(choice=len(n[choice]), judge=len(n[judge]), guesses=int(n[judge].sum())),
        settings=dict(start='wiki', epochs=lm_epochs, frozen_lr=frozen_lr, drop_mult=drop_mult, base=base, training_tokens=int(np.diff(drawn()[0].offsets).sum() - n.sum() - len(n))),
        machine=machine(), date=time.strftime('%Y-%m-%d'),
        command='; '.join(['python bench/lm_batches.py run --seeds 0 --lrs 5e-3 1e-2 2e-2', 'python bench/lm_batches.py run --seeds 0 --sizes 32 64 --lrs 4e-2',
            'python bench/lm_batches.py run --seeds 1 --sizes 8 16 --lrs 1e-2 2e-2', 'python bench/lm_batches.py run --seeds 1 --sizes 32 64 --lrs 2e-2 4e-2', 'python bench/lm_batches.py collect'])))
    for o in (tried, summary): print(pd.DataFrame(o).round(3).to_string())

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=['run', 'collect'])
    p.add_argument('--sizes', nargs='+', type=int, default=sizes); p.add_argument('--lrs', nargs='+', type=float, choices=lrs, default=lrs)
    p.add_argument('--seeds', nargs='+', type=int, default=seeds)
    a = p.parse_args()
    steady_memory()
    if a.what == 'collect': collect()
    else: run(a.sizes, a.lrs, a.seeds)
