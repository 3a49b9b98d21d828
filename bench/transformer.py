"""A small GPT-2 beside the AWD-LSTM of the embedded size: as many parameters, the same tokens, the same time, the same training loop.

    python bench/transformer.py pace    # seconds a step of each network, by turns: the time is shared out by them. Wants a quiet machine
    python bench/transformer.py choose  # the settings of each network and task, on validation texts cut from train, with a seed that `run` does not use
    python bench/transformer.py run     # every seed: goes on where it stopped, and writes bench/results/transformer.json after each network

Both start from random weights and read the embedded reviews: train and unsup without labels, then train with them. Each run is tested once.
"""
import argparse, itertools, json, math, os, platform, time, warnings
from importlib.metadata import version
from pathlib import Path
warnings.filterwarnings('ignore')
import numpy as np, torch
from fastai.text.all import *
from transformers import GPT2Config, GPT2Model
from ulmfit_tut.batches import text_dls
from ulmfit_tut.compare import paired_difference
from ulmfit_tut.corpus import TextCorpus, text_corpus
from ulmfit_tut.data import get_texts
from ulmfit_tut.files import replacing
from ulmfit_tut.lm import pretrained_lm

results, seeds, pad = Path(__file__).parent/'results', range(3), 1
sizes   = pretrained_lm('none')[2]                                 # 128 numbers a word, 256 units, three layers
budget  = dict(lm=45, clas=30)                                     # seconds of one core
windows = dict(lstm=72, gpt=144)                                   # the LSTM carries its state on; a review is seldom longer than 144 tokens
grids   = dict(lm=dict(lstm=[dict(lr=lr, bs=bs) for lr in (5e-3, 1e-2) for bs in (8, 16)],
                       gpt=[dict(lr=lr, bs=bs) for lr in (1e-3, 3e-3) for bs in (4, 8)]),
               clas=dict(lstm=[dict(lr=lr, bs=bs) for lr, bs in ((3e-3, 16), (1e-2, 16), (1e-3, 8), (3e-3, 8))] + (slow := [dict(lr=lr, bs=16, body=.1) for lr in (3e-3, 1e-2)]),
                         gpt=[dict(lr=lr, bs=bs) for lr, bs in ((5e-4, 16), (2e-3, 16), (5e-4, 8), (2e-3, 8))] + slow))      # `body`: the encoder's rate, as a share

class GPT(Module):
    "GPT-2 with words in front, padding hidden, and tied scores behind"
    def __init__(self, n_words, n_params, d=128, n_layers=5, dropout=.1):
        fixed = d*(n_words + 256 + 2 + n_layers*(4*d + 4 + 5))                           # all but the middle of the feed-forward layers, which takes what is left
        inner = round((n_params - fixed)/n_layers/(2*d + 1))
        drops = {f'{o}_pdrop': dropout for o in ('resid', 'embd', 'attn')}
        self.body = GPT2Model(GPT2Config(vocab_size=n_words, n_positions=256, n_embd=d, n_layer=n_layers, n_head=4, n_inner=inner, bos_token_id=2, eos_token_id=2, **drops))
    def reset(self): pass
    def hidden(self, x):
        mask = (x != pad).long()
        return self.body(x, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), use_cache=False).last_hidden_state
    def forward(self, x): return self.hidden(x) @ self.body.wte.weight.T

class LSTM(Module):
    "fastai's AWD-LSTM with AR and TAR in training, as its learner adds them"
    def __init__(self, n_words, drop_mult=.3): self.lm = get_language_model(AWD_LSTM, n_words, config={**awd_lstm_lm_config, **sizes}, drop_mult=drop_mult)
    def reset(self): self.lm.reset()
    def forward(self, x):
        scores, raw, out = self.lm(x)
        self.extra = 2*out.pow(2).mean() + (raw[:, 1:] - raw[:, :-1]).pow(2).mean() if self.training else 0
        return scores

class Body(Module):
    "What a pooling head reads: numbers of each token, and where padding is"
    def __init__(self, gpt): self.gpt = gpt
    def forward(self, x): return self.gpt.hidden(x), x == pad

def count(m): return sum(p.numel() for p in m.parameters())

def network(arm, n_words, seed):
    set_seed(seed)
    return LSTM(n_words) if arm == 'lstm' else GPT(n_words, count(LSTM(n_words)))

def classifier(arm, net, n_words):
    "The encoder of `net` under fastai's head: last token, maximum and mean"
    if arm == 'gpt': return SequentialRNN(Body(net), PoolingLinearClassifier([3*128, 50, 2], [.12, .1], 72))
    m = get_text_classifier(AWD_LSTM, n_words, 2, seq_len=72, config={**awd_lstm_clas_config, **sizes}, drop_mult=.3)
    m[0].module.load_state_dict(net.lm[0].state_dict())
    return m

def passes(dl, m, reset):
    while True:
        if reset: m.reset()
        yield from dl

def fit(m, dl, steps, lr, is_lm, body=1, after=None, every=None):
    "AdamW, one cycle, clipped gradients: for either network, and either task. Seconds of the process, looks of `after` left out"
    parts = [(m, lr)] if is_lm else [(m[0], lr*body), (m[1], lr)]
    opt = torch.optim.AdamW([dict(params=p.parameters()) for p, _ in parts], weight_decay=.1)
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, [o for _, o in parts], total_steps=steps)
    spent, m = 0, m.train()
    for i, (x, y) in zip(range(steps), passes(dl, m, is_lm)):
        t = time.process_time()
        x, y = x.as_subclass(torch.Tensor), y.as_subclass(torch.Tensor)
        pred = m(x)
        loss = F.cross_entropy(pred.flatten(0, 1), y.flatten()) + getattr(m, 'extra', 0) if is_lm else F.cross_entropy(pred[0], y)
        opt.zero_grad(); loss.backward()
        nn.utils.clip_grad_norm_(m.parameters(), 1.)
        opt.step(); sched.step()
        spent += time.process_time() - t
        if after and (i % every == every - 1 or i == steps - 1): after(i + 1, spent); m.train()
    return spent

class Texts:
    "The reviews of a seed: loaders for both tasks; `test` last, and only when asked"
    def __init__(self, seed):
        df = get_texts(seed=seed)
        self.seed, self.corpus = seed, text_corpus(df)
        self.vocab = self.corpus.vocab([])
    def lm(self, arm, bs): return text_dls(self.corpus, self.vocab, is_lm=True, bs=bs, seq_len=windows[arm], seed=self.seed, device='cpu').train
    def clas(self, bs): return text_dls(self.corpus, self.vocab, bs=bs, seed=self.seed, device='cpu')
    def held(self):
        "All reviews held back, of train and of unsup"
        rows = np.flatnonzero(self.corpus.df.is_valid)
        return [self.ids(i) for i in rows]
    def ids(self, i):
        at = {w: j for j, w in enumerate(self.vocab)}
        return torch.tensor([at.get(o, 0) for o in self.corpus[i]])
    def test(self):
        df = self.corpus.df.copy()
        held = df.part.eq('test').to_numpy()
        df.loc[held, 'part'] = 'train'
        return text_dls(TextCorpus(self.corpus.path, df, self.corpus.tok), self.vocab, bs=50, valid=held, device='cpu').valid

def perplexity(m, texts, bs=40):
    "Of whole reviews, each read from its first token, with nothing before it: the same question for both networks"
    m.eval(); total = n = 0
    for b in (texts[i:i+bs] for i in range(0, len(texts), bs)):
        x = nn.utils.rnn.pad_sequence(b, batch_first=True, padding_value=pad)
        m.reset()
        with torch.no_grad(): each = F.cross_entropy(m(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten(), reduction='none')
        mask = x[:, 1:].flatten() != pad
        total += float(each[mask].sum()); n += int(mask.sum())
    return math.exp(total/n)

def right(m, dl):
    m.eval(); res = []
    for x, y in dl:
        m.reset()
        with torch.no_grad(): res.append(m(x.as_subclass(torch.Tensor))[0].argmax(1) == y)
    return torch.cat(res).float().numpy()

def read():
    file = results/'transformer.json'
    return json.loads(file.read_text()) if file.exists() else dict(pace=[], tried=[], rows=[])

def write(got):
    mach = dict(cores=os.cpu_count(), threads=torch.get_num_threads(), python=platform.python_version(), processor=platform.machine(),
                **{o: version(o) for o in ('torch', 'fastai', 'transformers')})
    with replacing(results/'transformer.json') as tmp:
        tmp.write_text(json.dumps({**got, 'budget': budget, 'windows': windows, 'network': sizes, 'command': 'python bench/transformer.py pace, choose, run', 'machine': mach}, indent=1) + '\n')

def pace(work, rounds=3):
    "Median seconds a step of each network, task and batch, by turns"
    got, texts, times, nets = read(), Texts(100), {}, {}
    jobs = [(task, arm, bs) for task in grids for arm in grids[task] for bs in sorted({o['bs'] for o in grids[task][arm]})]
    jobs = [o for o in jobs if o not in [(r['task'], r['arm'], r['bs']) for r in got['pace']]]
    for task, arm, bs in jobs:
        net = network(arm, len(texts.vocab), 0)
        nets[task, arm, bs] = (net, texts.lm(arm, bs), 128//bs) if task == 'lm' else (classifier(arm, net, len(texts.vocab)), dl := texts.clas(bs).train, len(dl))
    for r in range(rounds + 1):
        for job, (m, dl, n) in nets.items():
            t = fit(m, dl, n, 1e-3, job[0] == 'lm')/n
            if r: times.setdefault(job, []).append(t)                                    # the first round warms up
    for (task, arm, bs), v in times.items(): got['pace'].append(dict(task=task, arm=arm, bs=bs, seconds=float(np.median(v)), rounds=v)); print(got['pace'][-1], flush=True)
    write(got)

def steps(got, task, arm, bs): return round(budget[task]/next(o['seconds'] for o in got['pace'] if (o['task'], o['arm'], o['bs']) == (task, arm, bs)))

def train_lm(got, texts, arm, s, seed):
    net, curve = network(arm, len(texts.vocab), seed), []
    held, n = texts.held(), steps(got, 'lm', arm, s['bs'])
    dl = texts.lm(arm, s['bs'])
    t = fit(net, dl, n, s['lr'], True, 1, lambda i, t: curve.append((round(t, 1), round(perplexity(net, held), 2))), -(-n//6))
    return net, dict(curve=curve, lm_steps=n, lm_passes=round(n/len(dl), 2), lm_seconds=round(t, 1), parameters=count(net))

def train_clas(got, texts, arm, net, s, seed):
    set_seed(seed)
    m, dls, n = classifier(arm, net, len(texts.vocab)), texts.clas(s['bs']), steps(got, 'clas', arm, s['bs'])
    t = fit(m, dls.train, n, s['lr'], False, s.get('body', 1))
    return m, dict(clas_steps=n, clas_passes=round(n/len(dls.train), 2), clas_seconds=round(t, 1)), dls

def chosen(got, task, arm):
    mine = [o for o in got['tried'] if (o['task'], o['arm']) == (task, arm)]
    if len(mine) < len(grids[task][arm]): raise SystemExit(f'{task} of {arm}: {len(mine)} of {len(grids[task][arm])} settings tried; python bench/transformer.py choose comes first')
    return (min if task == 'lm' else max)(mine, key=lambda o: o['score'])['setting']

def choose(work):
    "Language model by the perplexity of the reviews held back; classifier by accuracy on 120 training reviews, for 40 tell too little"
    got, texts = read(), Texts(100)
    def done(task, arm, s): return any((o['task'], o['arm'], o['setting']) == (task, arm, s) for o in got['tried'])
    for arm in grids['lm']:
        for s in grids['lm'][arm]:
            if done('lm', arm, s): continue
            net, info = train_lm(got, texts, arm, s, 100)
            got['tried'].append(dict(task='lm', arm=arm, setting=s, score=info['curve'][-1][1], **info)); print(arm, s, info, flush=True)
            write(got)
            file = work/f'choose-{arm}.pth'
            if min(o['score'] for o in got['tried'] if (o['task'], o['arm']) == ('lm', arm)) == info['curve'][-1][1]: torch.save(net.state_dict(), file)
    df = texts.corpus.df
    rows = np.flatnonzero(df.part.eq('train'))
    held = np.isin(np.arange(len(df)), np.concatenate([np.random.default_rng(0).permutation(rows[df.label.iloc[rows].eq(l)])[:60] for l in ('neg', 'pos')]))
    texts.clas = lambda bs: text_dls(texts.corpus, texts.vocab, bs=bs, valid=held, seed=100, device='cpu')
    for arm in grids['clas']:
        for s in grids['clas'][arm]:
            if done('clas', arm, s): continue
            net = network(arm, len(texts.vocab), 100)
            net.load_state_dict(torch.load(work/f'choose-{arm}.pth', weights_only=True))
            m, info, dls = train_clas(got, texts, arm, net, s, 100)
            got['tried'].append(dict(task='clas', arm=arm, setting=s, score=float(right(m, dls.valid).mean()), n=len(dls.valid_ds), **info)); print(arm, s, got['tried'][-1]['score'], flush=True)
            write(got)

def run(work):
    got = read()
    for seed in seeds:
        for arm in ('lstm', 'gpt'):
            if any((o['arm'], o['seed']) == (arm, seed) for o in got['rows']): continue
            texts, lm, clas = Texts(seed), chosen(got, 'lm', arm), chosen(got, 'clas', arm)
            net, info = train_lm(got, texts, arm, lm, seed)
            test = texts.test()
            reviews = [texts.ids(i) for i in np.flatnonzero(texts.corpus.df.part.eq('test'))]
            perp = perplexity(net, reviews)
            m, more, _ = train_clas(got, texts, arm, net, clas, seed)
            ok = right(m, test)
            got['rows'].append(dict(arm=arm, seed=seed, accuracy=float(ok.mean()), perplexity=perp, words=len(texts.vocab), **info, **more, settings=dict(lm=lm, clas=clas), right=''.join(str(int(o)) for o in ok)))
            print({k: v for k, v in got['rows'][-1].items() if k != 'right'}, flush=True)
            write({**got, **summary(got['rows'])})

def summary(rows):
    "Over the seeds that both have run: mean, interval over texts and seeds, and the difference text by text"
    both = [s for s in seeds if len([o for o in rows if o['seed'] == s]) == 2]
    if not both: return {}
    ok = {a: np.array([[int(c) for c in o['right']] for s in both for o in rows if (o['arm'], o['seed']) == (a, s)], float) for a in ('lstm', 'gpt')}
    perp = {a: [o['perplexity'] for s in both for o in rows if (o['arm'], o['seed']) == (a, s)] for a in ok}
    three = lambda o: dict(zip(('mean', 'low', 'high'), map(float, o)))
    return dict(seeds=both, accuracy={a: three(paired_difference(v, np.zeros_like(v))) for a, v in ok.items()}, difference=three(paired_difference(ok['gpt'], ok['lstm'])),
                perplexity={a: dict(mean=float(np.mean(v)), low=min(v), high=max(v)) for a, v in perp.items()})

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=['pace', 'choose', 'run']); p.add_argument('--work', type=Path, default=Path('~/.fastai/transformer').expanduser())
    a = p.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)                                       # the budget counts seconds of one core
    dict(pace=pace, choose=choose, run=run)[a.what](a.work)
