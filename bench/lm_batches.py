"""Which batch size, when a language model is fine-tuned to few texts: each size at its best learning rate.

    python bench/lm_batches.py run         # bench/results/lm-batches.json: goes on where it stopped, writes after each row
    python bench/lm_batches.py collect     # the summary in it, which the results page reads

`wiki` reads the embedded reviews for the epochs of `ulmfit`, one frozen and four unfrozen. The rate of the unfrozen ones is varied; the frozen one keeps
its own, for it moves little. Of the texts held back every second one chooses the rate of a batch size, and the others judge. Each is read alone,
from a fresh state: a loader would cut the stream of texts into as many rows as the batch has, and so ask each batch size another question. No test review is read.
"""
import argparse, fcntl, functools, json, math, tempfile, time
from labels import Path, fit, get_texts, lm_learner, lm_stages, machine, np, pd, pretrained_lm, replacing, results, set_seed, text_corpus, text_dls, torch
from ulmfit_tut.compare import paired_difference
from ulmfit_tut.runs import steady_memory

out = results/'lm-batches.json'
sizes, lrs, seeds = (8, 16, 32, 64), (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2), (0, 1)
epochs, frozen_lr, drop_mult = (1, 4), 2e-2, .3                                      # the defaults of `ulmfit`

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

def load(): return json.loads(out.read_text()) if out.exists() else dict(rows=[])

def change(f):
    "Another process may write at the same time"
    with open(Path(tempfile.gettempdir())/'ulmfit_tut-lm-batches.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        d = load()
        f(d)
        with replacing(out) as tmp: tmp.write_text(json.dumps(d, indent=1) + '\n')

def key(o): return o['bs'], o['lr'], o['seed']

def run(some, rates, draws):
    for seed, bs, lr in [(s, b, r) for s in draws for b in some for r in rates]:
        if (bs, lr, seed) in map(key, load()['rows']): continue
        corpus, vocab, held = drawn()
        set_seed(seed)
        learn, t = lm_learner(text_dls(corpus, vocab, is_lm=True, bs=bs, seed=seed, device='cpu'), 'wiki', drop_mult), time.process_time()
        fit(learn, lm_stages(epochs, (frozen_lr, lr)), seed)
        row = dict(bs=bs, lr=lr, seed=seed, steps=len(learn.dls.train)*sum(epochs), cpu_seconds=round(time.process_time() - t, 1),
                   losses=[round(o, 3) for o in losses(learn, [torch.as_tensor(learn.dls.valid.items[i]).long() for i in range(len(held))])])
        change(lambda d: d['rows'].append(row))
        print({k: v for k, v in row.items() if k != 'losses'}, round(math.exp(sum(row['losses'])/sum(asked())), 2), flush=True)

def asked():
    "Guesses in each text held back: one less than its tokens"
    corpus, _, held = drawn()
    return np.diff(corpus.offsets)[held] - 1

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=['run', 'collect'])
    p.add_argument('--sizes', nargs='+', type=int, default=sizes); p.add_argument('--lrs', nargs='+', type=float, choices=lrs, default=lrs)
    p.add_argument('--seeds', nargs='+', type=int, default=seeds)
    a = p.parse_args()
    steady_memory()
    if a.what == 'collect': collect()
    else: run(a.sizes, a.lrs, a.seeds)
