"""From texts to batches, stock fastai and ours side by side: time, memory, and whether the tokens are the same.

    python bench/text.py                        # embedded reviews, and 6,000 of IMDb where it lies: bench/results/text.json
    python bench/text.py --sizes imdb           # all 100,000: stock once, which takes minutes, ours three times
    python bench/text.py --sizes wiki --text F  # growth over 1, 10, 20, 40 and all tokens of a Wikipedia; ours alone

Stock's tokens are compared with ours one by one. For all of IMDb their digest goes to bench/results/tokens.json, which a test reads.
Every measurement is a new process. Stock and ours take turns. Memory is the sum over the process and its workers, shared pages counted once,
above what it was when fastai was imported. Results of sizes that are not measured now stay in the file.
"""
import argparse, hashlib, json, os, platform, shutil, subprocess, sys, tempfile, threading, time, unicodedata
from importlib.metadata import version
from pathlib import Path

root = Path(__file__).parents[1]
results = Path(__file__).parent/'results'

# --- what is measured, each in a process of its own ---------------------------------------------------------------------------------------

def prepare_stock(path, cache):
    from fastai.text.all import TextDataLoaders, Tokenizer, TextBlock, DataBlock, get_text_files, RandomSplitter
    block = TextBlock(Tokenizer.from_folder(path), is_lm=True)                        # writes beside `path`, whatever `output_dir` says
    return DataBlock(blocks=block, get_items=get_text_files, splitter=RandomSplitter(0.1, seed=42)).dataloaders(path, path=path, bs=64, device='cpu', num_workers=0)

def prepare_ours(path, cache):
    from ulmfit_tut.batches import text_dls
    from ulmfit_tut.corpus import text_corpus
    from ulmfit_tut.data import get_texts
    return text_dls(text_corpus(get_texts(path, read=False), cache=cache), is_lm=True, bs=64, device='cpu')

def open_ours(path, cache):
    from ulmfit_tut.corpus import text_corpus
    from ulmfit_tut.data import get_texts
    return text_corpus(get_texts(path, read=False), cache=cache)

def rate(dl, lm=False, seconds=15):
    "Tokens a second out of a loader, over an epoch or `seconds`"
    n, t = 0, time.perf_counter()
    for x, *_ in dl:
        n += x.numel() if lm else int((x != 1).sum())                  # padding does not count
        if time.perf_counter() - t > seconds: break
    return n/(time.perf_counter() - t)

def lm_batches(dls): return rate(dls.train, lm=True)

def clas_stock(path, cache):
    from fastai.text.all import TextDataLoaders
    return rate(TextDataLoaders.from_folder(path, train='train', valid='test', bs=64, device='cpu', num_workers=0).train)

def clas_ours(path, cache):
    from ulmfit_tut.batches import text_dls
    return rate(text_dls(open_ours(path, cache), bs=64, device='cpu').train)

def same_tokens(path, cache):
    "Texts whose tokens differ from those that stock has written beside `cache`, and a digest of stock's"
    c, h, differ = open_ours(path, cache), hashlib.sha256(), 0
    for i, f in enumerate(c.df.file):
        with open(path.with_name(f'{path.name}_tok')/f, encoding='utf8', newline='') as o: stock = o.read()
        h.update(hashlib.sha256(stock.encode()).digest())
        differ += stock != ' '.join(c[i])
    return dict(texts=len(c), differ=differ, sha256=h.hexdigest())

def pss(pid):
    "Memory of a process and its children in MB, shared pages by share"
    kids = [int(o) for t in Path(f'/proc/{pid}/task').glob('*/children') for o in t.read_text().split()]
    here = next(int(l.split()[1]) for l in Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines() if l.startswith('Pss:'))/1024
    return here + sum(pss(k) for k in kids)

class Peak(threading.Thread):
    def __init__(self): super().__init__(daemon=True); self.base, self.top, self.on = pss(os.getpid()), 0, True
    def run(self):
        while self.on:
            try: self.top = max(self.top, pss(os.getpid()))
            except (OSError, StopIteration): pass                      # a worker has just ended
            time.sleep(0.5)

def child(what, path, cache):
    import warnings; warnings.filterwarnings('ignore')
    import fastai.text.all                                              # noqa: the imports are not what is measured
    import ulmfit_tut.batches
    path, cache, res = Path(path), Path(cache), {}
    peak = Peak(); peak.start()
    t = time.perf_counter()
    f = dict(prepare_stock=prepare_stock, prepare_ours=prepare_ours, open_ours=open_ours, clas_stock=clas_stock, clas_ours=clas_ours, same_tokens=same_tokens)[what]
    out = f(path, cache)
    res['seconds'] = time.perf_counter() - t
    res['peak_mb'] = max(peak.top, pss(os.getpid())) - peak.base
    peak.on = False
    if what.startswith('prepare'): res['lm_tokens_a_second'] = lm_batches(out)
    if what.startswith('clas'): res = dict(tokens_a_second=out)
    if what == 'same_tokens': res = out
    if what == 'prepare_ours':
        m = out.train_ds.corpus_text.rows
        res.update(tokens=m.meta['tokens'], texts=len(m), read_whole=m.meta['read_whole'], disk_mb=sum(f.stat().st_size for f in m.path.iterdir())/1e6)
    print('\n' + json.dumps(res))

def measure(what, path, cache):
    r = subprocess.run([sys.executable, __file__, '--child', what, str(path), str(cache)], capture_output=True, text=True, cwd=root)
    if r.returncode: raise SystemExit(r.stderr)
    res = json.loads(r.stdout.splitlines()[-1])
    print(f'  {what}: ' + ', '.join(f'{k} {v}' if isinstance(v, str) else f'{k} {v:,.1f}' if isinstance(v, float) else f'{k} {v:,}' for k, v in res.items()), flush=True)
    return res

# --- sizes --------------------------------------------------------------------------------------------------------------------------------

def folder(size, tmp):
    "A folder in IMDb's layout"
    from fastai.text.all import untar_data, URLs
    from ulmfit_tut.data import mini_reviews
    if size == 'mini': return mini_reviews()
    imdb = untar_data(URLs.IMDB)
    if size == 'imdb': return imdb
    out = tmp/'some'
    for d in ('train/neg', 'train/pos', 'test/neg', 'test/pos', 'unsup'):
        (out/d).mkdir(parents=True)
        for f in sorted((imdb/d).iterdir())[:2000 if d == 'unsup' else 1000]: shutil.copyfile(f, out/d/f.name)
    return out

def compare(size, repeats):
    "Stock and ours by turns, ours three times at least; the median counts"
    with tempfile.TemporaryDirectory() as d:
        tmp = Path(d)
        path, runs = tmp/size, {k: [] for k in ('prepare_stock', 'prepare_ours', 'open_ours', 'clas_stock', 'clas_ours')}
        if not path.exists(): path.symlink_to(folder(size, tmp))           # stock writes beside its folder: never into the user's
        for f in (o for d in ('train', 'test', 'unsup') for o in (path/d).rglob('*.txt')): f.read_bytes()                    # files in the page cache, for both
        print(f'{size}, {repeats} times', flush=True)
        for i in range(max(repeats, 3)):
            shutil.rmtree(tmp/f'ours{i-1}', ignore_errors=True)
            for what in ('prepare_ours', 'open_ours'): runs[what].append(measure(what, path, tmp/f'ours{i}'))
            if i >= repeats: continue
            shutil.rmtree(path.with_name(f'{path.name}_tok'), ignore_errors=True)
            runs['prepare_stock'].append(measure('prepare_stock', path, tmp/f'stock{i}'))
        same = measure('same_tokens', path, tmp/f'ours{i}')
        for i in range(repeats if size != 'imdb' else 0):
            for what in ('clas_stock', 'clas_ours'): runs[what].append(measure(what, path, tmp/f'ours{max(repeats, 3)-1}'))
        shutil.rmtree(path.with_name(f'{path.name}_tok'))
    med = lambda what, k: sorted(r[k] for r in runs[what])[len(runs[what])//2]
    res = {w: {k: med(w, k) for k in r[0]} for w, r in runs.items() if r}
    res['ratios'] = dict(prepare=med('prepare_stock', 'seconds')/med('prepare_ours', 'seconds'),
                         lm_batches=med('prepare_ours', 'lm_tokens_a_second')/med('prepare_stock', 'lm_tokens_a_second'))
    if runs['clas_ours']: res['ratios']['clas_batches'] = med('clas_ours', 'tokens_a_second')/med('clas_stock', 'tokens_a_second')
    print('  ratios: ' + ', '.join(f'{k} {v:.1f}' for k, v in res['ratios'].items()))
    return {**res, 'tokens': same, 'repeats': {k: len(o) for k, o in runs.items() if o}}

def growth(text):
    "The first 1, 10, 20, 40 and all million tokens of a Wikipedia (a blank line ends an article), a file an article"
    articles = [o for o in Path(text).read_text(encoding='utf8').split('\n\n') if o.strip()]
    chars, rows = sum(map(len, articles)), []
    for share in (1/79, 10/79, 20/79, 40/79, 1):
        with tempfile.TemporaryDirectory() as d:
            n, out = 0, Path(d)/'wiki'
            for p in ('train/a', 'train/b', 'test/a', 'test/b', 'unsup'): (out/p).mkdir(parents=True)
            for i, a in enumerate(articles):
                if n > share*chars: break
                n += len(a)
                (out/'unsup'/f'{i:06}.txt').write_text(a, encoding='utf8')
            for i in range(8): (out/f'{("train", "test")[i%2]}/{"ab"[i//2%2]}/{i}.txt').write_text('a', encoding='utf8')
            print(f'{share:.3f} of the Wikipedia', flush=True)
            rows.append(measure('prepare_ours', out, Path(d)/'cache'))
    return rows

def save(file, new):
    file = results/file
    old = json.loads(file.read_text()) if file.exists() else {}
    tmp = file.with_suffix('.tmp')
    tmp.write_text(json.dumps({**old, **new}, indent=1) + '\n')
    os.replace(tmp, file)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--sizes', nargs='*', choices=['mini', 'imdb_6000', 'imdb', 'wiki']); p.add_argument('--repeats', type=int, default=3)
    p.add_argument('--text', help='the Wikipedia, for --sizes wiki'); p.add_argument('--child', nargs=3)
    a = p.parse_args()
    if a.child: child(*a.child); sys.exit()
    machine = dict(cores=os.cpu_count(), python=platform.python_version(), processor=platform.machine(), **{o: version(o) for o in ('fastai', 'spacy', 'torch', 'numpy')})
    from fastai.text.all import fastai_cfg
    for size in a.sizes or ['mini', *(['imdb_6000'] if (fastai_cfg().path('data')/'imdb').exists() else [])]:
        res = dict(growth=growth(a.text)) if size == 'wiki' else compare(size, 1 if size == 'imdb' else a.repeats)
        if size == 'imdb': save('tokens.json', {**res['tokens'], **{o: version(o) for o in ('spacy', 'fastai')}, 'unicode': unicodedata.unidata_version})
        save('text.json', {size: {**res, 'machine': machine, 'date': time.strftime('%Y-%m-%d')}})
