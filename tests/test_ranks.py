"""Several processes end where one ends: two and four of them on a CPU, by torch.distributed's gloo. `bench/ranks.py` is what they need."""
import importlib.util, os, shutil, signal, socket, subprocess, sys
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch, torch.distributed as dist, torch.multiprocessing as mp
from fastai.text.all import (AWD_LSTM, Callback, DataLoaders, Perplexity, TensorText, accuracy, awd_lstm_clas_config, awd_lstm_lm_config,
    language_model_learner, set_seed, text_classifier_learner)
from ulmfit_tut import unfreeze
from ulmfit_tut.batches import text_dls
from ulmfit_tut.compare import wilson
from ulmfit_tut.corpus import text_corpus
from ulmfit_tut.data import get_texts, mini_reviews_df
from ulmfit_tut.encoder import load_encoder, save_encoder
from ulmfit_tut.unfreeze import Stage, classifier_stages, fit_stages

spec = importlib.util.spec_from_file_location('ranks', Path(__file__).resolve().parent.parent/'bench'/'ranks.py')
ranks = importlib.util.module_from_spec(spec); spec.loader.exec_module(ranks)
config = dict(emb_sz=8, n_hid=10, n_layers=2)
mp.get_context('forkserver').set_forkserver_preload(['test_ranks'])

def plain_reviews(n=320):
    "Sentences whose class one word decides, nine times in ten"
    rng, rows = np.random.default_rng(0), []
    for i in range(n):
        y = i % 2
        word = ('dull', 'fine')[y if rng.random() < .9 else 1 - y]
        rows.append((' '.join(rng.permutation(['the', 'film', 'was', word, *rng.choice(['long', 'old', 'new', 'short', 'loud'], rng.integers(1, 9))])), ('neg', 'pos')[y], ('train', 'valid', 'test')[int(i >= n//2) + int(i >= n - 20)]))
    return pd.DataFrame(rows, columns=['text', 'label', 'part'])

def few_words():
    df = mini_reviews_df().rename(columns={'split': 'part'})[['text', 'label', 'part']]
    df['text'] = df.text.str.split().str[:12].str.join(' ')
    return pd.concat([g.iloc[:24] for _, g in df.groupby(['part', 'label'])]).sort_index()

def learner(kind, path, drop=1e-9, bs=8):
    corpus = text_corpus(get_texts(plain_reviews() if kind == 'plain' else few_words(), split_col='part'), cache=path/'cache', n_workers=0)
    dls = text_dls(corpus, corpus.vocab(min_freq=1), is_lm=kind == 'lm', bs=bs, seq_len=8 if kind == 'lm' else 32, device='cpu')
    set_seed(5)
    if kind == 'lm': learn = language_model_learner(dls, AWD_LSTM, config={**awd_lstm_lm_config, **config}, pretrained=False, drop_mult=drop, metrics=[accuracy, Perplexity()])
    else: learn = text_classifier_learner(dls, AWD_LSTM, config={**awd_lstm_clas_config, **config}, pretrained=False, drop_mult=drop, ps=[drop], seq_len=32, metrics=accuracy)
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__ == 'ProgressCallback'])
    learn.logger = lambda *a: None
    return learn

class Losses(Callback):
    "The loss over the whole batch in each step"
    run_valid = False
    def before_fit(self): self.all = []
    def after_loss(self):
        loss = self.loss.detach().clone()
        if dist.is_initialized(): dist.all_reduce(loss); loss /= dist.get_world_size()
        self.all.append(loss.item())

class NormAsItIs(Callback):
    "`BatchNorm` by its running averages, also in training"
    order = 1
    def before_batch(self): [m.eval() for m in self.model.modules() if isinstance(m, torch.nn.BatchNorm1d)]

class Die(Callback):
    run_valid = False
    def before_batch(self):
        if self.epoch == 1 and self.iter == 3: os.kill(os.getpid(), signal.SIGKILL)

def all_shares(dl, world):
    "What `world` processes make, as the batches of one"
    parts = [dl.new(bs=dl.bs//world, rank=r, world=world) for r in range(world)]
    class Whole(type(dl)):
        def __iter__(self):
            for p in parts: p.seed,p.epoch = self.seed,self.epoch
            for bs in zip(*parts):
                yield TensorText(torch.cat([b[0] for b in bs])), torch.cat([b[1] for b in bs])
        def __len__(self): return len(parts[0])
    return dl.new(cls=Whole)

def work(rank, world, job, path, port):
    torch.set_num_threads(1)
    if world > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
        ranks.join()
    try: res = globals()[job](rank, world, path)
    except Exception as e: res = e
    torch.save(res if isinstance(res, dict) else str(res), path/f'{job}-{world}-{rank}.pt')

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def run(job, world, path):
    "What each of `world` processes gave back"
    port = free_port()
    ctx = mp.start_processes(work, (world, job, path, port), world, start_method='forkserver', join=False)
    for p in ctx.processes: p.join()                                             # each by itself: `ctx.join` ends the others when one is killed
    ctx.join()
    return [torch.load(path/f'{job}-{world}-{r}.pt', weights_only=True) for r in range(world)]

def in_ranks(learn, world): return ranks.over_ranks(learn) if world > 1 else learn.no_bar()

def result(learn, losses, hist):
    return dict(losses=losses.all, weights={k: v.clone() for k, v in learn.model.state_dict().items()}, hist=hist.drop(columns='seconds').to_dict('list'))

# --- a language model ------------------------------------------------------------------------------------------------------------------------

def lm(rank, world, path):
    learn, losses, wrote = learner('lm', path), Losses(), []
    save, unfreeze.save_weights = unfreeze.save_weights, lambda *a, **k: (wrote.append(1), save(*a, **k))
    with in_ranks(learn, world), learn.added_cbs(losses): hist, _ = fit_stages(learn, [Stage(0, 6, 2e-2)], file=path/f'{world}.safetensors')
    assert not rank or not wrote
    assert [o.world for o in learn.dls.loaders] == [1, 1] and not any(isinstance(o, ranks.Ranks) for o in learn.cbs)
    if not rank: save_encoder(learn, path/f'encoder-{world}.safetensors')
    return result(learn, losses, hist)

def classifier(rank, world, path, **kw):
    "Four stages with `BatchNorm` at rest, from the language model's encoder"
    learn, losses = learner('classifier', path, **kw), Losses()
    if world > 1: ranks.dist.barrier()
    load_encoder(learn, path/'encoder-1.safetensors')
    if world == 1: return {w: _one(path, w) for w in (2, 4)}
    with in_ranks(learn, world), learn.added_cbs([losses, NormAsItIs()]): hist, _ = fit_stages(learn, classifier_stages(n_groups=4))
    return result(learn, losses, hist)

def _one(path, world):
    learn, losses = learner('classifier', path), Losses()
    learn.dls.loaders[0] = all_shares(learn.dls.train, world)
    load_encoder(learn, path/'encoder-1.safetensors')
    with learn.added_cbs([losses, NormAsItIs()]): hist, _ = fit_stages(learn, classifier_stages(n_groups=4))
    return result(learn, losses, hist)

@pytest.fixture(scope='module')
def path(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv('PYTHONPATH', str(Path(__file__).parent), prepend=os.pathsep)             # where the server that forks our processes finds this file; it reads it once for all
        yield tmp_path_factory.mktemp('ranks')

@pytest.fixture(scope='module')
def one(path): return run('lm', 1, path)[0]

def close(a, b, eps): return max(float((a[k] - b[k]).abs().max()) for k in a) < eps

@pytest.mark.parametrize('world', [2, 4])
def test_language_model_of_several_processes_is_that_of_one(world, one, path):
    parts = run('lm', world, path)
    assert all(isinstance(o, dict) for o in parts), parts
    assert len(one['losses']) >= 100
    for o in parts:
        assert o['losses'] == pytest.approx(one['losses'], abs=1e-4)
        assert close(o['weights'], one['weights'], 1e-4)
        for k, v in one['hist'].items(): assert o['hist'][k] == pytest.approx(v, rel=1e-4), k         # the metrics are those of all rows
    assert close(parts[0]['weights'], parts[1]['weights'], 1e-30)
    assert sorted(o.name for o in path.glob('*.safetensors') if str(world) in o.name) == [f'{world}.safetensors', f'encoder-{world}.safetensors']

# --- a classifier ----------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('world', [2, 4])
def test_classifier_of_several_processes_is_that_of_one(world, one, whole, path):
    parts, want = run('classifier', world, path), whole[world]
    assert all(isinstance(o, dict) for o in parts), parts
    for o in parts:
        assert o['losses'] == pytest.approx(want['losses'], abs=1e-4)
        assert close(o['weights'], want['weights'], 1e-4)
        for k, v in want['hist'].items(): assert o['hist'][k] == pytest.approx(v, rel=1e-4), k

@pytest.fixture(scope='module')
def whole(one, path): return run('classifier', 1, path)[0]

def noisy(rank, world, path):
    "As people train: dropout and `BatchNorm` on"
    learn = learner('plain', path, drop=.1, bs=16)
    with in_ranks(learn, world): hist, _ = fit_stages(learn, [Stage(0, 8, 3e-2)])
    return dict(accuracy=float(hist.accuracy.iloc[-1]), n=len(learn.dls.valid_ds), buffers={k: v.clone() for k, v in learn.model.named_buffers()})

def test_classifier_with_batchnorm(path):
    "Not equal, as each process normalizes by its own half; as good within the interval"
    alone, parts = run('noisy', 1, path)[0], run('noisy', 2, path)
    low, high = wilson(round(alone['accuracy']*alone['n']), alone['n'])
    assert low > .75 and low <= parts[0]['accuracy'] <= high
    assert parts[0]['accuracy'] == parts[1]['accuracy'] and close(parts[0]['buffers'], parts[1]['buffers'], 1e-30)

# --- stopping and going on -------------------------------------------------------------------------------------------------------------------

def cut(rank, world, path, dies=True):
    learn = learner('lm', path)
    cbs = [Die()] if dies and rank == 1 else []
    with in_ranks(learn, world), learn.added_cbs(cbs): hist, _ = fit_stages(learn, [Stage(-1, 1, 2e-2), Stage(0, 3, 1e-2)], file=path/'cut.safetensors')
    return dict(hist=hist.drop(columns='seconds').to_dict('list'), weights={k: v.clone() for k, v in learn.model.state_dict().items()})

def again(rank, world, path): return cut(rank, world, path, dies=False)

def test_killed_process(path):
    "The others say so and end; started again, the run ends where an unbroken one does"
    with pytest.raises(Exception, match='SIGKILL|has gone'): run('cut', 2, path)
    told = torch.load(path/'cut-2-0.pt', weights_only=True)
    assert 'Another of the 2 processes has gone' in told and 'fit_stages goes on' in told
    assert (path/'cut.safetensors').exists()
    went_on = run('again', 2, path)
    (path/'cut.safetensors').rename(path/'first.safetensors')
    unbroken = run('again', 2, path)
    for a, b in zip(went_on, unbroken): assert a['hist'] == b['hist'] and close(a['weights'], b['weights'], 1e-30)

def refused(rank, world, path):
    odd = learner('lm', path, bs=9)
    with pytest.raises(ValueError, match='bs=9 is no multiple of 2'), ranks.over_ranks(odd): pass
    odd = learner('lm', path)
    odd.dls.loaders = list(DataLoaders.from_dsets([1]*8, [1]*8, bs=2, device='cpu', num_workers=0).loaders)
    with pytest.raises(ValueError, match='make the loaders by text_dls'), ranks.over_ranks(odd): pass
    from fastai.text.all import F1Score
    odd = learner('classifier', path)
    odd.metrics = odd.metrics + [F1Score()]
    with pytest.raises(ValueError, match='f1_score.*cannot be added up'), ranks.over_ranks(odd): odd.fit(1)
    return {}

def test_what_cannot_be_shared_is_refused(path): assert run('refused', 2, path) == [{}, {}]

@pytest.mark.parametrize('how', ['torchrun', 'accelerate_launch', 'notebook_launcher'])
def test_launchers(path, one, whole, how):
    "A script, as its reader would start it: the language model, and the classifier from its encoder"
    if how != 'torchrun': pytest.importorskip('accelerate')
    out = path/how
    out.mkdir(exist_ok=True)
    shutil.copy(path/'encoder-1.safetensors', out)
    (out/'train.py').write_text(f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_ranks as t
def train():
    t.torch.set_num_threads(1)
    rank, world = t.ranks.join()
    out = t.Path({str(out)!r})
    t.torch.save([f(rank, world, out) for f in (t.lm, t.classifier)], out/f'{{rank}}.pt')
if __name__ == '__main__':
    if sys.argv[1:]:
        from accelerate import notebook_launcher
        notebook_launcher(train, num_processes=2, use_port=sys.argv[1])
    else: train()""")
    port = str(free_port())
    cmd = dict(torchrun=f'-m torch.distributed.run --nproc_per_node 2 --master_port {port}', notebook_launcher='',
               accelerate_launch=f'-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port {port}')[how]
    subprocess.run([sys.executable, *cmd.split(), str(out/'train.py'), *([port] if how == 'notebook_launcher' else [])], check=True, timeout=120, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    for r in (0, 1):
        for res, want in zip(torch.load(out/f'{r}.pt', weights_only=True), (one, whole[2])):
            assert res['losses'] == pytest.approx(want['losses'], abs=1e-4) and close(res['weights'], want['weights'], 1e-4)
