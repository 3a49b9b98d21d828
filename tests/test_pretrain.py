"""The program that made the embedded models: its baseline is a probability, its training goes on exactly where it was cut off."""
import importlib.util, json
from pathlib import Path
import numpy as np, pytest, torch
from ulmfit_tut.files import load_weights

root = Path(__file__).resolve().parent.parent

@pytest.fixture
def pretrain(monkeypatch):
    spec = importlib.util.spec_from_file_location('pretrain', root/'bench'/'pretrain.py')
    m = importlib.util.module_from_spec(spec); spec.loader.exec_module(m)
    monkeypatch.setattr(m, 'VOCAB_SZ', 12); monkeypatch.setattr(m, 'CONFIG', dict(emb_sz=6, n_hid=8, n_layers=3))
    return m

def test_kneser_ney_by_hand(pretrain):
    "a b a b a c: worked on paper"
    kn = pretrain.KneserNey(np.array([0, 1, 0, 1, 0, 2]), 3)
    # bigram types: ab, ba, ac -> continuation counts a 1, b 1, c 1
    assert np.allclose(kn.p1, [1/3]*3, atol=1e-6)
    # trigrams: aba 2, bab 1, bac 1 -> n1 = 2, n2 = 1, discount 2/(2+2) = 0.5
    assert kn.d3 == 0.5
    # bigram continuation counts N1+(. w2 w3): ba 1, ab 1, ac 1 -> n1 = 3, n2 = 0, discount 1: p(.|b), p(.|a) back off wholly to p1
    assert kn.d2 == 1.0
    p = lambda *o: float(kn.prob(*(np.array([i]) for i in o))[0])
    assert p(0, 1, 0) == pytest.approx((2 - .5)/2 + .5*1/2*(1/3), abs=1e-6)         # one follower of "a b": a
    assert p(1, 0, 2) == pytest.approx((1 - .5)/2 + .5*2/2*(1/3), abs=1e-6)         # two followers of "b a": b, c

def test_kneser_ney_sums_to_one(pretrain):
    ids = np.random.default_rng(0).zipf(1.5, 3000) % 12
    kn, c = pretrain.KneserNey(ids, 12), np.arange(12)
    for a in range(12):
        for b in range(12): assert kn.prob(np.full(12, a), np.full(12, b), c).sum() == pytest.approx(1, abs=1e-6)

def test_sampled_loss_is_the_full_loss_when_all_words_are_in(pretrain):
    "With so many samples that every word is among them, the correction is zero and both losses agree"
    torch.manual_seed(0)
    model = pretrain.make_model(0.); model.eval()
    x, y = torch.randint(12, (4, 5)), torch.randint(12, (4, 5))
    uni, gen = torch.full((12,), 1/12), torch.Generator().manual_seed(0)
    model.reset(); a = pretrain.sampled_loss(model, x, y, uni, 2000, gen)
    model.reset(); b = pretrain.full_loss(model, x, y)
    assert torch.allclose(a, b, atol=1e-5)

def test_goes_on_where_it_was_cut_off(pretrain, tmp_path):
    rng = np.random.default_rng(0)
    for d in ('whole', 'cut'):
        (tmp_path/d).mkdir()
        (tmp_path/d/'vocab.json').write_text(json.dumps([str(i) for i in range(12)]))
    ids = rng.integers(0, 12, 2000).astype(np.uint16)
    for d in ('whole', 'cut'):
        np.save(tmp_path/d/'train.npy', ids); np.save(tmp_path/d/'valid.npy', ids[:200]); np.save(tmp_path/d/'train_offsets.npy', np.arange(0, 2001, 100))
    kw = dict(n_tokens=3000, bs=4, seq_len=10, n_neg=5, full_from=0.8, every=10)
    pretrain.train('whole', tmp_path, **kw)
    for stop in (10, 40, 60, None): pretrain.train('cut', tmp_path, **kw, stop_at=stop)
    a, b = (torch.load(tmp_path/d/'state.pt', weights_only=True) for d in ('whole', 'cut'))
    assert a['step'] == b['step'] == 75 and [o['valid_ppl'] for o in a['log']] == [o['valid_ppl'] for o in b['log']]
    assert all(torch.equal(a['model'][k], b['model'][k]) for k in a['model'])
    with pytest.raises(SystemExit, match='other settings'): pretrain.train('cut', tmp_path, **{**kw, 'lr': 1.})

def test_backwards(pretrain, tmp_path):
    "Training backwards is training on texts that were turned round; the card says which way the model reads, and waits for the last step"
    rng, offsets = np.random.default_rng(0), np.arange(0, 2001, 100)
    ids = rng.integers(0, 12, 2000).astype(np.uint16)
    turned = np.concatenate([o[::-1] for o in ids.reshape(-1, 100)])
    assert (pretrain.backwards_(ids, offsets) == turned).all()
    words = [str(i) for i in range(12)]
    for d, x in (('movies', ids), ('turned', turned)):
        (tmp_path/d).mkdir()
        (tmp_path/d/'vocab.json').write_text(json.dumps(words))
        (tmp_path/d/'info.json').write_text(json.dumps(dict(valid_texts=4, valid_tokens=400, unk_valid=0.)))
        for part, n in (('train', 2000), ('valid', 400)): np.save(tmp_path/d/f'{part}.npy', x[:n]); np.save(tmp_path/d/f'{part}_offsets.npy', offsets[offsets <= n])
    kw = dict(n_tokens=1200, bs=4, seq_len=10, n_neg=5, full_from=0.8, every=10)
    pretrain.train('turned', tmp_path, **kw)
    pretrain.train('movies', tmp_path, **kw, stop_at=20, backwards=True)
    with pytest.raises(SystemExit, match='20 of 30 steps'): pretrain.card('movies', tmp_path, tmp_path, backwards=True)
    pretrain.train('movies', tmp_path, **kw, backwards=True)
    a, b = torch.load(tmp_path/'turned/state.pt', weights_only=True), torch.load(tmp_path/'movies/state_bwd.pt', weights_only=True)
    assert all(torch.equal(a['model'][k], b['model'][k]) for k in a['model'])
    pretrain.card('movies', tmp_path, tmp_path, backwards=True)
    w, meta = load_weights(tmp_path/'movies-bwd.safetensors')
    assert meta['backwards'] is True and meta['vocab'] == words and torch.equal(w['0.encoder.weight'], b['model']['0.encoder.weight'].half().float())
    about = json.loads((tmp_path/'movies-bwd.json').read_text())
    assert about['name'] == 'movies-bwd' and about['perplexity']['model_fp32'] == pytest.approx(b['log'][-1]['valid_ppl'])
    assert about['perplexity']['kneser_ney_trigram_same_tokens'] == pytest.approx(pretrain.KneserNey(pretrain.seen(turned, offsets, 4, 1200)).perplexity(turned[:400]))
    card = (tmp_path/'README.md').read_text()
    assert '| | `movies-bwd` |' in card and 'reads every text from its end' in card
