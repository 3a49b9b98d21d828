"""What it costs to run each page: every notebook from top to bottom, one after the other, on one core; and the import of fastai alone.

    python bench/pages.py                 # all of them: bench/results/pages.json, which the results page reads
    python bench/pages.py 02_data index   # these anew; the rest stays

Seconds are the processor's, so that other work on the machine counts for little. Memory is the peak of the largest process, Python and the libraries
with it. The notebooks themselves are not changed.
"""
import json, os, platform, subprocess, sys, tempfile, time
from importlib.metadata import version
from pathlib import Path
from ulmfit_tut.files import replacing

root = Path(__file__).resolve().parent.parent
file = root/'bench/results/pages.json'
bin_ = Path(sys.executable).parent
notebooks = {f.stem: f for f in sorted([*(root/'nbs').glob('*.ipynb'), *(root/'nbs/api').glob('*.ipynb')])}
names = ['import', *notebooks]

def run(name, tmp):
    "Processor seconds and peak memory of a notebook, or of the import alone, in a process of its own"
    env = {**os.environ, 'PYTHONWARNINGS': 'ignore', **{k: '1' for k in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS')}}
    nb = notebooks.get(name)
    cmd = [bin_/'exec_nb', nb.name, '--dest', tmp/nb.name, '--exc-stop'] if nb else [sys.executable, '-c', 'from fastai.text.all import *']
    p = subprocess.Popen(cmd, cwd=nb and nb.parent, env=env, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(p.pid, 0)
    if status: sys.exit(f'{name} failed; nothing of it was written')
    return dict(page=name, seconds=round(usage.ru_utime + usage.ru_stime, 1), MB=round(usage.ru_maxrss/1024))                    # Linux counts in KiB

def main(*chosen):
    if bad := {*chosen} - {*names}: sys.exit(f'No page {sorted(bad)}: there are {", ".join(names)}')
    rows = {r['page']: r for r in json.loads(file.read_text())['rows']} if file.exists() else {}
    with tempfile.TemporaryDirectory() as tmp:
        for i, k in enumerate(chosen := chosen or names, 1):
            rows[k] = run(k, Path(tmp))
            print(f'{i} of {len(chosen)}', rows[k], flush=True)
            d = dict(rows=[rows[o] for o in names if o in rows], date=time.strftime('%Y-%m-%d'),
                     machine=dict(cores=os.cpu_count(), threads=1, python=platform.python_version(), torch=version('torch'), fastai=version('fastai')))
            with replacing(file) as f: f.write_text(json.dumps(d, indent=1) + '\n')

if __name__ == '__main__': main(*sys.argv[1:])
