"""README.md from nbs/index.ipynb, without Quarto and without running anything: `python docs/readme.py`.

With `--check` it writes nothing and says whether README.md and its pictures are current. Links and pictures that are relative to the
notebook become relative to the README; pictures in outputs become files in docs/readme_files/, named after their cell.
"""
import base64, re, sys
from pathlib import Path, PurePosixPath
from fastcore.nbio import cell_frontmatter
from nbdev.config import get_config
from nbdev.process import NBProcessor
from nbdev.processors import clean_magics, filter_stream_, hide_, hide_line, rm_export, rm_header_dash, strip_ansi
from nbdev.readme_filter import doc_link

root = Path(__file__).resolve().parent.parent
pics = PurePosixPath('docs/readme_files')
note = '<!-- Written by docs/readme.py from nbs/index.ipynb: edit that. -->'
# nbdev's own steps for a page, less those that run cells or link symbols to whatever else is installed
steps = [strip_ansi, hide_line, filter_stream_, rm_header_dash, rm_export, clean_magics, hide_]

code_re    = re.compile(r'(^```.*?^```[^\n]*$|^~~~.*?^~~~[^\n]*$|`[^`\n]+`)', re.M|re.S)
link_re    = re.compile(r'(\]\(\s*<?)([^)\s>]+)')
ref_re     = re.compile(r'^( {0,3}\[[^\]]+\]:\s*<?)([^\s>]+)', re.M)
attr_re    = re.compile(r'(<(?:img|a|source)\b[^>]*?\b(?:src|href|srcset)=")([^"]+)')
callout_re = re.compile(r'^:{3,}\s*\{[^}]*\.callout-(\w+)([^}]*)\}[^\n]*\n(.*?)^:{3,}[ \t]*$', re.M|re.S)
fence_re   = re.compile(r'^:{3,}.*\n?', re.M)

def join(s): return s if isinstance(s, str) else ''.join(s)

def link(target, cfg):
    "`target`, relative to the notebook, as the README must write it"
    if re.match(r'[a-z][a-z0-9+.-]*:|//|/|#', target, re.I): return target
    if cfg.doc_url and (to := doc_link(target, cfg.doc_url)) != target: return to
    parts = []
    for o in (PurePosixPath(cfg.nbs_path.name)/PurePosixPath(cfg.readme_nb).parent/target).parts:
        if o == '..' and parts: parts.pop()
        else: parts.append(o)
    return '/'.join(parts)

def callout(m):
    "A Quarto call-out as the alert that code hosts draw"
    body, title = m[3].strip(), re.search(r'title="([^"]*)"', m[2])
    body = f'**{title[1]}**\n\n{body}' if title else re.sub(r'\A#+\s+(.*)$', r'**\1**', body, flags=re.M)
    return '\n'.join(f'> {o}'.rstrip() for o in [f'[!{m[1].upper()}]', *body.splitlines()])

def markdown(s, cfg):
    "Text of a markdown cell, with links and call-outs rewritten outside of code"
    def relink(o):
        for r in (link_re, ref_re, attr_re): o = r.sub(lambda m: m[1]+link(m[2], cfg), o)
        return o
    s = ''.join(o if i%2 else relink(o) for i,o in enumerate(code_re.split(s)))
    s = callout_re.sub(callout, s)
    return ''.join(o if i%2 else fence_re.sub('', o) for i,o in enumerate(code_re.split(s)))

def output(o, nm, alt, cfg, files):
    "One output as markdown; pictures go to `files`"
    data = o.get('data', {})
    for mime, ext in (('image/svg+xml', 'svg'), ('image/png', 'png'), ('image/jpeg', 'jpg')):
        if mime not in data: continue
        f, raw = str(pics/f'{nm}.{ext}'), join(data[mime])
        files[f] = raw.encode() if ext == 'svg' else base64.b64decode(raw)
        return f'![{alt}]({f})'
    if 'text/markdown' in data: return markdown(join(data['text/markdown']), cfg)
    if 'text/html' in data:
        # an empty line would end the table for a markdown reader
        return re.sub(r'\n\s*\n', '\n', re.sub(r'<(style|script)\b.*?</\1>\s*', '', join(data['text/html']), flags=re.S)).strip()
    s = '\n'.join(o['traceback']) if o['output_type'] == 'error' else join(o.get('text') or data.get('text/plain', ''))
    s = re.sub(r'\x1b\[[0-9;]*m', '', s).rstrip()
    return '\n'.join(f'    {l}'.rstrip() for l in s.splitlines())

def readme():
    "README.md and the picture files it needs: `{path: bytes}`"
    cfg = get_config(root)
    nb = NBProcessor(cfg.nbs_path/cfg.readme_nb, steps, process=True).nb
    res, files = [], {}
    for c in nb.cells:
        d, src = c.directives_, c.source.strip('\n')
        if c.cell_type == 'raw':
            fm = cell_frontmatter(src)
            res += [p+fm[k] for k,p in (('title', '# '), ('description', '> ')) if k in fm]
        elif c.cell_type == 'markdown': res.append(markdown(src, cfg))
        elif d.get('include') != 'false':
            if src.strip() and d.get('echo') != 'false' and 'hide_input' not in d: res.append(f'```python\n{src}\n```')
            if d.get('output') == 'false': continue
            alt = d.get('fig-alt', d.get('fig-cap', 'Picture drawn by the code above')).strip('"\'')
            res += [output(o, f'{c.id}-{i}', alt, cfg, files) for i,o in enumerate(c.get('outputs', []))]
    return {'README.md': '\n\n'.join([note, *(o.strip('\n') for o in res if o.strip()), '']).rstrip('\n').encode() + b'\n', **files}

def main(check=False):
    want, have = readme(), [f for f in (root/pics).glob('*') if f.is_file()]
    old = [f for f in have if f.relative_to(root).as_posix() not in want]
    new = [k for k,v in want.items() if not (root/k).exists() or (root/k).read_bytes() != v]
    if check:
        for f in [*new, *old]: print(f'  {f if isinstance(f, str) else f.relative_to(root).as_posix()} is not current')
        print('To put it right: make readme' if new or old else 'README.md is current.')
        return bool(new or old)
    for f in old: f.unlink()
    for k in new:
        (root/k).parent.mkdir(parents=True, exist_ok=True)
        (root/k).write_bytes(want[k])
    print(f"Written: {', '.join(new)}" if new else 'README.md is current.')

if __name__ == '__main__':
    if bad := [o for o in sys.argv[1:] if o != '--check']: sys.exit(f'Unknown option {bad[0]}; there is --check.')
    sys.exit(main('--check' in sys.argv))
