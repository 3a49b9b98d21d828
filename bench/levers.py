"""What a step of stock fastai's language model waits for, and what takes the wait away: one function a lever, all on stock learners, all with stock's loss.

    loader   ids cut into batches by slicing, and not text by text
    device   those ids lie on the GPU, nothing is sent per batch; needs `loader`
    sync     the running loss and the validation metrics stay on the GPU: no step waits to be read
    rows     embedding dropout on the rows that a batch uses, and not on the whole matrix (the same numbers drawn)
    flat     the weights of an LSTM in one block after weight drop, as cuDNN wants them, copied once
    chunk    softmax and loss a few thousand tokens at a time, recomputed on the way back: the logits of a batch never exist together
    bf16     `to_bf16` in place of `to_fp16`: the same speed of products, and no loss scaler, which reads a number in every step
    compile  `torch.compile` of the decoder, and of the loss in chunks
"""
import numpy as np, torch
from fastai.text.all import *
from fastai.text.models.awdlstm import EmbeddingDropout, WeightDropout, dropout_mask
from fastai.text.models.core import LinearDecoder
from torch.utils.checkpoint import checkpoint

class Stream:
    "Batches as fastai's `LMDataLoader` makes them for the same order of texts, sliced from ids that lie on `device`"
    n_inp,num_workers = 1,0
    def __init__(self, ids, starts, lens, vocab, bs, seq_len, shuffle=False, backwards=False, device='cpu', seed=42, share=1.):
        store_attr()
        self.table,self.epoch,self.dataset = 0,0,lens                                         # what `fit_stages` compares and sets
        self.on = torch.from_numpy(ids.astype(np.int32)).to(device)
        self.bl = (int(lens.sum()*share) - 1)//bs
        if self.bl < 1: raise ValueError(f'{lens.sum()} tokens fill no batch of bs={bs}')

    def __len__(self): return -(-self.bl//self.seq_len)
    def to(self, device): return self                                                         # the learner moves the batches

    def flat(self):
        "All texts of an epoch one after another"
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.lens)) if self.shuffle else np.arange(len(self.lens))
        n = self.bl*self.bs + 1
        order = order[:np.searchsorted(self.lens[order].cumsum(), n) + 1]
        first,lens = (torch.from_numpy(o[order]).to(self.device) for o in (self.starts, self.lens))
        within = torch.arange(int(self.lens[order].sum()), device=self.device) - (lens.cumsum(0) - lens).repeat_interleave(lens)
        at = (first + lens - 1).repeat_interleave(lens) - within if self.backwards else first.repeat_interleave(lens) + within
        return self.on[at[:n]]

    def __iter__(self):
        flat = self.flat()
        self.epoch += self.shuffle
        torch.empty((), dtype=torch.int64).random_()                                          # PyTorch's loader draws a seed: without this, dropout would differ
        x,y = (o.view(self.bs, self.bl) for o in (flat[:-1], flat[1:]))
        for i in range(0, self.bl, self.seq_len): yield TensorText(x[:, i:i+self.seq_len].long()),TensorText(y[:, i:i+self.seq_len].long())

class DeviceSmooth(AvgSmoothLoss):
    "`AvgSmoothLoss` that nobody waits for"
    def accumulate(self, learn):
        loss = learn.loss.detach().mean()
        self.count += 1
        self.val = torch.lerp(loss, self.val.to(loss), self.beta)

def sync(learn):
    learn.recorder.smooth_loss = DeviceSmooth()
    for dl in learn.dls.loaders: dl.to_detach = lambda b, cpu=True, gather=True: to_detach(b, cpu=False, gather=gather)

class RowDropout(EmbeddingDropout):
    "One mask number a word, as `EmbeddingDropout` draws them, and only the rows of this batch multiplied"
    def forward(self, words, scale=None):
        x = self.emb(words)
        if self.training and self.embed_p != 0: x = x*dropout_mask(self.emb.weight.data, (len(self.emb.weight), 1), self.embed_p)[words]
        return x if scale is None else x*scale

def encoder_of(model): return getattr(model[0], 'module', model[0])

def rows(learn):
    enc = encoder_of(learn.model)
    enc.encoder_dp = RowDropout(enc.encoder, enc.encoder_dp.embed_p)

class FlatDropout(WeightDropout):
    "Weight drop, and then one block with input weights, recurrent weights and biases, the order of cuDNN"
    def forward(self, *args):
        self._setweights()
        ws = [getattr(self.module, o) for o in self.module._flat_weights_names]
        self.module._flat_weights = [f.view_as(w) for f,w in zip(torch.cat([w.flatten() for w in ws]).split([w.numel() for w in ws]), ws)]
        return self.module(*args)

def flat(learn):
    for o in encoder_of(learn.model).rnns: o.__class__ = FlatDropout

class Features(nn.Module):
    "`LinearDecoder` that leaves its last product to the loss"
    def __init__(self, dec): super().__init__(); self.decoder,self.output_dp = dec.decoder,dec.output_dp
    def forward(self, x): out = self.output_dp(x); return out,x,out

class ChunkedLoss:
    "Mean cross-entropy of a linear layer's outputs that exist for `size` tokens at a time"
    def __init__(self, decoder, size=4096): self.decoder,self.size = decoder,size
    def part(self, x, y): return F.cross_entropy(self.decoder(x).float(), y, reduction='sum')
    def __call__(self, pred, y):
        x,y = pred.flatten(0, -2),y.flatten()
        parts = [checkpoint(self.part, *o, use_reentrant=False, preserve_rng_state=False) for o in zip(x.split(self.size), y.split(self.size))]
        return torch.stack(parts).sum()/len(y)

def chunk(learn):
    "Metrics that look at single predictions no longer work, perplexity does"
    learn.model[1] = Features(learn.model[1])
    learn.loss_func = ChunkedLoss(learn.model[1].decoder)
    learn.metrics = learn.metrics.filter(lambda o: isinstance(o, AvgLoss))

def half(learn, levers):
    "Stock's `to_fp16`, or `to_bf16`; on a CPU neither"
    if torch.cuda.is_available(): learn.to_bf16() if 'bf16' in levers else learn.to_fp16()

def pull(learn, levers):
    "Pull levers on a learner that has no optimizer yet"
    if learn.opt is not None: raise ValueError('The learner has an optimizer already, which would keep the old modules: pull levers first')
    is_lm = isinstance(learn.model[1], LinearDecoder)
    for f in (sync, rows, flat, *([chunk] if is_lm else [])):
        if f.__name__ in levers: f(learn)
    if 'compile' in levers and is_lm:
        learn.model[1].compile()
        if 'chunk' in levers: learn.loss_func.part = torch.compile(learn.loss_func.part)
    half(learn, levers)
    return learn

LEVERS = ('loader', 'device', 'sync', 'rows', 'flat', 'chunk', 'bf16', 'compile')

# --- memory ----------------------------------------------------------------------------------------------------------------------------------

def peak_memory(step, bs, device):
    "Bytes that `step(bs)` holds at its highest, measured on a GPU"
    torch.cuda.synchronize(device); torch.cuda.empty_cache(); torch.cuda.reset_peak_memory_stats(device)
    step(bs)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)

def largest_bs(peak, room, small=(4, 8), spare=.1):
    "Largest batch size that fits `room` bytes, by a line through what `peak(bs)` measures for two small ones; a tenth is left to what the allocator cannot place"
    (a,b),(lo,hi) = small,[peak(o) for o in small]
    each = (hi - lo)/(b - a)
    if each <= 0: raise ValueError(f'{b} texts take {hi:,} bytes and {a} take {lo:,}: measure larger ones, so that the batch shows')
    bs = int((room*(1 - spare) - (lo - a*each))//each)
    if bs < 1: raise ValueError(f'Not even one text fits {room/1e9:.1f} GB: about {(lo - a*each + each)/1e9:.1f} GB are needed; take a shorter seq_len or a smaller vocabulary')
    return bs
