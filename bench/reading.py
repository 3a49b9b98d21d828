"""What a language model gains by reading longer, and what a classifier gains by that: the same network after 0, 3, 12 and 39 million tokens.

    python bench/pretrain.py prepare wiki   --text ~/.fastai/data/enwiki-2015/wiki.txt --n_tokens 40_000_000
    python bench/pretrain.py prepare movies --imdb ~/.fastai/data/imdb
    python bench/pretrain.py train   wiki   --run 39m --n_tokens 39_000_000 --full_from 0.81 --bf16        # and 3m, 12m likewise
    python bench/pretrain.py train   movies --run 39m --init wiki --n_tokens 21_900_000 --lr 3e-3 --full_from 0.9 --bf16
    python bench/reading.py run              # bench/results/reading.json: goes on where it stopped, writes after each row; one at a time

The three lengths share one vocabulary and one order of articles, and each has a learning rate that rises and falls over its own length: none is a
stretch of another. The rate is the same for all, and the rise a tenth of the run, which for 3 million is too steep: see its perplexity. It gets no
classifier but `frozen`. `movies-shipped` is the package's; `movies-39m` reads on from `wiki-39m`.

Every classifier reads the last 150 words of training reviews of IMDb: labels drawn by seed, half of each class, the small draw within the large one,
and judged by 2,000 other training reviews, drawn once. No test review is read. `frozen` is a logistic regression on what the head would read, with
1,600 labels. With 400, three draws: `ulmfit` is the classifier woken stage by stage, `once` the same with all layers awake from the start, as `arms.py`
trains from scratch. All as in `labels.py`, whose settings were chosen before, on other texts. The language models named `movies` have read the training
and unlabelled reviews of IMDb, without labels, these among them.

`WORK/movies-39m.safetensors` is the file in `bench/models/`.
"""
import argparse, functools, json, time
from labels import *
from labels import classifier as built
from pretrain import CONFIG, make_model, perplexity, save_lm, state_name
from ulmfit_tut.unfreeze import Stage

out, cards, source = results/'reading.json', results.parent.parent/'ulmfit_tut/models', 'imdb'
few, pool, n_held, seeds, n_woken = 400, 1600, 2000, range(5), 3
lengths = dict(wiki=('0', '3m', '12m', '39m'), movies=('shipped', '39m'))

@functools.cache
def drawn():
    "Held-out reviews, and those that any seed draws; a seed's draw as positions"
    df = get_texts('imdb', read=False, seed=0)
    df = df[df.part.eq('train')].reset_index(drop=True).assign(is_valid=False)
    held = subset(df, n_held, len(seeds))                                                    # as no seed draws them
    df.loc[held, 'part'] = 'test'                                                            # what `labels.py` calls the texts that judge
    draws = {s: subset(df, pool, s) for s in seeds}
    used = np.concatenate([held, *draws.values()])
    spare = np.setdiff1d(np.arange(len(df)), used)[-1]                                       # `text_dls` wants a text held back; nothing looks at it
    rows = np.unique([*used, spare])
    one = df.iloc[rows].reset_index(drop=True)
    one.insert(0, 'text', [' '.join(read_text(f'{df.attrs["path"]}/{f}').split()[-last_words:]) for f in one.file])
    one.loc[rows == spare, 'is_valid'] = True
    return one, text_corpus(one, progress=False), {s: np.searchsorted(rows, d) for s,d in draws.items()}

def weights(work, name, run):
    "Words and weights of a language model that `pretrain.py` trained; `0` is the network before its first step"
    if run == 'shipped': sd,vocab,_ = pretrained_lm(name); return vocab, sd
    vocab = json.loads((work/name/'vocab.json').read_text(encoding='utf8'))
    torch.manual_seed(0)
    return vocab, make_model(1.).state_dict() if run == '0' else torch.load(work/name/state_name(False, run), weights_only=True)['model']

def rows_of(model): return [o for o in json.loads(out.read_text())['rows'] if o['model'] == model] if out.exists() else []

def note(kind, row):
    d = json.loads(out.read_text()) if out.exists() else dict(models=[], rows=[])
    d[kind].append(row)
    print({k: v for k,v in row.items() if k not in ('right', 'log')}, flush=True)
    with replacing(out) as tmp:
        tmp.write_text(json.dumps({**d, 'settings': settings[source], 'few': few, 'pool': pool, 'n_held': n_held, 'command': 'python bench/reading.py run',
                                   'machine': machine(), 'date': time.strftime('%Y-%m-%d')}, indent=1) + '\n')

def model_row(work, name, run):
    m = make_model(0.)
    m.load_state_dict(weights(work, name, run)[1])
    if run == '0': s = dict(run={}, step=0, secs=0., log=[])
    elif run == 'shipped': s = json.loads((cards/f'{name}.json').read_text()); s |= dict(step=s['run']['steps'], secs=s['seconds'])
    else: s = torch.load(work/name/state_name(False, run), weights_only=True)
    tokens = s['step']*s['run'].get('bs', 0)*s['run'].get('seq_len', 0)
    return dict(model=f'{name}-{run}', tokens=tokens, minutes=round(s['secs']/60, 1), perplexity=perplexity(m, np.load(work/name/'valid.npy')),
                run=s['run'], log=[{k: o[k] for k in ('tokens', 'valid_ppl')} for o in s['log']])

def subset_of(draw, df, n, seed):
    "The first `n` of a draw in a random order, as many of each class"
    rng = np.random.default_rng((seed, n))
    return np.sort(np.concatenate([rng.permutation(draw[df.label[draw].eq(l)])[:n//2] for l in ('neg', 'pos')]))

def run(work, only):
    df, corpus, draws = drawn()
    held = np.flatnonzero(df.part.eq('test'))
    def add(model, arm, labels, seed, f):
        if any((o['arm'], o['labels'], o['seed']) == (arm, labels, seed) for o in rows_of(model)): return
        t = time.process_time()
        right = f() == df.label[held].to_numpy()
        note('rows', dict(model=model, arm=arm, labels=labels, seed=seed, accuracy=float(right.mean()), n=len(held),
                          cpu_seconds=round(time.process_time() - t, 1), right=np.packbits(right).tobytes().hex()))
    for seed in seeds if not only or 'words' in only else []:
        for n in (few, pool):
            keep = draws[seed] if n == pool else subset_of(draws[seed], df, n, seed)
            add('words', 'tfidf', n, seed, lambda: tfidf(df.iloc[np.sort(np.concatenate([keep, held]))], seed)[0].to_numpy())
    for name, run in [(n, r) for n,rs in lengths.items() for r in rs]:
        model = f'{name}-{run}'
        if only and model not in only: continue
        if not any(o['model'] == model for o in (json.loads(out.read_text())['models'] if out.exists() else [])): note('models', model_row(work, name, run))
        file = work/f'{model}.safetensors'
        vocab, sd = weights(work, name, run)
        save_lm(file, name, vocab, sd)
        enc = save_encoder(lm_learner(text_dls(corpus, vocab, is_lm=True, device='cpu'), file), work/f'{model}-encoder.safetensors')
        x = None
        for seed in seeds:
            def frozen():
                nonlocal x
                if x is None: x = pooled(built(source, corpus, vocab, CONFIG, enc, draws[0], 0), np.arange(len(df)))
                return regression(x[draws[seed]], df.label[draws[seed]], x[held], seed)
            add(model, 'frozen', pool, seed, frozen)
        for seed in range(n_woken) if run != '3m' else []:
            keep, (lrs, epochs) = subset_of(draws[seed], df, few, seed), map(settings[source].get, ('lrs', 'epochs'))
            for arm, stages in dict(ulmfit=classifier_stages(lrs, epochs), once=[Stage(0, sum(epochs), lrs[0]/2)]).items():
                if (run, arm) == ('0', 'ulmfit'): continue                                       # nothing in it to wake slowly
                def trained():
                    learn = built(source, corpus, vocab, CONFIG, enc, keep, seed)
                    fit(learn, stages, seed)
                    return ask(learn, held)
                add(model, arm, few, seed, trained)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=['run'])
    p.add_argument('--work', type=Path, default=Path('~/.fastai/pretrain').expanduser(), help="`pretrain.py`'s")
    p.add_argument('--models', nargs='+', help='some of them: words wiki-0 wiki-3m wiki-12m wiki-39m movies-shipped movies-39m')
    a = p.parse_args()
    run(a.work, a.models)
