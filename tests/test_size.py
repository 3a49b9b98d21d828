"""What makes training at size fast, beside stock fastai on the same batches; and the batch that fits a card."""
import importlib.util, json, lzma, shutil, sys, time
from pathlib import Path
from types import SimpleNamespace
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

@pytest.mark.parametrize('pulled', [('loader',), ('sync',), ('rows',), ('flat',), ('chunk',), ('loader', 'device', 'sync', 'rows', 'flat', 'chunk'),
    pytest.param(('chunk', 'compile'), marks=pytest.mark.skipif(not shutil.which('g++'), reason='torch.compile wants a compiler'))], ids='+'.join)
def test_each_lever_leaves_the_loss_alone(texts, stock, pulled, monkeypatch):
    monkeypatch.setattr(levers.ChunkedLoss.__init__, '__defaults__', (20,))                      # several chunks, the last one short
    learn, got = losses(texts, pulled)
    assert len(got) > 50 and got == pytest.approx(stock[1], abs=1e-4)
    a, b = stock[0].model.state_dict(), learn.model.state_dict()
    assert a.keys() == b.keys() and max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-3
    for k, v in zip(learn.recorder.metric_names[1:-1], learn.recorder.values[-1]): assert v == pytest.approx(stock[0].recorder.values[-1][stock[0].recorder.metric_names.index(k) - 1], rel=1e-4), k

@pytest.mark.parametrize('pulled', [('rows',), ('loader',), ('loader', 'device', 'sync', 'rows', 'flat', 'chunk')], ids='+'.join)
def test_the_same_units_are_dropped(texts, pulled):
    "With dropout on too"
    assert losses(texts, pulled, 1.)[1] == pytest.approx(losses(texts, (), 1.)[1], abs=1e-4)

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
            epochs=(1, 2), lrs=(2e-2, 1e-2), share=1., drop_mult=.1, wd=.1, labels=None, minutes=9, steps=8, seed=1, call=0, alone=False, profile=False, texts=2000, shuffle=False, every=1, source='', gb=(6, 11), device='cpu'), **kw})
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

def test_short_goes_on(program):
    "On the same batches dropout takes the same units, so perplexity is stock's; cut off after each run it makes no row twice"
    m, args, noted = program
    def short(**kw): m.short(args(**{**dict(levers=['loader', 'chunk'], texts=60, epochs=(1,)), **kw}))
    for _ in range(7):
        with pytest.raises(KeyboardInterrupt): short(minutes=0)
    for _ in range(2): short(minutes=0)
    rows = noted()
    assert [(o['seed'], *o['levers']) for o in rows] == [(s, *k) for s in (1, 2) for k in ((), ('loader',), ('chunk',), ('loader', 'chunk'))]
    assert all(o['of_stock'] == pytest.approx(1, abs=1e-4) and o['perplexity'] > 1 for o in rows) and rows[0]['perplexity'] != rows[4]['perplexity']
    short(levers=['loader'], shuffle=True)
    assert len(noted()) == 8 + 4 and noted()[-1]['of_stock'] != pytest.approx(1, abs=1e-6)        # the set of one lever is not run again as the set of all
    short(levers=[], texts=30)
    assert len(noted()) == 8 + 4 + 2                                                              # fewer texts are another run

def test_short_takes_some_texts(program):
    m, args, _ = program
    d = m.load(args())
    for levers in ((), ('loader',)):
        for limit, n in ((None, None), (24, (24, 6)), (2000, None)):
            rows = [np.flatnonzero((d.part != 1) & (d.valid == v)) for v in (False, True)]
            tokens = [d.lens[r[:k]].sum() for r, k in zip(rows, n or (None, None))]
            assert [dl.bl for dl in m.lm_dls(d, args(bs=3), levers, limit=limit).loaders] == [pytest.approx((t - 1)//3, abs=1) for t in tokens]

def test_fit_on_simulated_cards(program, monkeypatch):
    "Memory that grows in step with the batch is foretold; memory that grows faster is found out by trying"
    m, args, noted = program
    with pytest.raises(SystemExit, match='simulated card'): m.fit(args())
    card = SimpleNamespace(total_memory=100e9, room=1.)
    def steps(d, a, *_):
        if need(a.bs) > card.total_memory*card.room: raise torch.OutOfMemoryError
    monkeypatch.setattr(m, 'some_steps', steps)
    monkeypatch.setattr(m, 'machine', lambda a: 'a card')
    monkeypatch.setattr(m, 'peak', lambda a: None)
    monkeypatch.setattr(levers, 'peak_memory', lambda step, n, device: (step(n), need(n))[1])
    monkeypatch.setattr(torch.cuda, 'set_per_process_memory_fraction', lambda o: setattr(card, 'room', o))
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda i: card)
    for need in (lambda bs: 1e9 + 5e7*bs, lambda bs: 1e9 + 1e6*bs**2): m.fit(args(device='cuda'))
    assert [(o['gb'], o['largest_bs'], o['fits']) for o in noted()] == [(6, 88, True), (11, 178, True), (6, 102, False), (11, 196, False)]

def test_prepare(program, tmp_path, short, monkeypatch):
    "Ids that read as the texts' tokens; a word of test or valid alone is unknown"
    from ulmfit_tut.data import get_texts
    from ulmfit_tut.corpus import text_corpus
    m, args, _ = program
    monkeypatch.setattr('ulmfit_tut.corpus.corpora_path', lambda cache: tmp_path/'corpora')
    for i, o in enumerate(short.itertuples()):
        f = tmp_path/'reviews'/o.part/o.label/f'{i}.txt'
        f.parent.mkdir(parents=True, exist_ok=True)
        f.write_text(o.text + ' onlyintest'*3*(o.part == 'test'), encoding='utf8')
    source = str(tmp_path/'reviews')
    df = get_texts(source)
    corpus = text_corpus(df)
    m.prepare(args(source=source, work=tmp_path/'all'))
    d = m.load(args(work=tmp_path/'all'))
    read = [[d.vocab[i] for i in d.ids[s:s+n]] for s, n in zip(d.starts, d.lens)]
    known = {*d.vocab}
    assert read == [[t if t in known else 'xxunk' for t in corpus[i]] for i in range(len(corpus))] and 'onlyintest' not in known and 'the' in known
    assert d.part.tolist() == [m.PART[o] for o in df.part] and d.label.tolist() == [int(o == 'pos') for o in df.label] and d.valid.tolist() == df.is_valid.tolist()
    m.prepare(args(source=source, work=tmp_path/'half', every=2))
    assert m.load(args(work=tmp_path/'half')).lens.tolist() == d.lens[::2].tolist()
    (tmp_path/'wiki.txt').write_text('\n\n'.join(short.text), encoding='utf8')
    m.prepare(args(source=str(tmp_path/'wiki.txt'), data='wiki', work=tmp_path/'all'))
    wiki = m.load(args(data='wiki', work=tmp_path/'all'))
    assert len(wiki.lens) == len(short) and {*wiki.part} == {m.PART['unsup']} and np.flatnonzero(wiki.valid).tolist() == [49, 99]

def test_collect_keeps_what_is_there(program, tmp_path):
    m, args, _ = program
    (tmp_path/'bench'/'results').mkdir(parents=True)
    m.__file__ = str(tmp_path/'bench'/'imdb.py')
    def collected(): return [(o['part'], o['machine'], o['x']) for o in json.loads((tmp_path/'bench'/'results'/'at-size.json').read_text())['rows']]
    def work(*rows):
        (tmp_path/'results').mkdir(exist_ok=True)
        (tmp_path/'results'/'rows.jsonl').write_text(''.join(json.dumps(dict(zip(('part', 'machine', 'x', 'levers', 'bs', 'name'), o))) + '\n' for o in rows))
        m.collect(args())
    work(('check', 'cpu', 1, []), ('check', 'cpu', 2, ['loader']), ('epoch', 'cpu', 3, None, 8, 'fwd'))
    work(('check', 'gpu', 4, []), ('check', 'gpu', 5, []), ('epoch', 'gpu', 6, None, 8, 'fwd'), ('epoch', 'gpu', 7, None, 8, 'fwd'), ('slice', 'gpu', 8, [], 128), ('slice', 'gpu', 9, [], 512))
    kept = [('check', 'cpu', 1), ('check', 'cpu', 2), ('epoch', 'cpu', 3)]
    assert collected() == [*kept, ('check', 'gpu', 5), ('epoch', 'gpu', 6), ('epoch', 'gpu', 7), ('slice', 'gpu', 8), ('slice', 'gpu', 9)]
    work(('check', 'gpu', 10, []), ('epoch', 'gpu', 11, None, 8, 'fwd'))
    assert collected() == [*kept, ('slice', 'gpu', 8), ('slice', 'gpu', 9), ('check', 'gpu', 10), ('epoch', 'gpu', 11)]
    with pytest.raises(SystemExit, match='has no rows: --work'): work()
    assert len(collected()) == 7

# --- the pages -------------------------------------------------------------------------------------------------------------------------------

root = Path(__file__).resolve().parent.parent

def code(page):
    cells = json.loads((root/'nbs'/page).read_text(encoding='utf8'))['cells']
    return [s for c in cells if c['cell_type'] == 'code' and not (s := ''.join(c['source'])).startswith('#| hide')]

@pytest.fixture
def shown(tmp_path, monkeypatch):
    "Names of a page's cells, run where `at-size.json` has other rows"
    import matplotlib, matplotlib.pyplot as plt
    for o in ('nbs', 'bench/results'): (tmp_path/'book'/o).mkdir(parents=True)
    for f in (root/'bench'/'results').iterdir(): (tmp_path/'book'/'bench'/'results'/f.name).symlink_to(f)
    (tmp_path/'book'/'ulmfit_tut').symlink_to(root/'ulmfit_tut')
    monkeypatch.chdir(tmp_path/'book'/'nbs')
    monkeypatch.setattr('ulmfit_tut.compare.paired_difference', lambda *_: (0., 0., 0.))          # half a minute, and of other files
    def run(cells, rows):
        f = tmp_path/'book'/'bench'/'results'/'at-size.json'
        f.unlink()
        f.write_text(json.dumps(dict(rows=rows)))
        names = dict(display=lambda *a: None, measured=f.parent)
        with matplotlib.rc_context({'backend': 'agg'}):
            plt.switch_backend('agg')
            for o in cells: exec(o, names)
            plt.close('all')
        f.unlink(); f.symlink_to(root/'bench'/'results'/'at-size.json')
        return names
    return run

def test_pages_after_a_gpu_has_run(program, shown, tmp_path, monkeypatch):
    "Rows as the program writes them, as if they came from a GPU: the pages show each part, beside the rows of a CPU or alone, and with parts that had no time"
    m, args, noted = program
    monkeypatch.setattr(m, 'machine', lambda a: 'a card of 141 GB')
    monkeypatch.setattr(m, 'peak', lambda a: 2*10**9)
    few = dict(levers=['loader', 'chunk'], epochs=(1,))
    m.check(args(**few)); m.slice_(args(**few)); m.short(args(**few, texts=30))
    for k, o in dict(fwd=dict(init='none'), wiki=dict(init='none', data='wiki'), back=dict(init=tmp_path/'wiki.safetensors'), both=dict(init=tmp_path/'wiki.safetensors')).items():
        if o.get('data'): (tmp_path/'wiki').symlink_to(tmp_path/'imdb')
        m.lm(args(name=k, epochs=(1, 1), **o))
    for k, labels in dict(fwd=None, back=20).items(): m.clas(args(name=k, init=tmp_path/f'{k}.safetensors', epochs=(1, 1, 1, 2), lrs=(1e-2,)*4, labels=labels))
    m.tested(args(), np.eye(2), np.arange(2), name='back+both'); m.tested(args(), np.eye(2), np.arange(2), name='back', labels=22500); m.tested(args(), np.eye(2), np.arange(2), name='few', labels=100)
    m.note(args(bs=128, seq_len=72), part='slice', levers=[], tokens_per_second=100, times_stock=1., loss=3., peak_bytes=4*10**9)
    m.note(args(bs=128, seq_len=72), part='slice', levers=['chunk'], tokens_per_second=420, times_stock=4.2, loss=3., peak_bytes=10**9)
    m.note(args(), part='fit', gb=11, largest_bs=96, fits=True, peak_bytes=9*10**9)
    gpu, cpu = noted(), json.loads((root/'bench'/'results'/'at-size.json').read_text())['rows']
    assert {o['part'] for o in gpu} == {'check', 'short', 'slice', 'fit', 'epoch', 'lm', 'clas', 'test'}
    size = [o for o in code('08_at_size.ipynb') if 'at-size.json' in o or 'by_order =' in o]
    assert len(size) == 2
    size[:0] = ['from fastai.text.all import *; from fastcore.test import *']
    for rows in (cpu + gpu, gpu, cpu, [o for o in gpu if o['part'] not in ('check', 'short')], []): shown(size, rows)
    page = shown(code('results.ipynb'), cpu + gpu)
    table, targets = page['pd'].DataFrame(page['gpu']), page['kept'].set_index('target')
    assert {*table.part} == {'slice', 'fit', 'epoch', 'lm', 'clas', 'test'} and {*table.machine} == {'a card of 141 GB'}
    assert len(table[table.part.eq('epoch')]) == 1 + 1 + 2*2 + 2*4 and 'fwd, clas, 2 epochs, no groups frozen' in [*table.what]
    assert [*table[table.what.eq('bs 128, chunk')].iloc[0]][3:] == ['4.2 times stock', '', '420', '1.0']
    assert not targets.verdict.eq('not measured').any() and targets.loc['on a GPU: IMDb, both directions, accuracy on test, %', 'measured'] == '100'
    assert targets.loc['on a GPU: peak memory at bs=128, seq_len=72, over that of stock'].tolist() == ['at most 0.5', '0.25', 'met']
    assert len([o for o in page['made'] if o[0] == 'at-size.json']) == 2
    page = shown(code('results.ipynb'), [o for o in gpu if o['part'] in ('slice', 'epoch')])
    assert len(page['gpu']) and page['kept'].set_index('target').verdict['on a GPU: all of IMDb from scratch, one direction, minutes'] == 'not measured'
