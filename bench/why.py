"""Which words does a method name, and does the probability fall when they go? Several ways to explain a classifier, beside two that never saw it.

    python bench/why.py

Trains a classifier a seed on three quarters of the embedded training reviews, and explains its answers on the rest; the test reviews are not touched.
Each method sorts the words of a review. The best 1, 2, 3, 5, 10 and 20 are taken away, once by deleting them and once by making them `xxunk`, and the fall of
the probability of the answer is noted. Writes bench/results/why.json, with machine, versions and time.
"""
import argparse, json, os, platform, tempfile, time, warnings
from importlib.metadata import version
from pathlib import Path
warnings.filterwarnings('ignore')
import numpy as np, pandas as pd, torch
from fastai.text.all import AWD_LSTM, awd_lstm_clas_config, chunked, set_seed, text_classifier_learner
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from ulmfit_tut.batches import pad_windows, text_dls
from ulmfit_tut.compare import paired_difference
from ulmfit_tut.corpus import text_corpus
from ulmfit_tut.data import get_texts
from ulmfit_tut.encoder import encoder_of, save_encoder, words_of
from ulmfit_tut.files import replacing
from ulmfit_tut.lm import lm_learner, pretrained_lm
from ulmfit_tut.predict import _ids, _reading, predict
from ulmfit_tut.ulmfit import classifier_learner
from ulmfit_tut.unfreeze import classifier_stages, fit_stages
from ulmfit_tut.why import _words, why

seeds, away, n_reviews = (0, 1, 2), (1, 2, 3, 5, 10, 20), 20
ways = dict(occlusion='made unknown (`why`)', delete='deleted', ig='integrated gradients from `xxunk`', mean='integrated gradients from the mean row', grad='gradient x embedding',
            attention='intrinsic attention of fastai v1', tfidf='weights of TF-IDF + logistic regression', untrained='made unknown, untrained network', random='random words')

def logit(z): return z[:, 1] - z[:, 0]

def said(model, versions):
    "Log-odds of the second class, a number a version of a text"
    res = np.zeros(len(versions))
    for b in chunked(sorted(range(len(versions)), key=lambda i: -len(versions[i])), 64):
        with torch.no_grad(): res[b] = logit(model(pad_windows([versions[i] for i in b], model[0].bptt, model[0].pad_idx))[0].float()).numpy()
    return res

def slope(learn, model, ids, base, steps):
    "Mean gradient of the log-odds on the way from `base` to the text, which is read in one window so that gradients pass; and the difference between text and `base`"
    enc = encoder_of(learn)
    emb = enc.encoder.weight.detach()[torch.from_numpy(np.array(ids))]
    base = torch.where(torch.from_numpy(np.array(ids) == words_of(learn).index('xxbos'))[:, None], emb, emb if base is None else base)
    def out(x):
        model.reset()
        o = enc(x, from_embeds=True)
        return logit(model[1]((o, torch.zeros(o.shape[:2], dtype=torch.bool)))[0])
    g = 0
    for a in ((torch.arange(steps) + .5)/steps).split(16):
        with torch.enable_grad():
            x = (base + a[:, None, None]*(emb - base)).requires_grad_()
            g = g + torch.autograd.grad(out(x).sum(), x)[0].sum(0)/steps
    with torch.no_grad(): gap = float(out(emb[None]) - out(base[None]))
    return g, emb, base, gap

def scores(learn, fresh, weights, text, ids, words, sign, rng, took):
    "Of each method, a score a word"
    res, W = {}, encoder_of(learn).encoder.weight.detach()
    def add(k, f):
        t = time.process_time(); s = f(); took.setdefault(k, []).append(time.process_time() - t)             # other programs may run beside
        res[k] = np.asarray(s, float)
    def sums(s): return [float(s[w].sum()) for w in words]
    with _reading(learn) as (model, _):
        full = said(model, [ids])[0]
        def path(base, steps):
            g, emb, b, gap = slope(learn, model, ids, base, steps)
            s = (g*(emb - b)).sum(-1)
            return s*sign, abs(float(s.sum()) - gap)/abs(gap)
        gaps = {}
        def ig(k, base): s, gaps[k] = path(base, 32); return sums(s)
        add('delete', lambda: sign*(full - said(model, [np.delete(ids, w) for w in words])))
        add('ig', lambda: ig('ig', W[0]))
        add('mean', lambda: ig('mean', W.mean(0)))
        def grad(): g, emb, *_ = slope(learn, model, ids, None, 1); return g, emb
        add('grad', lambda: sums(sign*(lambda g, emb: (g*emb).sum(-1))(*grad())))
        add('attention', lambda: sums(grad()[0].abs().sum(-1)))
    label = learn.dls.vocab[1][int(sign > 0)]
    add('occlusion', lambda: why(learn, text, label).score)
    add('untrained', lambda: why(fresh, text, label).score)
    vocab = words_of(learn)
    add('tfidf', lambda: [sign*max((weights.get(vocab[ids[i]], 0.) for i in w), key=abs) for w in words])
    add('random', lambda: rng.random(len(words)))
    return res, gaps

def main():
    tmp, rng = Path(tempfile.mkdtemp()), np.random.default_rng(0)
    corpus = text_corpus(get_texts(valid_pct=.25))
    _, words, sizes = pretrained_lm('movies')
    vocab = corpus.vocab(words)
    train = corpus.df[corpus.df.part.eq('train')]
    held = train[train.is_valid].reset_index(drop=True).sample(n_reviews, random_state=0)
    vec = TfidfVectorizer(sublinear_tf=True).fit(train.text[~train.is_valid])
    lr = LogisticRegression(C=10, max_iter=1000).fit(vec.transform(train.text[~train.is_valid]), train.label[~train.is_valid])
    weights = dict(zip(vec.get_feature_names_out(), lr.coef_[0]*vec.idf_))
    enc = save_encoder(lm_learner(text_dls(corpus, vocab, is_lm=True, device='cpu'), 'movies'), tmp/'enc.safetensors')
    falls, all_scores, took, gaps, accuracy = {how: {k: [] for k in ways} for how in ('delete', 'unknown')}, {k: [] for k in ways}, {}, {}, []
    for seed in seeds:
        set_seed(seed)
        learn = classifier_learner(text_dls(corpus, vocab, bs=16, seed=seed, device='cpu'), sizes, enc)
        with learn.no_bar(), learn.no_logging(): fit_stages(learn, classifier_stages(lrs=(2e-2,)*4, epochs=(1, 1, 1, 4)), seed)
        fresh = text_classifier_learner(learn.dls, AWD_LSTM, config={**awd_lstm_clas_config, **sizes}, pretrained=False)
        pred = predict(learn, held.text)
        accuracy.append(float(pred.label.eq(held.label).mean()))
        mine = {how: {k: [] for k in ways} for how in falls}
        for k in ways: all_scores[k].append([])
        for n, (text, ids) in enumerate(zip(held.text, _ids(learn, held.text))):
            at, sign = _words([vocab[i] for i in ids]), 1. if pred.label.iloc[n] == learn.dls.vocab[1][1] else -1.
            s, gap = scores(learn, fresh, weights, text, ids, at, sign, rng, took)
            for k, v in gap.items(): gaps.setdefault(k, []).append(v)
            for how in falls:
                versions = [ids]
                for k in ways:
                    best = np.argsort(-s[k], kind='stable')
                    for m in away:
                        gone, v = np.concatenate([at[j] for j in best[:m]]), ids.copy()
                        v[gone] = 0
                        versions.append(np.delete(ids, gone) if how == 'delete' else v)
                with _reading(learn) as (model, _): p = 1/(1 + np.exp(-sign*said(model, versions)))
                for k, row in zip(ways, p[1:].reshape(len(ways), -1)): mine[how][k].append(p[0] - row)
            for k in ways: all_scores[k][-1].append(s[k]*(sign if k not in ('random', 'attention') else 1))
        for how in falls:
            for k in ways: falls[how][k].append(mine[how][k])
        print(seed, accuracy[-1], f'{time.process_time():.0f} s', flush=True)
    rows, versus = [], []
    for how in falls:
        for k in ways:
            d = np.array(falls[how][k])                                                                  # seeds x reviews x words away
            for j, m in enumerate(away):
                mean, low, high = paired_difference(d[:, :, j], 0*d[:, :, j], n_boot=2000)
                rows.append(dict(how=how, way=k, words=m, fall=float(mean), low=float(low), high=float(high)))
            for name, of in (('all', d.mean(2)), ('less occlusion', d.mean(2) - np.array(falls[how]['occlusion']).mean(2))):
                mean, low, high = paired_difference(of, 0*of, n_boot=2000)
                versus.append(dict(how=how, way=k, of=name, fall=float(mean), low=float(low), high=float(high)))
    def like(a, b): return float(np.nanmean([spearmanr(x, y)[0] for x, y in zip(a, b)]))
    agree = {k: float(np.mean([like(v[i], v[j]) for i in range(len(seeds)) for j in range(i)])) for k, v in all_scores.items() if k not in ('random', 'tfidf')}
    with_occlusion = {k: float(np.mean([like(a, b) for a, b in zip(v, all_scores['occlusion'])])) for k, v in all_scores.items() if k != 'occlusion' and k != 'attention'}
    res = dict(ways=ways, seeds=seeds, reviews=n_reviews, away=away, accuracy=accuracy, falls=rows, mean_fall=versus, seeds_agree=agree, like_occlusion=with_occlusion,
               cpu_ms_a_review={k: round(1000*float(np.median(v)), 1) for k, v in took.items()}, gap={k: float(np.median(v)) for k, v in gaps.items()},
               words_a_review=float(np.mean([len(o) for o in all_scores['random'][0]])), cpu_seconds=round(time.process_time()),
               machine=dict(cores=os.cpu_count(), threads=torch.get_num_threads(), processor=platform.machine(), python=platform.python_version(),
                            **{o: version(o) for o in ('torch', 'fastai', 'scikit-learn')}), date=time.strftime('%Y-%m-%d'))
    out = Path(__file__).parent/'results'/'why.json'
    with replacing(out) as f: f.write_text(json.dumps(res, indent=1) + '\n')
    print(pd.DataFrame(versus).round(3).to_string(), agree, res['cpu_ms_a_review'], res['cpu_seconds'])

if __name__ == '__main__':
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    main()
