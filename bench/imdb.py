"""ULMFiT on all of IMDb, from token files to results files, in parts that each go on where they were cut off. `bench/README.md` has the steps.

    prepare  texts -> ids (uint16, xz) and what belongs to them; on a machine with spaCy
    check    every lever of `levers.py` beside stock fastai: the loss of 50 steps on the same batches, dropout off
    slice    tokens per second, loss and peak memory: stock, then lever after lever
    short    dropout on: validation perplexity after a short run on the same batches, stock's and each lever's, for two seeds
    fit      the largest batch for a card, from two measured steps
    lm       language model: from nothing, from fastai's weights, or from another run of `lm`
    clas     classifier in four stages, and the probabilities of the test reviews
    both     the mean of two directions
    pack     a weights file in halves and pieces that can be carried
    collect  the rows of all parts, into bench/results/at-size.json: the results page shows them all, chapter 08 those of `check` and `short` on a CPU
"""
import argparse, gc, json, lzma, os, sys, time, warnings
from pathlib import Path
from types import SimpleNamespace
import numpy as np, torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fastai.text.all import *
from fastai.text.models.core import get_language_model, get_text_classifier
from ulmfit_tut.batches import TextLoader
from ulmfit_tut.compare import wilson
from ulmfit_tut.files import load_weights, replacing, save_weights
from ulmfit_tut.unfreeze import Stage, classifier_stages, fit_stages, lm_stages
import levers as L_

PART = dict(train=0, test=1, unsup=2)

# --- token files -----------------------------------------------------------------------------------------------------------------------------

def prepare(a):
    "Ids in pieces of 30 million tokens, about 40 MB each once compressed; the vocabulary counts what is trained on, never test or valid"
    from ulmfit_tut.corpus import text_corpus
    from ulmfit_tut.data import get_texts, text_vocab
    out = a.work/a.data
    out.mkdir(parents=True, exist_ok=True)
    if a.data == 'wiki':
        texts = [o for o in Path(a.source).read_text(encoding='utf8').split('\n\n') if o.strip()][::a.every]
        df = pd.DataFrame(dict(text=texts, label='', part='unsup', is_valid=np.arange(len(texts)) % 50 == 49))
    else:
        df = get_texts(a.source, read=False)
        df = df.iloc[::a.every].reset_index(drop=True)
    corpus = text_corpus(df)
    used = np.flatnonzero((df.part.ne('test') & ~df.is_valid).to_numpy())
    vocab = text_vocab(corpus.counts(used), min_freq=3, max_vocab=60_000)
    num = {t: i for i,t in reversed(list(enumerate(vocab)))}
    table = np.array([num.get(t, 0) for t in corpus.types], np.uint16)
    ids = table[np.asarray(corpus.ids)]
    for i in range(0, len(ids), 30_000_000):
        with replacing(out/f'ids.{i//30_000_000}.xz') as tmp: tmp.write_bytes(lzma.compress(ids[i:i+30_000_000].tobytes(), preset=1))
    with replacing(out/'texts.npz') as tmp, open(tmp, 'wb') as f:
        np.savez_compressed(f, lens=np.diff(corpus.offsets), label=(df.label == 'pos').to_numpy(np.uint8), part=df.part.map(PART).to_numpy(np.uint8),
                            valid=df.is_valid.to_numpy(bool))
    (out/'vocab.json').write_text(json.dumps(vocab, ensure_ascii=False), encoding='utf8')
    print(f'{len(df):,} texts, {len(ids):,} tokens, {len(vocab):,} words, {sum(f.stat().st_size for f in out.iterdir())/1e6:.1f} MB in {out}')

def load(a):
    "What `prepare` wrote"
    d = a.work/a.data
    ids = np.concatenate([np.frombuffer(lzma.decompress((d/f'ids.{i}.xz').read_bytes()), np.uint16) for i in range(len(list(d.glob('ids.*.xz'))))])
    o = np.load(d/'texts.npz')
    return SimpleNamespace(ids=ids, starts=o['lens'].cumsum() - o['lens'], vocab=json.loads((d/'vocab.json').read_text(encoding='utf8')), **{k: o[k] for k in o.files})

# --- learners --------------------------------------------------------------------------------------------------------------------------------

def sizes(a): return dict(zip(('emb_sz', 'n_hid', 'n_layers'), a.sizes))

def lm_dls(d, a, levers, shuffle=True, limit=None):
    "Stock fastai's loaders, or streams of ids; of the first `limit` texts, and of a quarter as many to validate on"
    rows = [np.flatnonzero((d.part != PART['test']) & (d.valid == v))[:limit and (limit, -(-limit//4))[v]] for v in (False, True)]
    if 'loader' not in levers:
        def text(i): o = d.ids[d.starts[i]:d.starts[i]+d.lens[i]].astype(np.int64); return TensorText(torch.from_numpy(o[::-1].copy() if a.back else o))
        dls = DataLoaders(*(LMDataLoader([text(i) for i in r], bs=a.bs, seq_len=a.seq_len, shuffle=shuffle and not v, num_workers=0) for v,r in enumerate(rows)))
        for dl in dls.loaders: dl.vocab = d.vocab
    else:
        at = a.device if 'device' in levers else 'cpu'
        dls = DataLoaders(*(L_.Stream(d.ids, d.starts[r], d.lens[r], d.vocab, a.bs, a.seq_len, shuffle and not v, a.back, at, share=1 if v else a.share)
                            for v,r in enumerate(rows)))
    dls.device = torch.device(a.device)
    return dls

def lm_learn(d, a, levers, drop_mult, **kw):
    set_seed(a.seed)
    model = get_language_model(AWD_LSTM, len(d.vocab), {**awd_lstm_lm_config, **sizes(a)}, drop_mult).to(a.device)
    learn = LMLearner(lm_dls(d, a, levers, **kw), model, loss_func=CrossEntropyLossFlat(), splitter=awd_lstm_lm_split, metrics=[accuracy, Perplexity()], wd=a.wd)
    return L_.pull(learn, levers)

def start_from(learn, init, vocab, back):
    "Weights of fastai (`wt103`), or of a file of `lm`; rows of new words are the mean row"
    if init == 'wt103': from ulmfit_tut.lm import pretrained_lm; weights,old,_ = pretrained_lm('wt103', back)
    else:
        weights,meta = load_weights(init, ('vocab', 'back'))
        if meta['back'] != back: raise SystemExit(f'{init} reads {"backwards" if meta["back"] else "forwards"}: give one of the same direction')
        old = meta['vocab']
        weights['0.encoder_dp.emb.weight'] = weights['1.decoder.weight'] = weights['0.encoder.weight']
    learn.model.load_state_dict(match_embeds(weights, old, vocab))

# --- running and noting ----------------------------------------------------------------------------------------------------------------------

def machine(a): return torch.cuda.get_device_name() if a.device == 'cuda' else f'{os.cpu_count()} CPU cores'

def settings(a): return {k: getattr(a, k) for k in ('data', 'sizes', 'bs', 'seq_len', 'lrs', 'drop_mult', 'wd', 'share', 'seed', 'back')}

def note(a, **row):
    "A row of results, on disk at once"
    f = a.work/'results'/'rows.jsonl'
    f.parent.mkdir(parents=True, exist_ok=True)
    row = {**row, **({} if row['part'] == 'test' else settings(a)), 'time': time.strftime('%Y-%m-%d %H:%M:%S'), 'machine': machine(a), 'torch': torch.__version__}
    with open(f, 'a') as o: o.write(json.dumps(row) + '\n'); o.flush(); os.fsync(o.fileno())
    print(json.dumps(row), flush=True)

def all_rows(a): return [json.loads(o) for o in f.read_text().splitlines()] if (f := a.work/'results'/'rows.jsonl').exists() else []

def noted(a, **row):
    "The last row that says this and was made with these settings on this machine, if there is one"
    want = json.loads(json.dumps({**row, **settings(a), 'machine': machine(a)}))                   # tuples are lists there
    return next((o for o in reversed(all_rows(a)) if all(k in o and o[k] == v for k,v in want.items())), None)

def stop_in_time(a, secs):
    "End in good order where as much again would not end in time"
    if time.time() - START + 1.15*secs > 60*a.minutes:
        print('Time is up: the same command goes on from here', flush=True)
        raise KeyboardInterrupt

class Rows(Callback):
    "Each epoch's row at once; stops in good order where the next epoch would not end in time"
    order = Recorder.order + 2                                                                    # after `fit_stages` has written its file
    def __init__(self, a, **row): self.a,self.row = a,row
    def before_epoch(self): self.t = time.time()
    def after_epoch(self):
        secs = time.time() - self.t
        values = dict(zip(self.recorder.metric_names[1:], map(float, self.recorder.values[-1])))
        note(self.a, **self.row, seconds=round(secs, 1), frozen=self.opt.frozen_idx, **values)
        stop_in_time(self.a, secs)

def peak(a): return torch.cuda.max_memory_allocated() if a.device == 'cuda' else None

def train(a, learn, stages, name, **row):
    "`fit_stages` with its file; the time of all epochs, those of earlier commands too"
    file = a.work/f'{name}.{row["part"]}.stages.safetensors'
    with learn.no_bar(), learn.no_logging(), learn.added_cbs(Rows(a, part='epoch', of=row['part'], name=name)):
        hist,_ = fit_stages(learn, stages, seed=a.seed, file=file)
    note(a, **row, name=name, epochs=len(hist), seconds=round(hist.seconds.sum(), 1), steps=int(hist.steps.sum()), levers=a.levers,
         valid_loss=float(hist.valid_loss.iloc[-1]), peak_bytes=peak(a))

def lm(a):
    file = a.work/f'{a.name}.safetensors'
    if file.exists(): return print(f'{file} is there: nothing to do')
    d = load(a)
    learn = lm_learn(d, a, a.levers, a.drop_mult)
    if a.init != 'none': start_from(learn, a.init, d.vocab, a.back)
    stages = lm_stages(a.epochs, a.lrs) if a.init != 'none' else [Stage(0, sum(a.epochs), a.lrs[-1])]
    train(a, learn, stages, a.name, part='lm', init=Path(a.init).name, tokens_an_epoch=learn.dls.train.bl*a.bs)
    weights = {k: v for k,v in learn.model.state_dict().items() if k not in ('0.encoder_dp.emb.weight', '1.decoder.weight')}
    save_weights(file, weights, vocab=d.vocab, back=a.back, config=sizes(a))

class Reviews:
    "Rows as `TextLoader` wants them: ids, where each text lies, and a table to the vocabulary"
    n_inp,tls = 1,[None]
    def __init__(self, d, rows): self.n,self._source = len(rows),(d.ids, d.starts[rows], d.lens[rows], np.arange(len(d.vocab)))
    def __len__(self): return self.n
    def __getitem__(self, i): return i                                                            # fastai shuffles only what has one

def reviews(d, a, rows, **kw):
    dl = TextLoader(Reviews(d, rows), bs=a.bs, seq_len=a.seq_len, backwards=a.back, seed=a.seed, device=torch.device(a.device), **kw)
    dl.ys,dl.vocab = TensorCategory(torch.from_numpy(d.label[rows].astype(np.int64))),[d.vocab, ['neg', 'pos']]
    return dl

def clas(a):
    probs = a.work/'results'/f'probs-{a.name}.npz'
    if probs.exists(): return print(f'{probs} is there: nothing to do')
    d = load(a)
    weights,meta = load_weights(a.init, ('vocab', 'back'))
    if meta['vocab'] != d.vocab or meta['back'] != a.back: raise SystemExit(f'{a.init} has another vocabulary or direction than this run')
    fit_on,valid,test = (np.flatnonzero((d.part == PART[p]) & (d.valid == v)) for p,v in (('train', False), ('train', True), ('test', False)))
    if a.labels: fit_on = np.concatenate([np.random.default_rng(a.seed).permutation(fit_on[d.label[fit_on] == y])[:a.labels//2] for y in (0, 1)])
    set_seed(a.seed)
    model = get_text_classifier(AWD_LSTM, len(d.vocab), 2, a.seq_len, {**awd_lstm_clas_config, **sizes(a)}, a.drop_mult).to(a.device)
    weights['0.encoder_dp.emb.weight'] = weights['0.encoder.weight']
    model[0].module.load_state_dict({k[2:]: v for k,v in weights.items() if k.startswith('0.')})
    dls = DataLoaders(reviews(d, a, fit_on, shuffle=True, drop_last=len(fit_on) > a.bs), reviews(d, a, valid), device=a.device)
    learn = TextLearner(dls, model, loss_func=CrossEntropyLossFlat(), splitter=awd_lstm_clas_split, metrics=accuracy, wd=a.wd)
    L_.pull(learn, a.levers)
    train(a, learn, classifier_stages(a.lrs, a.epochs), a.name, part='clas', init=a.init.name, labels=len(fit_on))
    with learn.no_bar(): p = learn.get_preds(dl=reviews(d, a, test))[0]
    with replacing(probs) as tmp, open(tmp, 'wb') as f: np.savez_compressed(f, probs=p.numpy().astype(np.float32), label=d.label[test], back=a.back)
    tested(a, p.numpy(), d.label[test], name=a.name, labels=len(fit_on))

def tested(a, p, y, **row):
    right = int((p.argmax(1) == y).sum())
    low,high = wilson(right, len(y))
    note(a, part='test', **row, accuracy=right/len(y), low=low, high=high, n=len(y))

def both(a):
    one,two = (np.load(a.work/'results'/f'probs-{o}.npz') for o in a.names)
    if one['back'] == two['back']: raise SystemExit(f'{a.names} read in the same direction')
    tested(a, one['probs'] + two['probs'], one['label'], name='+'.join(a.names))

def pack(a):
    "fp16, in pieces of 15 MB, four a call: `cat NAME.*.part > NAME.safetensors` makes them whole"
    weights,meta = load_weights(a.init, ())
    half = save_weights(a.work/f'{a.init.stem}.half.safetensors', {k: v.half() for k,v in weights.items()}, **meta)
    data,size = half.read_bytes(),15_000_000
    for i in range(4*a.call, min(4*a.call + 4, -(-len(data)//size))): (a.work/'results'/f'{a.init.stem}.{i:02}.part').write_bytes(data[i*size:(i+1)*size])
    print(f'{len(data)/1e6:.1f} MB, {-(-len(data)//size)} pieces, {-(-len(data)//size//4)} calls')

# --- measuring -------------------------------------------------------------------------------------------------------------------------------

class Steps(Callback):
    "`n` steps: their losses, and the time of all after the first ten; nothing is read before the end"
    order,run_valid = 100,False
    def __init__(self, n, warm=10): self.n,self.warm,self.losses = n,warm,[]
    def after_batch(self):
        self.losses.append(self.loss.detach())
        if len(self.losses) == self.warm: self.wait(); self.t = time.perf_counter()
        if len(self.losses) == self.n: self.wait(); self.secs = time.perf_counter() - self.t; raise CancelFitException
    def wait(self):
        if torch.cuda.is_available(): torch.cuda.synchronize()

def some_steps(d, a, levers, n, drop_mult, shuffle):
    gc.collect()                                                                                  # the learner before, which holds memory
    need = (n + 1)*a.bs*a.seq_len
    limit = int(np.searchsorted(d.lens[(d.part != PART['test']) & ~d.valid].cumsum(), need)) + 2
    learn = lm_learn(d, a, levers, drop_mult, shuffle=shuffle, limit=limit)
    if len(learn.dls.train) < n: raise SystemExit(f'{len(learn.dls.train)} steps of bs={a.bs} and seq_len={a.seq_len} are all there are, --steps {n} wants more')
    if a.device == 'cuda': torch.cuda.empty_cache(); torch.cuda.reset_peak_memory_stats()
    steps = Steps(n, min(10, n//2))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, a.lrs[-1], cbs=steps)
    return torch.stack(steps.losses).float().cpu(), a.bs*a.seq_len*(n - steps.warm)/steps.secs

def check(a):
    "Same weights, same batches, dropout off: how far the losses part from stock's, in fp tolerance"
    d = load(a)
    want,_ = some_steps(d, a, (), a.steps, 1e-9, False)
    for o in [('loader',), ('loader', 'device'), *((k,) for k in a.levers if k not in ('loader', 'device')), tuple(a.levers)]:
        got,_ = some_steps(d, a, o, a.steps, 1e-9, False)
        off = float((got/want - 1).abs().max())
        note(a, part='check', levers=o, steps=a.steps, first_loss=float(want[0]), last_loss=float(want[-1]), off=off, good=off < (1e-4 if a.device == 'cpu' else 2e-2))

def short(a):
    "Dropout on: perplexity on validation after a short run on the same batches, or, with `--shuffle`, on batches of each loader's own order"
    d,sets,secs = load(a),[(), *((k,) for k in a.levers if k != 'device'), tuple(a.levers)],None     # `device` is nothing without `loader`
    for seed in (a.seed, a.seed + 1):
        of,run = SimpleNamespace(**{**vars(a), 'seed': seed}),dict(part='short', epochs=sum(a.epochs), texts=a.texts, shuffle=a.shuffle)
        for o in sets:
            if noted(of, levers=o, **run): continue
            if secs: stop_in_time(a, secs)
            start = time.time()
            learn = lm_learn(d, of, o, a.drop_mult, shuffle=a.shuffle, limit=a.texts)
            with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(sum(a.epochs), a.lrs[-1])
            secs,ppl = time.time() - start,float(learn.recorder.values[-1][learn.recorder.metric_names.index('perplexity') - 1])
            stock = noted(of, levers=(), **run)['perplexity'] if o else ppl
            note(of, **run, levers=o, perplexity=ppl, of_stock=ppl/stock, seconds=round(secs, 1))

def slice_(a):
    "Lever after lever, in one process; with `--alone` each beside stock"
    d,pulled = load(a),[()]
    for k in a.levers: pulled.append((*(('loader',) if k == 'device' else ()), k) if a.alone else (*pulled[-1], k))
    base = None
    for o in pulled:
        losses,speed = some_steps(d, a, o, a.steps, a.drop_mult, True)
        base = base or speed
        note(a, part='slice', levers=o, tokens_per_second=round(speed), times_stock=round(speed/base, 2), loss=float(losses[-10:].mean()), peak_bytes=peak(a))
    if a.profile:
        with torch.profiler.profile() as p: some_steps(d, a, (), 20, a.drop_mult, True)
        table = p.key_averages().table(sort_by=f'self_{a.device}_time_total', row_limit=25)
        (a.work/'results'/'profile.txt').write_text(table)

def fit(a):
    "On cards of `--gb`, which the allocator plays: what is said to fit, and whether it does"
    d = load(a)
    if a.device != 'cuda': raise SystemExit('A CPU has no memory of its own to measure; tests/test_size.py tries the rule with a simulated card')
    def step(bs): some_steps(d, SimpleNamespace(**{**vars(a), 'bs': bs}), a.levers, 3, a.drop_mult, False)
    for gb in a.gb:
        torch.cuda.set_per_process_memory_fraction(1.)
        bs = L_.largest_bs(lambda n: L_.peak_memory(step, n, a.device), gb*1e9, (16, 32))
        torch.cuda.set_per_process_memory_fraction(gb*1e9/torch.cuda.get_device_properties(0).total_memory)
        try: step(bs); fits = True
        except torch.OutOfMemoryError: fits = False
        note(a, part='fit', gb=gb, largest_bs=bs, fits=fits, peak_bytes=peak(a))

def collect(a):
    "Rows of WORK among those that are there: of one measurement the last row counts, of one training all epochs of the last"
    def key(o): return json.dumps([o.get(k) for k in ('part', 'of', 'name', 'levers', 'gb', 'bs', 'shuffle', 'labels', 'seed', 'machine')])
    file,rows = Path(__file__).resolve().parent/'results'/'at-size.json',all_rows(a)
    if not rows: raise SystemExit(f'{a.work/"results"/"rows.jsonl"} has no rows: --work names another folder, or nothing has run')
    last = {key(o): i for i,o in enumerate(rows)}
    there = json.loads(file.read_text())['rows'] if file.exists() else []
    kept = [o for o in there if key(o) not in last]
    rows = [o for i,o in enumerate(rows) if o['part'] == 'epoch' or last[key(o)] == i]
    with replacing(file) as tmp: tmp.write_text(json.dumps(dict(rows=kept + rows), indent=1) + '\n')
    print(f'{file.name}: {len(rows)} rows of {a.work}, {len(kept)} kept')

if __name__ == '__main__':
    START = time.time()
    warnings.filterwarnings('ignore')
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('part', choices=['prepare', 'check', 'slice', 'short', 'fit', 'lm', 'clas', 'both', 'pack', 'collect'])
    p.add_argument('--work', type=Path, default=Path.home()/'.fastai'/'at_size')
    p.add_argument('--data', default='imdb', choices=['imdb', 'wiki'])
    p.add_argument('--source', default='imdb', help='of `prepare`: as in `get_texts`, or the file of the Wikipedia')
    p.add_argument('--every', type=int, default=1, help='of `prepare`: each so many-th text alone')
    p.add_argument('--name', default='fwd', help='of the run: its files are called by it')
    p.add_argument('--names', nargs=2, default=('fwd', 'bwd'))
    p.add_argument('--init', default='none', help='none, wt103, or a file that `lm` wrote')
    p.add_argument('--back', action='store_true')
    p.add_argument('--sizes', type=int, nargs=3, default=(400, 1152, 3))
    p.add_argument('--levers', nargs='*', default=['loader', 'device', 'sync', 'rows', 'chunk', 'bf16'], choices=L_.LEVERS)
    p.add_argument('--bs', type=int, default=64); p.add_argument('--seq_len', type=int, default=72)
    p.add_argument('--epochs', type=int, nargs='*'); p.add_argument('--lrs', type=float, nargs='*')
    p.add_argument('--share', type=float, default=1., help='of the training texts in an epoch, drawn anew for each')
    p.add_argument('--drop_mult', type=float, default=.5); p.add_argument('--wd', type=float, default=.1)
    p.add_argument('--labels', type=int, help='of `clas`: so many training reviews alone, drawn by --seed')
    p.add_argument('--minutes', type=float, default=9.5, help='of `short`, `lm` and `clas`: end in good order before'); p.add_argument('--steps', type=int, default=50); p.add_argument('--seed', type=int, default=42)
    p.add_argument('--texts', type=int, default=2000, help='of `short`: the first so many texts alone, and a quarter as many to validate on')
    p.add_argument('--shuffle', action='store_true', help='of `short`: each loader brings the texts in an order of its own')
    p.add_argument('--alone', action='store_true'); p.add_argument('--profile', action='store_true'); p.add_argument('--call', type=int, default=0)
    p.add_argument('--gb', type=float, nargs='*', default=[6, 11, 16])
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    a = p.parse_args()
    if a.init not in ('none', 'wt103'): a.init = Path(a.init)
    epochs,lrs = ((1, 1, 1, 2), (2e-2, 1e-2, 5e-3, 1e-3)) if a.part == 'clas' else ((1, 10), (2e-2, 2e-3))
    a.epochs,a.lrs = a.epochs or epochs,a.lrs or lrs
    try: dict(prepare=prepare, check=check, slice=slice_, short=short, fit=fit, lm=lm, clas=clas, both=both, pack=pack, collect=collect)[a.part](a)
    except KeyboardInterrupt: pass
