"""What can be relied on, counted: damaged files, killed runs, predictions and generation beside stock fastai.

    python bench/reliable.py damage           # 2,000 damaged and foreign files: none may be accepted, none may fail without a clear error
    python bench/reliable.py kills            # 50 runs of a small network, killed with -9 once each: same weights as a run left alone (`--runs 5` for a share)
    python bench/reliable.py kills_embedded   # 3 runs of the whole job on the embedded reviews, killed once each
    python bench/reliable.py predict          # 10,000 reviews of IMDb beside `learn.predict` and `get_preds` (embedded reviews where IMDb is not there; `--reviews 1000` for fewer)
    python bench/reliable.py generate         # 200 words beside `learn.predict`

Each writes its part of bench/results/reliable.json, with machine, versions and time.
"""
import argparse, json, os, pickle, platform, signal, tempfile, time, warnings
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
warnings.filterwarnings('ignore')
import numpy as np, pandas as pd, torch
from fastai.text.all import (AWD_LSTM, TextDataLoaders, awd_lstm_clas_config, awd_lstm_lm_config, fastai_cfg, language_model_learner, set_seed, text_classifier_learner)
from ulmfit_tut import files
from ulmfit_tut.batches import text_dls
from ulmfit_tut.corpus import text_corpus
from ulmfit_tut.data import get_texts, mini_reviews_df
from ulmfit_tut.encoder import load_encoder, load_text_model, save_encoder, save_text_model
from ulmfit_tut.files import load_weights, replacing, save_weights
from ulmfit_tut.lm import lm_learner, pretrained_lm
from ulmfit_tut.predict import generate, predict
from ulmfit_tut.ulmfit import classifier_learner, ulmfit
from ulmfit_tut.unfreeze import Stage, discriminative, fit_stages

results = Path(__file__).parent/'results'/'reliable.json'

def note(part, **res):
    old = json.loads(results.read_text()) if results.exists() else {}
    old[part] = dict(res, machine=dict(cores=os.cpu_count(), threads=torch.get_num_threads(), processor=platform.machine(), python=platform.python_version(),
                                       **{o: version(o) for o in ('torch', 'fastai', 'spacy')}), date=time.strftime('%Y-%m-%d'))
    with replacing(results) as tmp: tmp.write_text(json.dumps(old, indent=1, sort_keys=True) + '\n')
    print(part, {k: v for k, v in res.items()})

def quiet(learn):
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__ == 'ProgressCallback'])
    learn.logger = lambda *a: None
    return learn

# --- files --------------------------------------------------------------------------------------------------------------------------------------

small = dict(emb_sz=8, n_hid=10, n_layers=3)

def texts(n=200):
    df = mini_reviews_df().rename(columns={'split': 'part'})
    df = pd.concat([g.iloc[:n//5] for _, g in df.groupby(['part', 'label'])]).sort_index().reset_index(drop=True)
    return text_corpus(get_texts(df.assign(text=df.text.str.split().str[:25].str.join(' ')), split_col='part'))

def toy(corpus, is_lm=False, bs=4):
    dls = text_dls(corpus, corpus.vocab(), is_lm=is_lm, bs=bs, seq_len=8, device='cpu')
    set_seed(1)
    make, cfg = (language_model_learner, awd_lstm_lm_config) if is_lm else (text_classifier_learner, awd_lstm_clas_config)
    return quiet(make(dls, AWD_LSTM, config={**cfg, **small}, pretrained=False, **({} if is_lm else dict(seq_len=8))))

def damage(n=2000):
    rng, corpus, ran = np.random.default_rng(0), texts(), Path(tempfile.mkdtemp())
    clas, kinds = toy(corpus), {}
    class Bad:
        def __reduce__(self): return os.system, (f'touch {ran}/ran',)
    enc, whole = save_encoder(clas, ran/'enc.safetensors'), save_text_model(clas, ran/'clas.safetensors')
    before = {k: v.clone() for k, v in clas.model.state_dict().items()}
    def tried(kind, load, f):
        try: load(clas, f); how = 'accepted'
        except (ValueError, OSError) as e: how = 'clear error' if f.name in str(e) or 'safetensors' in str(e) else f'unclear: {e}'
        except BaseException as e: how = f'{type(e).__name__}: {e}'
        same = all(torch.equal(before[k], v) for k, v in clas.model.state_dict().items())
        key = f'{kind}: {how if same else "CHANGED THE LEARNER"}'
        kinds[key] = kinds.get(key, 0) + 1
    for f, load in ((enc, load_encoder), (whole, load_text_model)):
        good = f.read_bytes()
        end = 8 + int.from_bytes(good[:8], 'little')
        words = good.index(b'"vocab"')
        for kind, lo, hi in [('length prefix', 0, 8), ('header', 8, end), ('vocabulary and metadata', words, words + good[words:end].index(b']')), ('tensors', end, len(good))]:
            for _ in range(n//8):
                i, j = int(rng.integers(lo, hi)), int(rng.integers(1, 256))
                f.write_bytes([good[:i] + bytes([good[i] ^ j]) + good[i+1:], good[:i], good[:i] + good[i+1:], good[:i] + rng.bytes(j) + good[i:]][int(rng.integers(4))])
                tried(kind, load, f)
        f.write_bytes(good)
        w, meta = load_weights(f)
        for kw in [dict(arch='QRNN'), dict(backwards=True), dict(vocab=meta['vocab'][::-1]), dict(rules='corrected'), dict(tokenizer='spaCy de'), dict(config={**small, 'n_hid': 11})]:
            save_weights(f, w, **{**meta, **kw})
            tried(f'whole, another {first_key(kw)}', load, f)
        f.write_bytes(pickle.dumps(Bad()))
        tried('pickle in disguise', load, f)
        f.write_bytes(good)
        load(clas, f)
    note('damage', files=sum(kinds.values()), outcomes=kinds, code_run=(ran/'ran').exists())

def first_key(d): return next(iter(d))

# --- runs that are killed -------------------------------------------------------------------------------------------------------------------------

plan = [Stage(-1, 4, 2e-2), Stage(-2, 4, discriminative(1e-2)), Stage(-3, 4, discriminative(5e-3)), Stage(0, 8, discriminative(5e-3))]

def child(job):
    "Run `job` in a process of its own; its pid"
    pid = os.fork()
    if pid: return pid
    torch.set_num_threads(1)
    try: job()
    finally: os._exit(0)

def kills(runs=50, in_write=15):
    corpus, tmp, rng = texts(600), Path(tempfile.mkdtemp()), np.random.default_rng(0)
    def run(i, out, at_write=None):
        if at_write:
            n, sync = [], files.os.fsync
            def fsync(fd): n.append(1); sync(fd); len(n) == at_write and os.kill(os.getpid(), signal.SIGKILL)
            files.os.fsync = fsync
        learn = toy(corpus)
        hist, _ = fit_stages(learn, plan, file=tmp/f'{i}.safetensors')
        torch.save(learn.model.state_dict(), out)
    t = time.time()
    os.waitpid(child(lambda: run('alone', tmp/'alone.pt')), 0)
    secs, want = time.time() - t, torch.load(tmp/'alone.pt', weights_only=True)
    same = lost = corrupt = left = 0
    for i in range(runs):
        inside = i < in_write*runs//50
        pid = child(lambda: run(i, tmp/f'{i}.pt', at_write=int(rng.integers(1, 20)) if inside else None))
        if not inside: time.sleep(rng.uniform(.05, 1)*secs); os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        f = tmp/f'{i}.safetensors'
        if f.exists():
            try: load_weights(f, ())
            except ValueError: corrupt += 1
        os.waitpid(child(lambda: run(i, tmp/f'{i}.pt')), 0)
        got = torch.load(tmp/f'{i}.pt', weights_only=True)
        same += all(torch.equal(want[k], got[k]) for k in want)
        left += len(list(tmp.glob(f'.{i}.*')))
        for o in tmp.glob(f'*{i}.*'): o.unlink(missing_ok=True)
        print(f'{i+1}: {same} the same', flush=True)
    note('kills', runs=runs, inside_a_write=in_write*runs//50, same_weights=same, corrupt=corrupt, temporary_files_left=left, seconds_a_run=round(secs, 1))

def kills_embedded(runs=3):
    "The whole job on the embedded reviews, killed once each, and called again"
    tmp, rng = Path(tempfile.mkdtemp()), np.random.default_rng(0)
    def run(out): ulmfit('mini', out, 'movies', lm_epochs=(1, 1), epochs=(1, 1, 1, 1), bs=32, compare=(), device='cpu', progress=False)
    t = time.time()
    os.waitpid(child(lambda: run(tmp/'alone')), 0)
    secs, want, same, at = time.time() - t, (tmp/'alone/classifier.safetensors').read_bytes(), 0, []
    for i in range(runs):
        pid = child(lambda: run(tmp/f'{i}'))
        at.append(round(rng.uniform(.1, .9)*secs)); time.sleep(at[-1]); os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert not (tmp/f'{i}/report.html').exists(), 'it was done before it was killed'
        os.waitpid(child(lambda: run(tmp/f'{i}')), 0)
        same += (tmp/f'{i}/classifier.safetensors').read_bytes() == want
        print(f'{i+1}: killed after {at[-1]} s, {same} the same', flush=True)
    note('kills_embedded', runs=runs, same_weights=same, killed_after_s=at, seconds_a_run=round(secs))

# --- speed ----------------------------------------------------------------------------------------------------------------------------------------

def reviews(n):
    if not (fastai_cfg().path('data')/'imdb').exists(): return mini_reviews_df().text.tolist()[:n]
    d = fastai_cfg().path('data')/'imdb'/'test'
    return [f.read_text(encoding='utf8') for f in sorted(d.glob('*/*.txt'))[::max(1, 25_000//n)]][:n]

def timed(f): t = time.perf_counter(); r = f(); return time.perf_counter() - t, r

def predict_(n=10_000, n_loop=300):
    "The embedded network, in a stock learner from fastai's own DataLoaders and in ours"
    some = reviews(n)
    corpus = text_corpus(get_texts())
    weights, words, sizes = pretrained_lm('movies')
    vocab = corpus.vocab(words)
    lm = lm_learner(text_dls(corpus, vocab, is_lm=True, device='cpu'), 'movies')
    enc = save_encoder(lm, Path(tempfile.mkdtemp())/'e.safetensors')
    learn = quiet(classifier_learner(text_dls(corpus, vocab, bs=64, device='cpu'), sizes, enc))
    train = corpus.df[corpus.df.part.eq('train')]
    dls = TextDataLoaders.from_df(train, text_col='text', label_col='label', valid_col='is_valid', text_vocab=vocab, bs=64, device='cpu', num_workers=0)
    stock = quiet(text_classifier_learner(dls, AWD_LSTM, config={**awd_lstm_clas_config, **sizes}, pretrained=False))
    stock.model.load_state_dict(learn.model.state_dict())
    inside, forward = [0.], learn.model.forward
    def counted(*a): t = time.perf_counter(); r = forward(*a); inside[0] += time.perf_counter() - t; return r
    predict(learn, some[:64])
    learn.model.forward = counted
    ours, frame = timed(lambda: predict(learn, some))
    outside, learn.model.forward = 1 - inside[0]/ours, forward
    loop, _ = timed(lambda: [stock.predict(t) for t in some[:n_loop]])
    batch, _ = timed(lambda: stock.get_preds(dl=stock.dls.test_dl(some)))
    short = [' '.join(t.split()[:12]) for t in some[:len(some)//8]]
    serial = [predict(learn, t).pos[0] for t in short]
    with ThreadPoolExecutor(8) as ex: threads = sum(a == b for a, b in zip(ex.map(lambda t: predict(learn, t).pos[0], short*8), serial*8))
    alone = max(np.abs(predict(learn, t).iloc[0, 1:].to_numpy(float) - frame.iloc[i, 1:].to_numpy(float)).max() for i, t in enumerate(some[:200]))
    note('predict', reviews=len(some), ours_s=round(ours, 1), outside_forward=round(outside, 3), loop_s=round(loop/n_loop*len(some), 1), loop_measured_on=n_loop, get_preds_s=round(batch, 1),
         times_loop=round(loop/n_loop*len(some)/ours, 1), times_get_preds=round(batch/ours, 2), alone_differs_by=float(alone), threads_equal=f'{threads} of {8*len(short)}')

def generate_(n=200):
    corpus = text_corpus(get_texts())
    lm = quiet(lm_learner(text_dls(corpus, corpus.vocab(pretrained_lm('movies')[1]), is_lm=True, device='cpu'), 'movies'))
    generate(lm, 'The ending is', 5)
    ours = np.median([timed(lambda: generate(lm, 'The ending is', n, seed=i))[0] for i in range(3)])
    stock = np.median([timed(lambda: lm.predict('The ending is', n, no_bar=True))[0] for _ in range(3)])
    note('generate', words=n, ours_s=round(float(ours), 2), stock_s=round(float(stock), 2), times=round(float(stock/ours), 1))

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('part', choices=['damage', 'kills', 'kills_embedded', 'predict', 'generate'])
    p.add_argument('--runs', type=int, default=50)
    p.add_argument('--reviews', type=int, default=10_000)
    a = p.parse_args()
    if a.part == 'kills': kills(a.runs)
    elif a.part == 'predict': predict_(a.reviews, min(300, a.reviews//10))
    else: dict(damage=damage, generate=generate_, kills_embedded=kills_embedded)[a.part]()
