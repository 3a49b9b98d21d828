"""The site in _docs/: `python docs/build.py`. With `--zip` also dist/<package>-docs.zip, the same bytes for the same pages."""
import shutil, sys, time, zipfile
from pathlib import Path
from sphinx.cmd.build import main as sphinx
from conf import project, root
from stage import stage

def build(root=root, pkg=project, out=root/'_docs', tmp=root/'_proc/site'):
    "Stage, run Sphinx, put the notebooks beside their pages; a site with a warning is not kept"
    src,html = tmp/'src',tmp/'html'
    pages = stage(root, pkg, src)
    shutil.rmtree(html, ignore_errors=True)
    args = ['-q', '-W', '--keep-going', '-E', '-c', Path(__file__).parent, '-d', tmp/'doctrees', src, html]
    if sphinx([str(o) for o in args]): sys.exit('The site has faults, named above. Nothing was written to it.')
    for page,nb in pages.items(): shutil.copy(nb, html/f'_sources/{page}.ipynb')              # what a page's download button gives
    (html/'.buildinfo').unlink()
    shutil.rmtree(out, ignore_errors=True)
    html.rename(out)

def pack(out, to):
    to.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(to, 'w', zipfile.ZIP_DEFLATED) as z:
        for f in sorted(o for o in out.rglob('*') if o.is_file()): z.writestr(zipfile.ZipInfo(f'{to.stem}/{f.relative_to(out).as_posix()}'), f.read_bytes(), zipfile.ZIP_DEFLATED)

if __name__ == '__main__':
    if bad := [o for o in sys.argv[1:] if o != '--zip']: sys.exit(f'Unknown option {bad[0]}; there is --zip.')
    start = time.time()
    build()
    print(f'_docs/index.html, in {time.time()-start:.0f} s')
    if '--zip' in sys.argv: pack(root/'_docs', root/f'dist/{project}-docs.zip'); print(f'dist/{project}-docs.zip')
