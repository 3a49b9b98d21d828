"""Several processes train one stock learner: each makes its part of every batch, and gradients are averaged before each step.

    def train():
        join()                                                        # first: before anything is put on a GPU
        learn = ...                                                   # the same in every process, with loaders of `text_dls`
        with over_ranks(learn): fit_stages(learn, stages, file=file)  # or learn.fit_one_cycle(...)

`torchrun --nproc_per_node 2 FILE`, `accelerate launch --multi_gpu --num_processes 2 FILE` and accelerate's `notebook_launcher(train, num_processes=2)` start it.
The learning rate is for the whole batch, `bs` of the loaders: each of the processes takes its share of the rows. Predict in a process of its own
afterwards: as long as `WORLD_SIZE` is set, fastai's `get_preds` joins what all processes predict.

fastai's own `distrib_ctx` cannot serve here: `DistributedDL` hands whole runs of indices to each process, so classifier batches are no longer sorted and
rows of the language model break, its `_broadcast` calls `.cuda()`, and `SyncBatchNorm` has no CPU form."""
import os, re
from contextlib import contextmanager
import torch, torch.distributed as dist
from fastai.text.all import *
from ulmfit_tut.batches import LMLoader

def join(**kwargs):
    "Meet the other processes that the launcher started; rank, and how many there are"
    if 'RANK' not in os.environ: raise RuntimeError('This process is alone: start it by torchrun, accelerate launch --multi_gpu or notebook_launcher')
    cuda = torch.cuda.is_available()
    if cuda: torch.cuda.set_device(int(os.environ.get('LOCAL_RANK', 0)))
    if not dist.is_initialized(): dist.init_process_group('nccl' if cuda else 'gloo', **kwargs)
    return dist.get_rank(), dist.get_world_size()

def mean_over_ranks(tensors):
    "Replace each tensor by its mean over the processes, all in one transfer"
    if not tensors: return
    flat = torch.cat([t.flatten().float() for t in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for t,new in zip(tensors, flat.split([t.numel() for t in tensors])): t.copy_(new.view_as(t))

class Ranks(Callback):
    "Average gradients before each step, buffers before validation; add up what validation counts"
    order = MixedPrecision.order - 2                                  # gathered batches are whole, and scaled gradients not yet looked at
    def before_fit(self):
        if odd := [o.name for o in self.learn.metrics if not isinstance(o, (AvgMetric, AvgLoss))]:
            raise ValueError(f'metrics {odd} are no averages over texts, and cannot be added up over processes: leave them out, and compute them from predictions afterwards')
        for o in (*self.model.parameters(), *self.model.buffers()): dist.broadcast(o.data, 0)
    def before_train(self): torch.manual_seed(torch.initial_seed() + dist.get_rank())          # else every process drops the same units
    def before_step(self): mean_over_ranks([p.grad for p in self.model.parameters() if p.grad is not None])
    def before_validate(self):
        mean_over_ranks([o for o in self.model.buffers() if o.is_floating_point()])           # `BatchNorm` has seen other texts in each
    def before_batch(self):
        dl = self.dl
        if not self.training and not isinstance(dl, LMLoader) and self.iter*dl.world + dl.rank >= -(-len(dl.lens)//dl.bs): self.learn.yb = ()   # seen before, to make as many steps
    def after_validate(self):
        mets = self.recorder._valid_mets
        sums = torch.tensor([[float(o.total), o.count] for o in mets], device=next(self.model.parameters()).device)
        dist.all_reduce(sums)
        for o,(total,count) in zip(mets, sums.cpu()): o.total,o.count = total,count.item()

@contextmanager
def over_ranks(learn):
    "Loaders in shares, gradients averaged, one process that speaks; afterwards the learner is as it was"
    rank,world,loaders = dist.get_rank(),dist.get_world_size(),learn.dls.loaders
    if odd := [type(o).__name__ for o in loaders if not hasattr(o, 'world')]: raise ValueError(f'{odd} cannot be shared among processes: make the loaders by text_dls')
    if odd := [o.bs for o in loaders if o.bs % world]: raise ValueError(f'bs={odd[0]} is no multiple of {world} processes')
    learn.dls.loaders = [o.new(bs=o.bs//world, rank=rank, world=world) for o in loaders]
    for o in learn.dls.loaders: o.to_detach = lambda b, cpu=True, gather=True: to_detach(b, cpu, gather=False)     # sums are gathered once, after validation
    try:
        with ContextManagers([learn.added_cbs(Ranks()), *([learn.no_bar(), learn.no_logging()] if rank else [])]): yield learn
    except RuntimeError as e:
        if not isinstance(e, dist.DistError) and not re.search('[cC]onnection|[tT]imed out', str(e)): raise
        raise RuntimeError(f'Another of the {world} processes has gone: start them all again, and fit_stages goes on from its file ({str(e).splitlines()[-1].strip():.80})') from e
    finally: learn.dls.loaders = loaders
