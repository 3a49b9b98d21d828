"""What makes training at size fast, beside stock fastai on the same batches; and the batch that fits a card."""
import importlib.util, sys
from pathlib import Path
import numpy as np, pytest, torch
from fastai.text.all import (AWD_LSTM, Callback, CrossEntropyLossFlat, DataLoaders, LMDataLoader, LMLearner, Perplexity, TensorText, accuracy, awd_lstm_lm_config,
    awd_lstm_lm_split, set_seed)
from fastai.text.models.core import get_language_model

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'bench'))
import levers
from levers import LEVERS, Stream, largest_bs, pull

@pytest.fixture(scope='module')
def texts():
    rng = np.random.default_rng(0)
    lens = rng.integers(5, 60, 120)
    return rng.integers(2, 300, lens.sum()).astype(np.uint16), lens.cumsum() - lens, lens

def learner(texts, pulled, drop=1e-9, half=False):
    ids, starts, lens = texts
    if 'loader' in pulled: dls = DataLoaders(*(Stream(ids, starts, lens, ['w']*300, 4, 12) for _ in range(2)))
    else: dls = DataLoaders(*(LMDataLoader([TensorText(torch.from_numpy(ids[s:s+n].astype(np.int64))) for s, n in zip(starts, lens)], bs=4, seq_len=12, num_workers=0) for _ in range(2)))
    dls.device = torch.device('cpu')
    set_seed(7)
    model = get_language_model(AWD_LSTM, 300, {**awd_lstm_lm_config, 'emb_sz': 10, 'n_hid': 14, 'n_layers': 3}, drop)
    learn = LMLearner(dls, model, loss_func=CrossEntropyLossFlat(), splitter=awd_lstm_lm_split, metrics=[accuracy, Perplexity()])
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__ == 'ProgressCallback'])
    learn.logger = lambda *a: None
    return pull(learn, pulled)

class Losses(Callback):
    run_valid = False
    def before_fit(self): self.all = []
    def after_batch(self): self.all.append(self.loss.item())

def losses(texts, pulled, drop=1e-9):
    learn, seen = learner(texts, pulled, drop), Losses()
    set_seed(1)
    learn.fit_one_cycle(1, 1e-2, cbs=seen)
    return learn, seen.all

@pytest.fixture(scope='module')
def stock(texts): return losses(texts, ())

@pytest.mark.parametrize('pulled', [('loader',), ('sync',), ('rows',), ('flat',), ('chunk',), ('loader', 'device', 'sync', 'rows', 'flat', 'chunk')], ids='+'.join)
def test_each_lever_leaves_the_loss_alone(texts, stock, pulled, monkeypatch):
    monkeypatch.setattr(levers.ChunkedLoss.__init__, '__defaults__', (20,))                      # several chunks, the last one short
    learn, got = losses(texts, pulled)
    assert len(got) > 50 and got == pytest.approx(stock[1], abs=1e-4)
    a, b = stock[0].model.state_dict(), learn.model.state_dict()
    assert a.keys() == b.keys() and max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-3
    for k, v in zip(learn.recorder.metric_names[1:-1], learn.recorder.values[-1]): assert v == pytest.approx(stock[0].recorder.values[-1][stock[0].recorder.metric_names.index(k) - 1], rel=1e-4), k

def test_rows_draw_the_same_mask(texts):
    "With dropout on too"
    assert losses(texts, ('rows',), 1.)[1] == pytest.approx(losses(texts, (), 1.)[1], abs=1e-4)

@pytest.mark.parametrize('back', [False, True])
def test_stream_is_fastais_loader(texts, back):
    ids, starts, lens = texts
    items = [torch.from_numpy(ids[s:s+n].astype(np.int64)) for s, n in zip(starts, lens)]
    stock = LMDataLoader([TensorText(o.flip(0) if back else o) for o in items], bs=7, seq_len=9, num_workers=0)
    ours = Stream(ids, starts, lens, [], 7, 9, backwards=back)
    assert len(stock) == len(ours)
    for a, b in zip(stock, ours): assert a[0].tolist() == b[0].tolist() and a[1].tolist() == b[1].tolist()

def test_a_share_of_the_texts(texts):
    ids, starts, lens = texts
    part = Stream(np.arange(len(ids)).astype(np.uint16), starts, lens, [], 3, 10, shuffle=True, share=.25)
    one, two = ([x for b in part for x in b[0].flatten().tolist()] for _ in range(2))
    assert len(one) == len(set(one)) == len(two) == part.bl*3 and abs(len(one)/len(ids) - .25) < .01 and set(one) != set(two)
    with pytest.raises(ValueError, match='fill no batch of bs=99999'): Stream(ids, starts, lens, [], 99999, 10)

def test_levers_come_first(texts):
    learn = learner(texts, ())
    learn.create_opt()
    with pytest.raises(ValueError, match='pull levers first'): pull(learn, ('rows',))

# --- memory ----------------------------------------------------------------------------------------------------------------------------------

def kept(bs, texts):
    "Bytes that the step of a language model keeps for the way back, and its weights four times"
    from torch.autograd.graph import saved_tensors_hooks
    model, blocks = learner(texts, ()).model, {}
    x = torch.randint(2, 300, (bs, 12))
    def pack(t): blocks[t.untyped_storage()._cdata] = t.untyped_storage().nbytes(); alive.append(t); return t
    alive = []
    model.reset()
    with saved_tensors_hooks(pack, lambda t: t): torch.nn.functional.cross_entropy(model(x)[0].flatten(0, 1), x.flatten())
    return sum(blocks.values()) + 16*sum(p.numel() for p in model.parameters())

@pytest.mark.parametrize('mb', [2, 5, 40])
def test_largest_batch_for_a_simulated_card(texts, mb):
    "What is said to fit does, with the tenth that is spared; a fifth more does not"
    bs = largest_bs(lambda n: kept(n, texts), mb*1e6)
    assert kept(bs, texts) <= mb*1e6 < kept(int(bs*1.2) + 1, texts)

def test_a_card_that_is_too_small(texts):
    with pytest.raises(ValueError, match=r'Not even one text fits 0.0 GB: about'): largest_bs(lambda n: kept(n, texts), 1e4)
    with pytest.raises(ValueError, match='measure larger ones'): largest_bs(lambda n: 100, 1e9)

# --- the parts of the full run ---------------------------------------------------------------------------------------------------------------

@pytest.fixture
def program(tmp_path):
    "`bench/imdb.py` on a hundred made-up reviews, and its arguments"
    import json, lzma, time
    from types import SimpleNamespace
    spec = importlib.util.spec_from_file_location('imdb', Path(levers.__file__).parent/'imdb.py')
    m = importlib.util.module_from_spec(spec); spec.loader.exec_module(m)
    m.START = time.time()
    rng = np.random.default_rng(1)
    lens, label = rng.integers(6, 30, 150), np.arange(150) % 2
    ids = (rng.integers(2, 21, lens.sum()) + 19*label.repeat(lens)).astype(np.uint16)            # each class has words of its own
    d = tmp_path/'imdb'
    d.mkdir()
    for i in range(2): (d/f'ids.{i}.xz').write_bytes(lzma.compress(ids[i*1000:(i + 1)*1000 if not i else None].tobytes()))
    np.savez_compressed(d/'texts.npz', lens=lens, label=label.astype(np.uint8), part=np.repeat([0, 1, 2], 50).astype(np.uint8), valid=(np.arange(150) % 10 > 7) & (np.arange(150)//50 != 1))
    (d/'vocab.json').write_text(json.dumps(['xxunk', 'xxpad', *(f'w{i}' for i in range(38))]))
    def args(**kw):
        return SimpleNamespace(**{**dict(work=tmp_path, data='imdb', name='fwd', names=('fwd', 'bwd'), init='none', back=False, sizes=(16, 24, 2), levers=list(LEVERS[:-2]), bs=8, seq_len=8,
            epochs=(1, 2), lrs=(2e-2, 1e-2), share=1., drop_mult=.1, wd=.1, labels=None, minutes=9, steps=8, seed=1, call=0, alone=False, profile=False, device='cpu'), **kw})
    return m, args, lambda: [json.loads(o) for o in (tmp_path/'results'/'rows.jsonl').read_text().splitlines()]

def test_whole_run(program, tmp_path):
    "Both directions, cut off after each epoch and gone on; probabilities that fit the texts"
    m, args, noted = program
    for name, back in (('fwd', False), ('bwd', True)):
        a = args(name=name, back=back, minutes=0)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt): m.lm(a)
        m.lm(a)
        m.lm(args(name=f'{name}-whole', back=back))
        cut, whole = (m.load_weights(tmp_path/f'{o}.safetensors', ())[0] for o in (name, f'{name}-whole'))
        assert all(torch.equal(cut[k], whole[k]) for k in whole)
        c = args(name=name, back=back, init=tmp_path/f'{name}.safetensors', epochs=(1, 1, 1, 12), drop_mult=.05, lrs=(3e-2, 2e-2, 2e-2, 2e-2))
        m.clas(c)
        n = len(noted())
        m.clas(c); m.lm(a)
        assert len(noted()) == n                                                                 # test is looked at once
    m.both(args())
    rows = noted()
    test = [o for o in rows if o['part'] == 'test']
    assert [o['name'] for o in test] == ['fwd', 'bwd', 'fwd+bwd'] and all(o['n'] == 50 and o['low'] <= o['accuracy'] <= o['high'] + 1e-12 for o in test)
    assert test[-1]['accuracy'] > .9                                                             # predictions are in the order of the labels
    assert [o['epochs'] for o in rows if o['part'] == 'lm'] == [3]*4 and sum(o['part'] == 'epoch' and o['name'] == 'fwd' for o in rows) == 3 + 15
    with pytest.raises(SystemExit, match='direction'): m.clas(args(name='x', init=tmp_path/'bwd.safetensors'))
    m.lm(args(name='more', init=tmp_path/'fwd.safetensors'))
    m.pack(args(init=tmp_path/'fwd.safetensors'))
    part = tmp_path/'results'/'fwd.00.part'
    (tmp_path/'again.safetensors').write_bytes(part.read_bytes())
    assert torch.allclose(m.load_weights(tmp_path/'again.safetensors', ())[0]['0.encoder.weight'], m.load_weights(tmp_path/'fwd.safetensors', ())[0]['0.encoder.weight'], atol=1e-3)

def test_measuring(program):
    m, args, noted = program
    m.check(args(levers=list(LEVERS[:6])))
    assert len(noted()) == 7 and all(o['good'] and o['off'] < 1e-4 for o in noted())
    m.slice_(args(levers=['loader', 'device'], drop_mult=.5)); m.slice_(args(levers=['device', 'chunk'], alone=True))
    got = [o for o in noted() if o['part'] == 'slice']
    assert [o['levers'] for o in got] == [[], ['loader'], ['loader', 'device'], [], ['loader', 'device'], ['chunk']] and all(o['tokens_per_second'] > 0 for o in got)
    with pytest.raises(SystemExit, match='steps of bs=8'): m.slice_(args(steps=5000))
