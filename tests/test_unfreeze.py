"""Stages that go on where they stopped, bit for bit, and learners that survive whatever stops them."""
import random, subprocess, sys, time, warnings
from copy import deepcopy
from functools import partial
import numpy as np, pandas as pd, pytest, torch
from fastai.text.all import (AWD_LSTM, SGD, Adam, Callback, Categorize, CrossEntropyLossFlat, Datasets, F, F1Score, FocalLossFlat, GradientAccumulation, LabelSmoothingCrossEntropyFlat, LMDataLoader, MixedPrecision, Perplexity, Recall, SaveModelCallback, ShortEpochCallback, SortedDL, TerminateOnNaNCallback, TextDataLoaders, Tokenizer, accuracy,
    awd_lstm_clas_config, awd_lstm_lm_config, language_model_learner, set_seed, text_classifier_learner)
from ulmfit_tut.batches import known_words, text_dls
from ulmfit_tut.corpus import text_corpus
from ulmfit_tut.data import PadChunks, get_texts
from ulmfit_tut.encoder import save_text_model
from ulmfit_tut.files import load_weights, save_weights
from ulmfit_tut.predict import load_classifier
from ulmfit_tut.restore import clean_exit, model_weights
from ulmfit_tut.ulmfit import classifier_learner
from ulmfit_tut.unfreeze import Stage, classifier_stages, discriminative, fit_stages, lm_stages, paper_stages

small = dict(emb_sz=8, n_hid=10, n_layers=3)
stages = [Stage(-1, 1, 2e-2), Stage(-2, 2, discriminative(1e-2)), Stage(0, 2, discriminative(5e-3))]

@pytest.fixture(scope='module')
def corpus(short): return text_corpus(get_texts(short, split_col='part'))

def stock_dls(corpus, is_lm):
    "fastai's own two loaders"
    df, vocab = corpus.df, corpus.vocab()
    items = [' '.join(t.split()) for t in df.text[df.part.eq('train')]]
    tfms = [[Tokenizer(corpus.tok, rules=[]), known_words(vocab)]] + ([] if is_lm else [[dict(zip(items, df.label[df.part.eq('train')])).get, Categorize()]])
    splits = [[i for i in range(len(items)) if i % 4], [i for i in range(len(items)) if not i % 4]]
    kw = {} if is_lm else dict(before_batch=PadChunks(seq_len=8))
    return Datasets(items, tfms, splits=splits, dl_type=LMDataLoader if is_lm else SortedDL).dataloaders(bs=4, seq_len=8, device='cpu', num_workers=0, **kw) if is_lm else \
        Datasets(items, tfms, splits=splits, dl_type=SortedDL).dataloaders(bs=4, device='cpu', num_workers=0, **kw)

def learner(corpus, kind, bs=4):
    is_lm, stock = 'lm' in kind, 'stock' in kind
    dls = stock_dls(corpus, is_lm) if stock else text_dls(corpus, corpus.vocab(), is_lm=is_lm, bs=bs, seq_len=8, device='cpu')
    set_seed(3)
    if is_lm: learn = language_model_learner(dls, AWD_LSTM, config={**awd_lstm_lm_config, **small}, pretrained=False, metrics=Perplexity())
    else: learn = text_classifier_learner(dls, AWD_LSTM, config={**awd_lstm_clas_config, **small}, pretrained=False, seq_len=8, metrics=accuracy)
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__ == 'ProgressCallback'])
    learn.logger = lambda *a: None
    return learn

def weights(learn): return {k: v.clone() for k, v in learn.model.state_dict().items()}
def same(a, b): return all(torch.equal(a[k], b[k]) for k in a)

class Stop(Callback):
    "Raise `exc` at batch `iter` of the `n`th epoch that is trained"
    order, run_valid = 60, False
    def __init__(self, n, iter, exc): self.n, self.at, self.exc, self.seen = n, iter, exc, 0
    def before_epoch(self): self.seen += 1
    def after_backward(self):
        if self.seen == self.n and self.iter == self.at: raise self.exc

class Rates(Callback):
    "What the optimizer used in each step"
    run_valid, order = False, 51
    def __init__(self): self.rows = []
    def after_batch(self): self.rows.append([h['lr']*(i >= self.opt.frozen_idx) for i, h in enumerate(self.opt.hypers)])

@pytest.mark.parametrize('kind', ['lm', 'classifier', 'stock lm', 'stock classifier'])
def test_goes_on_bit_for_bit(corpus, kind, tmp_path):
    "Cut off in each of the five epochs, gone on in a learner that knows nothing"
    plan = [Stage(*o) for o in zip((-1, -2, 0), (1, 2, 2), (2e-2, 1e-2, 5e-3))]
    whole, used = learner(corpus, kind), Rates()
    with whole.added_cbs(used): hist, lrs = fit_stages(whole, plan)
    assert lrs.drop(columns='stage').to_numpy() == pytest.approx(np.array(used.rows), abs=1e-15)
    for n in range(1, 6):
        file = tmp_path/f'{n}.safetensors'
        cut = learner(corpus, kind)
        with pytest.raises(KeyboardInterrupt), cut.added_cbs(Stop(n, 2, KeyboardInterrupt())): fit_stages(cut, plan, file=file)
        assert file.exists() == (n > 1)
        file.with_name(f'.{file.name}.123.tmp').write_bytes(b'half')                                      # what a killed process leaves
        if n > 1: assert len(load_weights(file, ())[1]['history']) == n - 1
        again = learner(corpus, kind) if n > 1 else cut                                  # before the first checkpoint: the same learner, given back its weights
        if n > 1: [p.data.normal_() for p in again.model.parameters()]
        hist2, lrs2 = fit_stages(again, plan, file=file)
        assert same(weights(whole), weights(again))
        pd.testing.assert_frame_equal(hist.drop(columns='seconds'), hist2.drop(columns='seconds')); pd.testing.assert_frame_equal(lrs, lrs2)
    assert len(fit_stages(again, plan, file=file)[0]) == 5 and len(list(tmp_path.iterdir())) == 5          # finished: nothing left to do, one file a run

def test_an_interrupted_learner_goes_on_too(corpus, tmp_path):
    "The same learner, in the same process: as after Ctrl-C in a notebook"
    whole, cut = learner(corpus, 'classifier'), learner(corpus, 'classifier')
    fit_stages(whole, stages)
    with pytest.raises(KeyboardInterrupt), cut.added_cbs(Stop(4, 1, KeyboardInterrupt())): fit_stages(cut, stages, file=tmp_path/'s.safetensors')
    assert list(map(type, cut.cbs)) == list(map(type, whole.cbs))
    fit_stages(cut, stages, file=tmp_path/'s.safetensors')
    assert same(weights(whole), weights(cut))

def test_state_of_another_run_is_refused(corpus, short, tmp_path):
    file = tmp_path/'s.safetensors'
    fit_stages(learner(corpus, 'classifier'), stages[:1], file=file)
    def refused(learn, plan, has, **kw):
        before = weights(learn)
        with pytest.raises(ValueError) as e: fit_stages(learn, plan, file=file, **kw)
        assert has in str(e.value) and 'another run' in str(e.value) and same(before, weights(learn))
    refused(learner(corpus, 'classifier'), stages[:2], 'stages')
    refused(learner(corpus, 'classifier'), stages[:1], 'seed', seed=7)
    refused(learner(corpus, 'lm'), stages[:1], 'model')
    other = text_corpus(get_texts(short.assign(text=short.text.where(short.index != short.index[short.part.eq('train')][0], 'Another text.')), split_col='part'))
    refused(learner(other, 'classifier'), stages[:1], 'train')
    for k, v, has in [('wd', .3, 'wd'), ('loss_func', torch.nn.CrossEntropyLoss(), 'loss'), ('loss_func', CrossEntropyLossFlat(weight=torch.tensor([1., 2.])), 'loss'),
                      ('opt_func', partial(SGD, mom=.9), 'opt'), ('opt_func', partial(Adam, sqr_mom=.9), 'opt'), ('opt_func', partial(Adam, wd=.3), 'wd')]:
        changed = learner(corpus, 'classifier')
        setattr(changed, k, v)
        refused(changed, stages[:1], has)
    changed = learner(corpus, 'classifier')
    changed.model[0].module.hidden_dps[0].p = .01
    refused(changed, stages[:1], 'dropout')

def less(x, y): return F.cross_entropy(x, y)
def more(x, y): return 2*F.cross_entropy(x, y)

@pytest.mark.parametrize('a,b', [(LabelSmoothingCrossEntropyFlat(eps=.1), LabelSmoothingCrossEntropyFlat(eps=.6)), (FocalLossFlat(gamma=.5), FocalLossFlat(gamma=5)),
    (partial(F.cross_entropy, label_smoothing=.1), partial(F.cross_entropy, label_smoothing=.9)), (less, more)])
def test_another_loss_of_the_same_kind_is_refused(corpus, tmp_path, a, b):
    one, same, other = (learner(corpus, 'classifier') for _ in range(3))
    one.loss_func = same.loss_func = a
    other.loss_func = b
    hist, _ = fit_stages(one, stages[:1], file=tmp_path/'s.safetensors')
    pd.testing.assert_frame_equal(fit_stages(same, stages[:1], file=tmp_path/'s.safetensors')[0], hist)
    with pytest.raises(ValueError, match='another run, checkpoint / now: loss'): fit_stages(other, stages[:1], file=tmp_path/'s.safetensors')

def test_the_other_direction_is_refused(corpus, tmp_path):
    learn = learner(corpus, 'classifier')
    fit_stages(learn, stages[:1], file=tmp_path/'s.safetensors')
    learn.dls = text_dls(corpus, corpus.vocab(), bs=4, seq_len=8, backwards=True, device='cpu')
    with pytest.raises(ValueError, match='another run, checkpoint / now: train'): fit_stages(learn, stages[:1], file=tmp_path/'s.safetensors')

def test_random_numbers_go_on_as_before(corpus):
    "A loop around the stages that draws anew draws anew"
    learn, drawn = learner(corpus, 'classifier'), []
    set_seed(5)
    for _ in range(2):
        drawn += [(np.random.rand(), float(torch.rand(1)), random.random())]
        fit_stages(learn, stages[:1])
    set_seed(5)
    assert drawn == [(np.random.rand(), float(torch.rand(1)), random.random()) for _ in range(2)]

def test_nan_is_told_whoever_stops(corpus):
    "fastai's callback for NaN ends a fit without a word; the stages end with one, and the weights are those before"
    learn = learner(corpus, 'clas')
    before = weights(learn)
    class Break(Callback):
        def after_pred(self): self.learn.pred = self.pred*float('nan')
    learn.add_cbs([Break(), TerminateOnNaNCallback()])
    with pytest.raises(ValueError, match='no number any more'): fit_stages(learn, [Stage(0, 1, 1e-2)])
    assert same(before, weights(learn))

def test_steps_are_those_that_were_taken(corpus):
    learn = learner(corpus, 'clas')
    with learn.added_cbs(ShortEpochCallback(.5)): hist, lrs = fit_stages(learn, [Stage(-1, 2, 1e-2), Stage(0, 1, 1e-2)])
    n = len(learn.dls.train)
    assert len(lrs) == hist.steps.sum() and (hist.steps < n).all() and (hist.steps > n//3).all()

def test_nan_stops_with_the_last_good_state(corpus, tmp_path):
    class Nan(Callback):
        order, run_valid = -10, False
        def before_batch(self):
            if self.opt.frozen_idx < 4: next(self.model.parameters()).data[:] = float('nan')
    learn, file = learner(corpus, 'classifier'), tmp_path/'s.safetensors'
    with pytest.raises(ValueError, match='lower the learning rates'), learn.added_cbs(Nan()): fit_stages(learn, stages, file=file)
    assert all(torch.isfinite(o).all() for o in learn.model.state_dict().values()) and len(load_weights(file, ())[1]['history']) == 1
    learn.fit(1, 1e-3)                                                                        # nor are the optimizer's averages NaN any more
    assert all(torch.isfinite(o).all() for o in learn.model.state_dict().values())

@pytest.mark.parametrize('of', ['GPU', 'CPU'])
def test_out_of_memory(corpus, tmp_path, of):
    "The error names batch size, longest text and the way on; a smaller batch with gathered gradients goes on from the same file"
    error = torch.OutOfMemoryError('CUDA out of memory. Tried')
    if of == 'CPU':
        with pytest.raises(RuntimeError) as e: torch.empty(10**16)
        error = e.value
    learn, file = learner(corpus, 'classifier'), tmp_path/'s.safetensors'
    with pytest.raises(torch.OutOfMemoryError, match=r'shape \(4, \d+\).*bs=2.*GradientAccumulation\(4\)'), learn.added_cbs(Stop(3, 1, error)):
        fit_stages(learn, stages, file=file)
    assert all(p.grad is None or not p.grad.any() for p in learn.model.parameters())
    less = learner(corpus, 'classifier', bs=2)
    less.add_cb(GradientAccumulation(4))
    assert len(fit_stages(less, stages, file=file)[0]) == 5

def test_a_checkpoint_that_cannot_be_written_is_found_before_training(corpus, tmp_path):
    learn = learner(corpus, 'classifier')
    before = weights(learn)
    (tmp_path/'taken').write_text('no folder')
    with pytest.raises(OSError, match='taken'): fit_stages(learn, stages, file=tmp_path/'taken'/'s.safetensors')
    assert same(before, weights(learn)) and not getattr(learn.recorder, 'values', [])

def test_windows_of_one_length(corpus):
    "A classifier that reads other windows than its loaders pad for trains nothing: of its short texts a part would not be read"
    dls = learner(corpus, 'classifier').dls
    odd = text_classifier_learner(dls, AWD_LSTM, config={**awd_lstm_clas_config, 'emb_sz': 4, 'n_hid': 4, 'n_layers': 1}, pretrained=False, seq_len=dls.train.seq_len + 1)
    before = deepcopy(model_weights(odd.model))
    with pytest.raises(ValueError, match='make both with the same'): fit_stages(odd, stages)
    assert all(torch.equal(v, before[k]) for k,v in model_weights(odd.model).items())

def test_out_of_memory_before_the_first_batch(corpus):
    class Full(Callback):
        def before_fit(self): raise torch.OutOfMemoryError('CUDA out of memory')
    learn = learner(corpus, 'classifier')
    with pytest.raises(torch.OutOfMemoryError, match='go on where it stopped'), learn.added_cbs(Full()): fit_stages(learn, stages)
    assert len(fit_stages(learn, stages[:1])[0]) == stages[0].epochs

class OnCPU(MixedPrecision):
    "`to_bf16`, for a CPU"
    def before_fit(self): self.autocast, self.learn.scaler, self.scales = torch.autocast('cpu', torch.bfloat16), None, []
    def before_backward(self): pass
    def before_step(self): pass
    def after_step(self): pass

class Scaled(MixedPrecision):
    "`to_fp16` with its scaler, for a CPU, and the scale of each step"
    rows = None
    def before_fit(self):
        self.autocast, self.scales, self.rows = torch.autocast('cpu', torch.bfloat16), [], self.rows or []
        self.learn.scaler = torch.amp.GradScaler('cpu', init_scale=2.**8, growth_interval=4)
    def after_step(self): super().after_step(); self.rows.append(self.learn.scaler.get_scale())

def test_lists_of_another_length():
    "No stage is left out without a word"
    for f, n in ((lm_stages, 2), (classifier_stages, 4)):
        with pytest.raises(ValueError, match='stages want'): f(epochs=(1,)*(n + 1))
        with pytest.raises(ValueError, match='stages want'): f(lrs=(1e-2,)*(n - 1))

@pytest.fixture
def plain_lstm():
    "Without oneDNN, whose LSTM has no bfloat16 on a processor without AVX-512"
    with warnings.catch_warnings(action='ignore'), torch.backends.mkldnn.flags(enabled=False): yield

def test_the_scaler_goes_on(corpus, tmp_path, plain_lstm):
    "Cut off in mid-stage: its scale does not start again, and the weights are those of an uninterrupted run"
    plan, file, runs = [Stage(0, 3, 5e-3)], tmp_path/'s.safetensors', []
    for stop in (None, Stop(3, 1, KeyboardInterrupt()), None):
        learn = learner(corpus, 'classifier')
        learn.add_cb(Scaled())
        if stop:
            with pytest.raises(KeyboardInterrupt), learn.added_cbs(stop): fit_stages(learn, plan, file=file)
        else: fit_stages(learn, plan, file=file if runs else None)
        runs.append((weights(learn), learn.scaled.rows))
    (a, whole), _, (b, rest) = runs
    assert same(a, b) and whole[-len(rest):] == rest and rest[0] > 2.**8 and len(rest) < len(whole)

@pytest.mark.parametrize('stock', [True, False])
def test_autocast_is_left(corpus, stock):
    "fastai leaves it on: later products of single precision come out as halves"
    class Bad(Callback):
        order = 20
        def before_batch(self): raise KeyboardInterrupt
    learn = learner(corpus, 'classifier')
    learn.add_cb(OnCPU())
    a = torch.ones(2, 2)
    try:
        with pytest.raises(KeyboardInterrupt), learn.added_cbs(Bad()):
            if stock: learn.fit(1)
            else: fit_stages(learn, stages[:1])
        assert (a@a).dtype == (torch.bfloat16 if stock else torch.float32)
    finally:
        while torch.is_autocast_enabled('cpu'): learn.on_cpu.autocast.__exit__(None, None, None)

@pytest.mark.parametrize('stock', [True, False])
def test_interrupted_lr_find(corpus, stock, tmp_path):
    learn = learner(corpus, 'classifier')
    learn.path, before = tmp_path, weights(learn)
    with pytest.raises(KeyboardInterrupt), learn.added_cbs(Stop(1, 5, KeyboardInterrupt())):
        if stock: learn.lr_find(show_plot=False)
        else:
            with clean_exit(learn): learn.lr_find(show_plot=False)
    assert same(before, weights(learn)) != stock

def test_a_group_that_sleeps_again_does_not_decay(corpus):
    "fastai keeps the gradients of a group that is frozen again, and weight decay with them (pains: D39)"
    learn = learner(corpus, 'clas')
    fit_stages(learn, [Stage(0, 1, 1e-2)])
    before = weights(learn)
    fit_stages(learn, [Stage(0, 1, 1e-9), Stage(-1, 1, 1e-2)])
    after = weights(learn)
    moved = {k: (after[k] - before[k]).abs().max().item() for k in before if before[k].is_floating_point()}
    assert max(v for k, v in moved.items() if k.startswith('0.')) < 1e-6 < 1e-4 < max(v for k, v in moved.items() if k.startswith('1.layers') and 'weight' in k)

def test_stages_without_epochs_are_left_out():
    "The tutorial's own numbers (fastai's text tutorial: `slice(1e-2/(2.6**4), 1e-2)` and so on); and all groups at once, at one rate"
    down = 2.6**4
    assert classifier_stages() == [Stage(-1, 1, 2e-2), Stage(-2, 1, slice(1e-2/down, 1e-2)), Stage(-3, 1, slice(5e-3/down, 5e-3)), Stage(0, 2, slice(1e-3/down, 1e-3))]
    for make in (classifier_stages, lm_stages):
        with pytest.raises(ValueError, match='want .* learning rates and epochs, not 0.01'): make(lrs=1e-2)
    assert classifier_stages((1, 1, 1, 2e-3), (0, 0, 0, 10), ratio=1) == [Stage(0, 10, slice(2e-3, 2e-3))]
    assert classifier_stages((1, 2, 3, 4), (0, 5, 0, 6), n_groups=3, ratio=2) == [Stage(-2, 5, slice(.5, 2)), Stage(0, 6, slice(1, 4))]

def test_paper(corpus):
    "One group more per epoch, on the slanted triangle of the paper's equation 3"
    learn = learner(corpus, 'classifier')
    plan = paper_stages(1e-2, epochs=2)
    assert [(s.freeze_to, s.epochs) for s in plan] == [(-1, 1), (-2, 1), (-3, 1), (-4, 1), (0, 2)]
    used = Rates()
    with learn.added_cbs(used): _, lrs = fit_stages(learn, plan)
    assert lrs.drop(columns='stage').to_numpy() == pytest.approx(np.array(used.rows), abs=1e-15)
    for i, s in enumerate(plan, 1):
        got = lrs[lrs.stage.eq(i)].g4.to_numpy()
        T, cut = len(got), .1*len(got)
        p = [t/cut if t < cut else 1 - (t - cut)/(cut*(1/.1 - 1)) for t in range(T)]
        assert got == pytest.approx([1e-2*(1 + o*(32 - 1))/32 for o in p])
    assert ((lrs.g0 > 0) == lrs.stage.eq(5)).all()

def test_bad_schedules(corpus):
    learn = learner(corpus, 'classifier')
    before = weights(learn)
    for bad, has in [([], 'empty'), ([Stage(-6, 1, .1)], 'outside the 5 groups'), ([Stage(0, 0, .1)], 'at least one'), ([Stage(0, 1, 0.)], 'above 0'), ([Stage(0, 1, slice(None, 1e-3))], 'above 0')]:
        with pytest.raises(ValueError, match=has): fit_stages(learn, bad)
    assert same(before, weights(learn))

def test_killed(corpus, short, tmp_path):
    "kill -9 in the middle of training; bench/reliable.py does it fifty times"
    short.to_csv(tmp_path/'short.csv', index=False)
    code = f'''
import sys, warnings; warnings.filterwarnings('ignore'); sys.path.insert(0, {str(__import__('pathlib').Path(__file__).parent)!r})
import pandas as pd, torch; from pathlib import Path
from test_unfreeze import *
learn = learner(text_corpus(get_texts(pd.read_csv({str(tmp_path/'short.csv')!r}, keep_default_na=False), split_col='part')), 'classifier')
fit_stages(learn, stages*4, file=Path({str(tmp_path)!r})/'s.safetensors')
torch.save(learn.model.state_dict(), {str(tmp_path/'done.pt')!r})'''
    p = subprocess.Popen([sys.executable, '-c', code])
    for _ in range(600):
        time.sleep(.1)
        if (tmp_path/'s.safetensors').exists() or p.poll() is not None: break
    p.kill(); p.wait()
    assert (tmp_path/'s.safetensors').exists() and not (tmp_path/'done.pt').exists()
    subprocess.run([sys.executable, '-c', code], check=True)
    whole = learner(corpus, 'classifier')
    fit_stages(whole, stages*4)
    assert same(whole.model.state_dict(), torch.load(tmp_path/'done.pt', weights_only=True))

def test_full_disk_while_training(corpus, tmp_path, monkeypatch):
    "The error is the disk's own, the last checkpoint is whole, and the run goes on once there is room"
    file, whole, learn, n = tmp_path/'s.safetensors', learner(corpus, 'classifier'), learner(corpus, 'classifier'), []
    fit_stages(whole, stages)
    def full(fd):
        n.append(1)
        if len(n) == 3: raise OSError(28, 'No space left on device')
    monkeypatch.setattr('ulmfit_tut.files.os.fsync', full)
    with pytest.raises(OSError, match='No space left on device'): fit_stages(learn, stages, file=file)
    assert len(load_weights(file, ())[1]['history']) == 2 and [o.name for o in tmp_path.iterdir()] == [file.name]
    fit_stages(learn, stages, file=file)
    assert same(weights(whole), weights(learn))

def test_other_learners(tmp_path):
    "Tabular, and plain tensors: with checkpoint, cut off and gone on; other optimizers and callbacks with a memory are refused"
    from fastai.tabular.all import Categorify, CategoryBlock, DataLoaders, EarlyStoppingCallback, Learner, MSELossFlat, TabularDataLoaders, nn, ranger, tabular_learner
    df = pd.DataFrame(dict(a=['x', 'y']*40, b=range(80), y=['p', 'q', 'q', 'p']*20))
    def tabular():
        set_seed(1)
        dls = TabularDataLoaders.from_df(df, procs=[Categorify], cat_names=['a'], cont_names=['b'], y_names='y', y_block=CategoryBlock(), valid_idx=list(range(16)), bs=8, device='cpu', num_workers=0)
        return tabular_learner(dls, layers=[8])
    def plain(opt=None, cbs=None):
        set_seed(1)
        x = torch.randn(64, 4)
        ds = list(zip(x, x.sum(1, keepdim=True)))
        return Learner(DataLoaders.from_dsets(ds, ds, bs=8, device='cpu', num_workers=0, shuffle=True), nn.Linear(4, 1), loss_func=MSELossFlat(), cbs=cbs, **(dict(opt_func=opt) if opt else {}))
    for k, make in enumerate((tabular, plain)):
        whole, cut, again = make(), make(), make()
        plan = [Stage(0, 3, 1e-2)]
        for o in (whole, cut, again): o.remove_cbs([c for c in o.cbs if type(c).__name__ == 'ProgressCallback']); o.logger = lambda *a: None
        fit_stages(whole, plan)
        with pytest.raises(KeyboardInterrupt), cut.added_cbs(Stop(2, 1, KeyboardInterrupt())): fit_stages(cut, plan, file=tmp_path/f'{k}')
        fit_stages(again, plan, file=tmp_path/f'{k}')
        assert same(weights(whole), weights(again))
    x = torch.randn(32, 4)
    torchs = [torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8) for _ in range(2)]
    learn = Learner(DataLoaders(*torchs), nn.Linear(4, 1), loss_func=MSELossFlat())
    with learn.no_bar(), learn.no_logging(): assert len(fit_stages(learn, [Stage(0, 1, 1e-2)])[0]) == 1
    with pytest.raises(ValueError, match='whose state a checkpoint does not hold'): fit_stages(plain(ranger), plan, file=tmp_path/'r')
    with pytest.raises(ValueError, match='EarlyStoppingCallback'): fit_stages(plain(cbs=EarlyStoppingCallback()), plan, file=tmp_path/'r')

def test_metrics_of_one_name(corpus, tmp_path):
    "Each keeps a column, one of several numbers keeps them all, and the checkpoint too"
    learn = learner(corpus, 'classifier')
    learn.metrics = [F1Score(average='macro'), F1Score(average='micro'), Recall(average=None)]
    hist, _ = fit_stages(learn, stages[:1], file=tmp_path/'s.safetensors')
    macro, micro, each = hist[['f1_score_2', 'f1_score_3', 'recall_score']].iloc[0]
    assert macro != micro and len(each) == 2 and all(isinstance(o, float) for o in (macro, micro, *each))
    pd.testing.assert_frame_equal(fit_stages(learn, stages[:1], file=tmp_path/'s.safetensors')[0], hist)

def test_a_checkpoint_of_before(corpus, tmp_path):
    "One that lacks a part of the plan is another run's"
    learn = learner(corpus, 'classifier')
    fit_stages(learn, stages[:1], file=tmp_path/'s.safetensors')
    saved, meta = load_weights(tmp_path/'s.safetensors', ('plan',), fp32=False)
    del meta['plan']['opt']
    with pytest.raises(ValueError, match='another run.*opt None'): fit_stages(learn, stages[:1], file=save_weights(tmp_path/'s.safetensors', saved, **meta))

def test_a_learner_without_texts(corpus, tmp_path):
    with pytest.raises(ValueError, match='no batch to train on'): fit_stages(load_classifier(save_text_model(learner(corpus, 'classifier'), tmp_path/'c.safetensors'), device='cpu'), stages[:1])

def test_other_labels_are_other_data(corpus, short, tmp_path):
    file = tmp_path/'s.safetensors'
    fit_stages(learner(corpus, 'classifier'), stages[:1], file=file)
    flipped = short.assign(label=short.label.map({'neg': 'pos', 'pos': 'neg', '': ''}))
    with pytest.raises(ValueError, match='train'): fit_stages(learner(text_corpus(get_texts(flipped, split_col='part')), 'classifier'), stages[:1], file=file)

def test_gathered_gradients_go_on_bit_for_bit(corpus, tmp_path):
    "What is left of an epoch's gradients is dropped, by both runs"
    def one():
        learn = learner(corpus, 'classifier')
        learn.add_cb(GradientAccumulation(10))
        return learn
    whole, cut, again = one(), one(), one()
    fit_stages(whole, stages)
    with pytest.raises(KeyboardInterrupt), cut.added_cbs(Stop(3, 1, KeyboardInterrupt())): fit_stages(cut, stages, file=tmp_path/'s.safetensors')
    fit_stages(again, stages, file=tmp_path/'s.safetensors')
    assert same(weights(whole), weights(again))

def test_a_stage_is_one_cycle_of_fastais():
    "Rates and momentum are those of `freeze_to` and `fit_one_cycle`: the same weights, bit for bit, where nothing is random"
    from fastai.learner import Learner
    from fastai.data.core import DataLoaders
    from fastai.losses import MSELossFlat
    x = torch.randn(48, 4, generator=torch.Generator().manual_seed(0))
    rows = list(zip(x, x.sum(1, keepdim=True)))
    def make():
        set_seed(1)
        dls = DataLoaders.from_dsets(rows, rows, bs=8, shuffle=False, num_workers=0, device='cpu')
        return Learner(dls, torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(3)], torch.nn.Linear(4, 1)), loss_func=MSELossFlat(), moms=(.8, .7, .8),
                       splitter=lambda m: [list(o.parameters()) for o in m])
    ours, stock = make(), make()
    with ours.no_bar(), ours.no_logging(): fit_stages(ours, [Stage(-1, 2, 2e-2), Stage(-2, 1, discriminative(1e-2, 4)), Stage(0, 2, 5e-3)])
    with stock.no_bar(), stock.no_logging():
        for f, n, lr in [(-1, 2, 2e-2), (-2, 1, discriminative(1e-2, 4)), (0, 2, 5e-3)]: stock.freeze_to(f); stock.fit_one_cycle(n, lr)
    assert same(weights(ours), weights(stock))

def test_a_stage_that_a_callback_ends(corpus):
    "The table of rates has the steps that were made"
    from fastai.callback.tracker import EarlyStoppingCallback
    learn, used = learner(corpus, 'classifier'), Rates()
    with learn.added_cbs([used, EarlyStoppingCallback(patience=1, min_delta=10)]): hist, lrs = fit_stages(learn, [Stage(-1, 4, 1e-2), Stage(0, 3, 1e-3)])
    assert hist.stage.tolist() == [1, 1, 2, 2] and lrs.drop(columns='stage').to_numpy() == pytest.approx(np.array(used.rows), abs=1e-15)
    assert lrs.stage.value_counts().to_dict() == {1: len(lrs)//2, 2: len(lrs)//2}

def test_clean_exit_gives_back_what_was_frozen(corpus):
    learn = learner(corpus, 'classifier')
    learn.freeze_to(-2)
    before, awake = [dict(o) for o in learn.opt.hypers], [p.requires_grad for p in learn.model.parameters()]
    with pytest.raises(KeyError), clean_exit(learn):
        learn.unfreeze(); learn.opt.set_hyper('lr', 7.)
        raise KeyError
    assert [dict(o) for o in learn.opt.hypers] == before and [p.requires_grad for p in learn.model.parameters()] == awake and learn.opt.frozen_idx == 3

@pytest.mark.parametrize('name', ['ranger', 'AdamW'])
def test_clean_exit_with_other_optimizers(name):
    "Lookahead, and an optimizer of torch: what they remember comes back with the weights"
    from fastai.text.all import DataLoaders, Learner, MSELossFlat, OptimWrapper, partial, ranger
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    rows = list(zip(x, x.sum(1, keepdim=True)))
    def fitted(cut):
        set_seed(1)
        dls = DataLoaders.from_dsets(rows, rows, bs=4, shuffle=False, num_workers=0, device='cpu')
        learn = Learner(dls, torch.nn.Linear(4, 1), loss_func=MSELossFlat(), opt_func=ranger if name == 'ranger' else partial(OptimWrapper, opt=torch.optim.AdamW))
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 1e-2)
            if cut:
                with pytest.raises(KeyError), clean_exit(learn), learn.added_cbs(Stop(1, 3, KeyError('cut'))): learn.fit(1, 1e-1)
            learn.fit(1, 1e-2)
        return weights(learn)
    assert same(fitted(False), fitted(True))

@pytest.mark.parametrize('plan,has', [(Stage(0, 1, .1), 'no list of Stage'), ([(0, 1, .1)], 'no list of Stage'), ([Stage(0, 1, slice(1e-2))], 'both ends'), ([Stage(0, 1.5, .1)], 'whole number'),
                                      ([Stage(-1., 1, .1)], 'freeze_to'), ([Stage(0, 1, [.1, .2])], 'a number above 0'), ([Stage(0, 1, .1, (.8, .7))], 'three numbers'), ([Stage(0, 1, .1, .9)], 'three numbers')])
def test_bad_stages(corpus, plan, has):
    with pytest.raises(ValueError, match=has): fit_stages(learner(corpus, 'classifier'), plan)

@pytest.mark.parametrize('kind', [FocalLossFlat, LabelSmoothingCrossEntropyFlat, CrossEntropyLossFlat])
def test_other_weights_of_classes_are_another_loss(corpus, tmp_path, kind):
    "The first two keep them as a plain tensor, which no `state_dict` holds"
    learns = [learner(corpus, 'classifier') for _ in range(3)]
    for o, w in zip(learns, (1., 9., 1.)): o.loss_func = kind(weight=torch.tensor([1., w]))
    fit_stages(learns[0], stages[:1], file=tmp_path/'c.safetensors')
    with pytest.raises(ValueError, match='another run, checkpoint / now: loss'): fit_stages(learns[1], stages[:1], file=tmp_path/'c.safetensors')
    fit_stages(learns[2], stages[:1], file=tmp_path/'c.safetensors')

def test_other_validation_texts_are_other_data(corpus, tmp_path):
    learn, file = learner(corpus, 'classifier'), tmp_path/'s.safetensors'
    fit_stages(learn, stages[:1], file=file)
    learn.dls.loaders[1] = learn.dls.train.new(shuffle=False, drop_last=False)
    with pytest.raises(ValueError, match='another run, checkpoint / now: valid'): fit_stages(learn, stages[:1], file=file)

def test_an_interrupted_batch_is_let_go(corpus):
    learn = learner(corpus, 'classifier')
    with pytest.raises(KeyboardInterrupt), clean_exit(learn), learn.added_cbs(Stop(1, 2, KeyboardInterrupt())): learn.fit(1)
    assert learn.xb == learn.yb == (None,) and learn.pred is learn.loss is learn.loss_grad is None

def test_no_batch_to_train_on(corpus):
    "Of fewer texts than `bs` fastai's loader drops its only batch"
    df = corpus.df[corpus.df.part.eq('train')]
    dls = TextDataLoaders.from_df(df[['text', 'label']], bs=64, device='cpu', num_workers=0)
    learn = text_classifier_learner(dls, AWD_LSTM, config={**awd_lstm_clas_config, **small}, pretrained=False)
    with pytest.raises(ValueError, match='no batch to train on.*smaller bs'): fit_stages(learn, stages)

def test_windows_of_stock_loaders(corpus):
    dls = TextDataLoaders.from_df(corpus.df[corpus.df.part.eq('train')][['text', 'label']], bs=4, seq_len=20, device='cpu', num_workers=0)
    assert classifier_learner(dls, small).model[0].bptt == 20
    learn = text_classifier_learner(dls, AWD_LSTM, config={**awd_lstm_clas_config, **small}, pretrained=False, seq_len=8)
    with pytest.raises(ValueError, match='seq_len=8, its DataLoaders pad for 20'): fit_stages(learn, stages)

def test_what_another_run_is_writing_stays(corpus, tmp_path):
    (tmp_path/'.ck.v2.1-1.tmp').write_text('in the making'); (tmp_path/'.ck.77-7.tmp').write_text('left by a killed run')
    fit_stages(learner(corpus, 'classifier'), stages[:1], file=tmp_path/'ck')
    assert {o.name for o in tmp_path.iterdir()} == {'ck', '.ck.v2.1-1.tmp'}

def test_several_labels_have_a_metric_of_their_own(short):
    df = get_texts(short.assign(long=short.text.str.len().gt(60), loud=short.text.str.contains('!')), label_col=['long', 'loud'], split_col='part')
    learn = classifier_learner(text_dls(text_corpus(df), bs=8, seq_len=8, device='cpu'), small)
    with learn.no_bar(), learn.no_logging(): assert 'accuracy_multi' in fit_stages(learn, stages[:1])[0]

def test_out_of_memory_with_few_texts(corpus):
    "Half of three is one, and batch normalization wants two"
    learn = learner(corpus, 'classifier', bs=3)
    with pytest.raises(torch.OutOfMemoryError, match=r'shape \(3, \d+\).*: cut the texts'), learn.added_cbs(Stop(1, 1, torch.OutOfMemoryError('CUDA out of memory. Tried'))): fit_stages(learn, stages)

def test_the_best_epoch_of_another_run_is_not_taken(corpus, tmp_path):
    "fastai's `SaveModelCallback` loads `model.pth` at the end, whoever wrote it, where its monitor never improved"
    learn = learner(corpus, 'clas')
    learn.path = tmp_path
    learn.save('model')
    with torch.no_grad(): learn.model[0].module.encoder.weight += 1
    before = weights(learn)
    learn.metrics = [lambda pred, targ: torch.tensor(float('nan'))]
    learn.add_cb(best := SaveModelCallback('<lambda>'))
    with pytest.raises(ValueError, match=r"its monitor never improved, and loaded \['model'\] of an earlier run"): fit_stages(learn, stages[:1])
    after = weights(learn)
    plain = learner(corpus, 'clas')
    plain.model.load_state_dict(before)
    fit_stages(plain, stages[:1])
    assert same(after, weights(plain)) and not same(after, before)                     # as without the callback
    learn.remove_cb(best); learn.add_cb(SaveModelCallback())
    assert len(fit_stages(learn, stages[:2])[0]) == 3                                    # with a number to watch it goes on as ever

def test_home_is_a_place_for_a_checkpoint(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path)); monkeypatch.chdir(tmp_path)
    a = learner(corpus, 'clas')
    fit_stages(a, stages[:1], file='~/c.safetensors')
    before, b = (tmp_path/'c.safetensors').stat().st_mtime_ns, learner(corpus, 'clas')
    fit_stages(b, stages[:1], file='~/c.safetensors')
    assert same(weights(a), weights(b)) and (tmp_path/'c.safetensors').stat().st_mtime_ns == before and not (tmp_path/'~').exists()

def test_a_checkpoint_that_began_elsewhere_says_so(corpus, tmp_path):
    "Weights of another encoder are no other schedule: the checkpoint is taken, as after an interruption, but not without a word"
    file = tmp_path/'c.safetensors'
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        first = learner(corpus, 'clas')
        fit_stages(first, stages[:1], file=file)
        fit_stages(first, stages[:1], file=file)                                          # with the weights that are in it
        fit_stages(learner(corpus, 'clas'), stages[:1], file=file)                        # with those that it began with, as a new process has them
    other = learner(corpus, 'clas')
    with torch.no_grad(): other.model[0].module.encoder.weight += 1
    with pytest.warns(UserWarning, match='began with other weights.*give another file'): fit_stages(other, stages[:1], file=file)
    assert same(weights(first), weights(other))
