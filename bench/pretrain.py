"""The small language models that the package ships: text -> tokens -> AWD-LSTM -> fp16 safetensors.

    python bench/pretrain.py prepare wiki   --text ~/.fastai/data/enwiki-2015/wiki.txt --n_tokens 16_000_000
    python bench/pretrain.py prepare movies --imdb ~/.fastai/data/imdb
    python bench/pretrain.py train   wiki   --n_tokens 12_000_000
    python bench/pretrain.py train   movies --init wiki --n_tokens 14_000_000 --lr 3e-3 --full_from 0.96
    python bench/pretrain.py train   wiki   --n_tokens 12_000_000 --backwards                               # and movies, likewise
    python bench/pretrain.py card    wiki            # fp16 file, perplexities, trigram baseline, model card; then for movies, and for movies --backwards

Everything goes under `--work` (default `~/.fastai/pretrain`). `train` saves every `--every` steps and, called again, goes on from there.
"""
import argparse, json, math, multiprocessing as mp, os, platform, random, time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
import numpy as np, torch, torch.nn.functional as F
from tqdm import tqdm

CONFIG = dict(emb_sz=128, n_hid=256, n_layers=3)
VOCAB_SZ, SEED = 12_000, 42
tied = ('0.encoder_dp.emb.weight', '1.decoder.weight')                          # names under which the word rows stand again

# --- text -> tokens -> ids ---------------------------------------------------------------------------------------------------------------

def wiki_articles(path):
    "Articles of the Wikipedia dump: a `= Title =` line starts one, a blank line ends it."
    with open(path, encoding='utf8') as f: text = f.read()
    return [o.strip() for o in text.split('\n\n') if o.strip()]

def imdb_texts(path):
    "IMDb's train and unsup reviews. Test is never read."
    return [f.read_text(encoding='utf8') for d in ('train/neg', 'train/pos', 'unsup') for f in sorted((Path(path)/d).glob('*.txt'))]

def _start():
    global tokenize
    from ulmfit_tut.tokens import get_tokenizer
    tokenize = get_tokenizer()
def _work(texts): return [list(o) for o in tokenize(texts)]

def prepare(name, work, text=None, imdb=None, n_tokens=0, n_valid=0, n_workers=2):
    "Shuffle the texts, tokenize until `n_tokens`, keep the last `n_valid` texts out, count the vocabulary on the rest."
    from fastai.text.core import defaults
    texts = imdb_texts(imdb) if imdb else wiki_articles(text)
    rng = random.Random(SEED)
    if imdb:                                                                   # held out: unsup reviews only
        first_unsup = len(texts) - 50_000
        held = set(rng.sample(range(first_unsup, len(texts)), n_valid))
    else: held = set(rng.sample(range(len(texts)), n_valid))
    order = [i for i in range(len(texts)) if i not in held]
    rng.shuffle(order)
    ids_of, counts = {}, Counter()
    def numericalize(toks): return np.array([ids_of.setdefault(t, len(ids_of)) for t in toks], dtype=np.int32)
    def run(idxs, limit, count):
        docs, n = [], 0
        size = 32 if imdb else 4
        batches = ([texts[i] for i in idxs[k:k+size]] for k in range(0, len(idxs), size))
        with mp.Pool(n_workers, _start) as pool, tqdm(total=limit or None, unit='tok', unit_scale=True) as bar:
            for out in pool.imap(_work, batches):
                for toks in out:
                    docs.append(numericalize(toks)); n += len(toks); bar.update(len(toks))
                    if count: counts.update(toks)
                if limit and n >= limit: pool.terminate(); break
        return docs
    train, valid = run(order, n_tokens, True), run(sorted(held), 0, False)
    special = list(defaults.text_spec_tok)
    words = sorted((t for t in counts if t not in special), key=lambda t: (-counts[t], t))
    vocab = (special + words)[:VOCAB_SZ]
    unk, new = vocab.index('xxunk'), {t: i for i, t in enumerate(vocab)}
    table = np.array([new.get(t, unk) for t in ids_of], dtype=np.uint16)
    out = work/name; out.mkdir(parents=True, exist_ok=True)
    for part, docs in (('train', train), ('valid', valid)):
        np.save(out/f'{part}.npy', table[np.concatenate(docs)])
        np.save(out/f'{part}_offsets.npy', np.cumsum([0] + [len(d) for d in docs]))
    info = dict(texts=len(train), tokens=int(sum(map(len, train))), valid_texts=len(valid), valid_tokens=int(sum(map(len, valid))),
                unk_train=float(np.mean(np.load(out/'train.npy') == unk)), unk_valid=float(np.mean(np.load(out/'valid.npy') == unk)), seed=SEED)
    (out/'vocab.json').write_text(json.dumps(vocab, ensure_ascii=False), encoding='utf8')
    (out/'info.json').write_text(json.dumps(info, indent=1))
    print(json.dumps(info))

# --- model and loss ----------------------------------------------------------------------------------------------------------------------

def make_model(drop_mult):
    "fastai's language model, so that its weights load wherever fastai's do."
    from fastai.text.models import AWD_LSTM, awd_lstm_lm_config
    from fastai.text.models.core import get_language_model
    return get_language_model(AWD_LSTM, VOCAB_SZ, config={**awd_lstm_lm_config, **CONFIG}, drop_mult=drop_mult)

def sampled_loss(model, x, y, unigram, n_neg, gen):
    """Cross-entropy over the batch's own words and `n_neg` sampled ones, logits less the log probability that a word is among them.

    12,000 rows of softmax are over half the cost of a step of this small network; Bengio & Senecal 2008 for the correction."""
    out = model[1].output_dp(model[0](x))
    y = y.reshape(-1)
    neg = torch.multinomial(unigram, n_neg, replacement=True, generator=gen)
    cands, inv = torch.unique(torch.cat([y, neg]), return_inverse=True)
    included = -torch.expm1((len(y) + n_neg) * torch.log1p(-unigram[cands]))
    logits = F.linear(out.reshape(-1, out.shape[-1]), model[1].decoder.weight[cands], model[1].decoder.bias[cands]) - included.log()
    return F.cross_entropy(logits, inv[:len(y)])

def full_loss(model, x, y):
    return F.cross_entropy(model[1](model[0](x))[0].reshape(-1, VOCAB_SZ), y.reshape(-1))

@torch.no_grad()
def perplexity(model, ids, bs=32, seq_len=70):
    "Per-token perplexity of a stream of ids, hidden state carried, `xxunk` counted as a word."
    model.eval(); model[0].reset()
    n = (len(ids) - 1) // bs
    x, y = (torch.from_numpy(ids[i:i + n*bs].astype(np.int64)).view(bs, n) for i in (0, 1))
    tot = sum(full_loss(model, x[:, i:i+seq_len], y[:, i:i+seq_len]).item() * x[:, i:i+seq_len].numel() for i in range(0, n, seq_len))
    model[0].reset(); model.train()
    return math.exp(tot / (n*bs))

def stream(ids, offsets, bs, seed, epoch):
    "All texts in an order made from (seed, epoch), as `bs` rows that go on from batch to batch."
    order = np.random.default_rng((seed, epoch)).permutation(len(offsets) - 1)
    flat = np.concatenate([ids[offsets[i]:offsets[i+1]] for i in order])
    n = (len(flat) - 1) // bs
    return [torch.from_numpy(flat[i:i + n*bs].astype(np.int64)).view(bs, n) for i in (0, 1)]

def backwards_(ids, offsets):
    "Each text from its end, `xxbos` last, as fastai's `reverse_text` has it"
    return np.concatenate([ids[a:b][::-1] for a, b in zip(offsets[:-1], offsets[1:])])

# --- training ----------------------------------------------------------------------------------------------------------------------------

@contextmanager
def replacing(path):
    "A path beside `path` that takes its place once it is whole."
    tmp = Path(f'{path}.tmp'); yield tmp; os.replace(tmp, path)

def lr_at(step, steps, lr, warm=0.1):
    "Linear warm-up, then cosine to a hundredth."
    if step < warm*steps: return lr * (step + 1) / (warm*steps)
    return lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step/steps - warm) / (1 - warm))))

def transfer(model, init, vocab, state):
    "Start from another run's weights; words it does not know get the mean row (fastai's `match_embeds`)."
    from fastai.text.learner import match_embeds
    old = json.loads((init/'vocab.json').read_text(encoding='utf8'))
    sd = torch.load(init/state, weights_only=True)['model']
    model.load_state_dict(match_embeds(sd, old, vocab))
    print(f'{len(set(old) & set(vocab)):,} of {len(vocab):,} words known to {init.name}')

def state_name(backwards, run_name): return f'state{"_bwd"*backwards}{f"-{run_name}" if run_name else ""}.pt'

def train(name, work, init=None, n_tokens=0, bs=32, seq_len=70, lr=4e-3, drop_mult=0.1, n_neg=1024, full_from=0.92, every=500, stop_at=None, backwards=False, bf16=False, run_name=''):
    "Train until `n_tokens` are seen (default: all of them once); sampled loss first, the exact one for the last part."
    d = work/name
    vocab = json.loads((d/'vocab.json').read_text(encoding='utf8'))
    ids, offsets = np.load(d/'train.npy'), np.load(d/'train_offsets.npy')
    valid, state = np.load(d/'valid.npy'), d/state_name(backwards, run_name)
    if backwards: ids, valid = backwards_(ids, offsets), backwards_(valid, np.load(d/'valid_offsets.npy'))
    valid = valid[:100_000]
    steps = int(n_tokens or len(ids)) // (bs*seq_len)
    counts = np.bincount(ids, minlength=VOCAB_SZ).astype(np.float64) + 1
    unigram = torch.from_numpy(counts/counts.sum()).float()
    torch.manual_seed(SEED)
    model, gen = make_model(drop_mult), torch.Generator().manual_seed(SEED)
    opt = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    run = dict(name=name, bs=bs, seq_len=seq_len, lr=lr, drop_mult=drop_mult, n_neg=n_neg, full_from=full_from, steps=steps, init=init, bf16=bf16)
    step, secs, log = 0, 0., []
    if state.exists():
        s = torch.load(state, weights_only=True)
        if s['run'] != run: raise SystemExit(f'{state} is from other settings: {s["run"]}; delete it or repeat them')
        model.load_state_dict(s['model']); opt.load_state_dict(s['opt']); gen.set_state(s['gen']); torch.set_rng_state(s['rng'])
        step, secs, log = s['step'], s['secs'], s['log']
    elif init: transfer(model, work/init, vocab, state.name)
    model.train(); model[0].reset()
    if step: model[0].bs, model[0].hidden = bs, [tuple(h) for h in s['hidden']]
    per_epoch = (len(ids) - 1)//bs//seq_len
    t0, epoch, ema = time.time(), -1, 0.
    bar = tqdm(total=steps, initial=step, unit='step', mininterval=5)
    while step < steps:
        if step//per_epoch != epoch: epoch = step//per_epoch; xs, ys = stream(ids, offsets, bs, SEED, epoch)
        i = step % per_epoch * seq_len
        x, y = xs[:, i:i+seq_len], ys[:, i:i+seq_len]
        for g in opt.param_groups: g['lr'] = lr_at(step, steps, lr)
        with torch.autocast('cpu', torch.bfloat16, enabled=bf16):
            loss = sampled_loss(model, x, y, unigram, n_neg, gen) if step < full_from*steps else full_loss(model, x, y)
        opt.zero_grad(); loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        opt.step(); step += 1; bar.update()
        ema = loss.item() if not ema else 0.98*ema + 0.02*loss.item()
        bar.set_postfix(loss=f'{ema:.3f}', refresh=False)
        if step % every == 0 or step == steps:
            hidden, mbs, rng = model[0].hidden, model[0].bs, torch.get_rng_state()
            ppl = perplexity(model, valid)
            model[0].hidden, model[0].bs = hidden, mbs
            log.append(dict(step=step, tokens=step*bs*seq_len, loss=ema, valid_ppl=ppl, secs=secs + time.time() - t0))
            bar.write(json.dumps(log[-1]))
            with replacing(state) as tmp:
                torch.save(dict(run=run, model=model.state_dict(), opt=opt.state_dict(), gen=gen.get_state(), rng=rng, hidden=[tuple(h) for h in hidden],
                                step=step, secs=secs + time.time() - t0, log=log), tmp)
            if stop_at and step >= stop_at: return

# --- what the card says ------------------------------------------------------------------------------------------------------------------

class KneserNey:
    """Interpolated Kneser-Ney trigrams, one discount an order (Kneser & Ney 1995; Chen & Goodman 1999, eq. 19 and n1/(n1+2 n2)).

    Counts are sorted arrays of packed ids, so that millions of tokens fit and are looked up at once."""
    def __init__(self, ids, vocab_sz=VOCAB_SZ):
        self.v, ids = vocab_sz, ids.astype(np.int64)
        tri, n3 = np.unique((ids[:-2]*self.v + ids[1:-1])*self.v + ids[2:], return_counts=True)
        bi_first = np.unique(ids[:-1]*self.v + ids[1:])                       # distinct bigrams; continuation counts come from types
        self.tri, self.d3 = (tri, n3), self._discount(n3)
        bi, n2 = np.unique(tri % (self.v**2), return_counts=True)              # N1+(. w2 w3)
        self.bi, self.d2 = (bi, n2), self._discount(n2)
        uni = np.bincount(bi_first % self.v, minlength=self.v)                 # N1+(. w3)
        self.p1 = (uni + 1e-9)/(uni.sum() + 1e-9*self.v)
        self.ctx3, self.ctx2 = self._contexts(tri//self.v, n3), self._contexts(bi//self.v, n2)
    def _discount(self, n): n1, n2 = (n == 1).sum(), (n == 2).sum(); return n1/(n1 + 2*n2) if n1 else 0.5
    def _contexts(self, ctx, n):
        "For each context: total count and number of distinct followers"
        keys, start = np.unique(ctx, return_index=True)
        return keys, np.add.reduceat(n, start), np.diff(np.append(start, len(ctx)))
    def _find(self, keys, q):
        i = np.minimum(np.searchsorted(keys, q), len(keys) - 1)
        return i, keys[i] == q
    def _interpolate(self, grams, d, contexts, q, lower):
        i, hit = self._find(grams[0], q)
        c = np.where(hit, grams[1][i], 0)
        j, known = self._find(contexts[0], q//self.v)
        total, kinds = contexts[1][j], contexts[2][j]
        return np.where(known, (np.maximum(c - d, 0) + d*kinds*lower)/total, lower)
    def prob(self, a, b, c):
        "p(c | a b) for arrays of ids"
        p2 = self._interpolate(self.bi, self.d2, self.ctx2, b*self.v + c, self.p1[c])
        return self._interpolate(self.tri, self.d3, self.ctx3, (a*self.v + b)*self.v + c, p2)
    def perplexity(self, ids):
        a = ids.astype(np.int64)
        return float(np.exp(-np.log(self.prob(a[:-2], a[1:-1], a[2:])).mean()))

def seen(ids, offsets, bs, tokens):
    "The tokens that training has read, in its order (whole epochs, then a part of the last)."
    xs, out = None, []
    for epoch in range(-(-tokens//len(ids))):
        xs = stream(ids, offsets, bs, SEED, epoch)[0]
        left = min(tokens - epoch*len(ids), xs.numel())
        out.append(xs[:, :left//bs].reshape(-1).numpy())
    return np.concatenate(out)

def save_lm(file, name, vocab, weights, backwards=False):
    "fp16, a shared matrix once, and what the numbers mean"
    from ulmfit_tut.files import save_weights
    meta = dict(kind='lm', vocab=vocab, config=CONFIG, arch='AWD_LSTM', trained_on=name, backwards=backwards, tokenizer='spaCy en', rules='fastai')
    save_weights(file, {k: v.half() for k, v in weights.items() if k not in tied}, **meta)

def card(name, work, out, backwards=False, run_name=''):
    "Write `out/name.safetensors` (fp16) and `out/name.json`: what the model was made from and how well it predicts. Backwards it is `name-bwd`."
    from ulmfit_tut.files import load_weights
    d = work/name
    s = torch.load(d/state_name(backwards, run_name), weights_only=True)
    if s['step'] < s['run']['steps']: raise SystemExit(f'{s["step"]} of {s["run"]["steps"]} steps are done: let train come to its end')
    vocab, info = json.loads((d/'vocab.json').read_text(encoding='utf8')), json.loads((d/'info.json').read_text())
    file = out/f'{name}{"-bwd"*backwards}.safetensors'
    save_lm(file, name, vocab, s['model'], backwards)
    name = file.stem
    valid, ids, offsets = np.load(d/'valid.npy'), np.load(d/'train.npy'), np.load(d/'train_offsets.npy')
    if backwards: ids, valid = backwards_(ids, offsets), backwards_(valid, np.load(d/'valid_offsets.npy'))
    model = make_model(0.)
    model.load_state_dict(s['model']); fp32 = perplexity(model, valid)
    w, _ = load_weights(file)
    model.load_state_dict({**w, **{k: w['0.encoder.weight'] for k in tied}}); fp16 = perplexity(model, valid)
    read = seen(ids, offsets, s['run']['bs'], s['step']*s['run']['bs']*s['run']['seq_len'])
    kn = KneserNey(read).perplexity(valid)
    res = dict(name=name, tokens_seen=s['step']*s['run']['bs']*s['run']['seq_len'], vocab=len(vocab), config=CONFIG, params=sum(p.numel() for p in model.parameters()),
               held_out_texts=info['valid_texts'], held_out_tokens=info['valid_tokens'], unknown_held_out=info['unk_valid'],
               perplexity=dict(model_fp32=fp32, model_fp16_file=fp16, kneser_ney_trigram_same_tokens=kn),
               run=s['run'], seed=SEED, seconds=s['secs'], log=s['log'], machine=dict(cpu=platform.machine(), cores=os.cpu_count(), threads=torch.get_num_threads()),
               versions=dict(python=platform.python_version(), torch=torch.__version__, numpy=np.__version__))
    with replacing(out/f'{name}.json') as tmp: tmp.write_text(json.dumps(res, indent=1) + '\n')
    print(json.dumps(res['perplexity']))
    write_readme(out)

def write_readme(out):
    "The model card of all models in `out`, every figure from their `.json`"
    cards = [json.loads(f.read_text()) for f in sorted(out.glob('*.json'), reverse=True)]
    held = dict(wiki='{} Wikipedia articles', movies='{} unlabelled IMDb reviews')
    rows = [('read', lambda c: f'{c["tokens_seen"]:,} tokens'), ('held out', lambda c: held[c['name'].removesuffix('-bwd')].format(f'{c["held_out_texts"]:,}') + f', {c["held_out_tokens"]:,} tokens'),
            ('unknown words in them', lambda c: f'{c["unknown_held_out"]:.1%}'), ('perplexity on them', lambda c: f'{c["perplexity"]["model_fp16_file"]:.2f}'),
            ('the same before rounding to fp16', lambda c: f'{c["perplexity"]["model_fp32"]:.2f}'),
            ('Kneser-Ney trigrams, same tokens and words', lambda c: f'{c["perplexity"]["kneser_ney_trigram_same_tokens"]:.2f}'),
            ('trained for', lambda c: f'{c["seconds"]/60:.0f} minutes, seed {c["seed"]}'),
            ('on', lambda c: f'{c["machine"]["cores"]} CPU cores ({c["machine"]["cpu"]}), torch {c["versions"]["torch"]}')]
    table = '\n'.join(f'| {k} | ' + ' | '.join(f(c) for c in cards) + ' |' for k, f in rows)
    names = [c['name'] for c in cards]
    back = """- `movies-bwd` was made like `movies`, but reads every text from its end. Its `wiki`, which reads from the end too, is not in the package.
""" if 'movies-bwd' in names else ''
    text = f"""# {['No', 'One', 'Two', 'Three'][len(cards)]} small language models

The same network each time: an AWD-LSTM with an embedding of {CONFIG["emb_sz"]}, {CONFIG["n_hid"]} hidden units, {CONFIG["n_layers"]} layers and {VOCAB_SZ:,} words,
stored as fp16 safetensors with vocabulary and sizes in the file's metadata. `bench/pretrain.py` made them and wrote this card.

- `wiki` has read a slice of English Wikipedia of 2015, and nothing else.
- `movies` is `wiki`, fine-tuned once on IMDb's training and unlabelled reviews with a vocabulary counted on them. It has never read a test review of
  IMDb. It has read IMDb's training texts, without their labels: say so where you use it on IMDb.
{back}
| | {" | ".join(f"`{o}`" for o in names)} |
|---|{"---|"*len(cards)}
{table}

Perplexities of `wiki` and `movies` are on different texts with different vocabularies and cannot be compared with each other. `xxunk` counts as a word.
Training minutes are wall time on a machine that did other work too.

The texts: Wikipedia, by its contributors, CC BY-SA; the Large Movie Review Dataset (Maas et al. 2011), for research, cited as its authors ask. None of
these texts is in this package. The weights were trained for this project and come under its licence.

Differences from the published recipe: a tenth of the published dropout, no AR and TAR, most steps with a sampled softmax, one pass or less over the texts.
The models write no facts, repeat what their texts held, prejudice included, and know English alone.
"""
    with replacing(out/'README.md') as tmp: tmp.write_text(text)

# --- command -----------------------------------------------------------------------------------------------------------------------------

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=['prepare', 'train', 'card']); p.add_argument('name', choices=['wiki', 'movies'])
    p.add_argument('--work', type=Path, default=Path('~/.fastai/pretrain').expanduser())
    p.add_argument('--out', type=Path, default=Path(__file__).parent.parent/'ulmfit_tut'/'models')
    p.add_argument('--text', type=Path); p.add_argument('--imdb', type=Path); p.add_argument('--init')
    p.add_argument('--n_tokens', type=int, default=0); p.add_argument('--n_valid', type=int, default=0)
    p.add_argument('--bs', type=int, default=32); p.add_argument('--lr', type=float, default=4e-3); p.add_argument('--n_neg', type=int, default=1024)
    p.add_argument('--full_from', type=float, default=0.92, help='share of steps after which the loss is exact'); p.add_argument('--threads', type=int); p.add_argument('--every', type=int, default=500); p.add_argument('--stop_at', type=int)
    p.add_argument('--run', default='', help='a name for this training, so that several of the same texts can stand beside each other; `--init` takes the run of this name too')
    p.add_argument('--backwards', action='store_true', help='read every text from its end')
    p.add_argument('--bf16', action='store_true', help='products in bfloat16: faster where the processor multiplies it (AVX512-BF16, AMX), much slower elsewhere')
    a = p.parse_args()
    if a.threads: torch.set_num_threads(a.threads)
    if a.what == 'prepare': prepare(a.name, a.work, a.text, a.imdb, a.n_tokens, a.n_valid or (2000 if a.imdb else 60))
    if a.what == 'card': card(a.name, a.work, a.out, a.backwards, a.run)
    if a.what == 'train': train(a.name, a.work, a.init, a.n_tokens, bs=a.bs, lr=a.lr, n_neg=a.n_neg, full_from=a.full_from, every=a.every, stop_at=a.stop_at, backwards=a.backwards, bf16=a.bf16, run_name=a.run)
