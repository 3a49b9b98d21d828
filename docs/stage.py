"""Notebooks and modules as pages for Sphinx. Nothing is run and nothing is imported.

    nbs/02_data.ipynb   ->  data.ipynb          a page, its links and tags as MyST has them      -+
    ulmfit_tut/data.py  ->  reference/data.md   signatures, docments, where each symbol is made  -+-> Sphinx, docs/conf.py -> _docs/*.html
    nbs/sidebar.yml     ->  the order of pages, at the end of index.ipynb                        -+

nbs/sidebar.yml is Quarto's own file, so that both ways show the same book.
"""
import ast, re, shutil, yaml
from pathlib import Path
from fastcore.nbio import mk_cell, new_nb, write_nb
from nbdev.process import NBProcessor
from nbdev.processors import clean_magics, filter_stream_, hide_, hide_line, strip_ansi

steps   = [strip_ansi, hide_line, filter_stream_, clean_magics, hide_]
link_re = re.compile(r'(\]\((?:[\w./-]*/)?)\d+[a-zA-Z0-9]*_([\w-]+\.ipynb)')
doc_re  = re.compile(r'#\s+(\S[^#]*?)\s*$')

def page_name(nb):
    "`nb`, a path inside of nbs/, as a page: without its number, as nbdev names pages"
    return (Path(nb).parent/re.sub(r'^\d+[a-zA-Z0-9]*_', '', Path(nb).stem)).as_posix()

def sections(nbs):
    "Of nbs/sidebar.yml: `{section: [(notebook, text or None)]}`"
    side = yaml.safe_load((nbs/'sidebar.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']
    return {s['section']: [(o, None) if isinstance(o, str) else (o['href'], o.get('text')) for o in s['contents']] for s in side}

def defined(src):
    "Names of the functions and classes that a cell defines"
    try: return [o.name for o in ast.parse(src).body if isinstance(o, (ast.FunctionDef, ast.ClassDef))]
    except SyntaxError: return []

def notebook(f, mod=None):
    "Notebook `f` as MyST reads it; a cell that defines a symbol of module `mod` has an anchor before it"
    cells,head = [],''
    for c in NBProcessor(f, steps, process=True).nb.cells:
        d = c.directives_
        if c.cell_type == 'raw' or d.get('include') == 'false' or not c.source.strip(): continue
        if c.cell_type == 'markdown':
            head = ([head] + re.findall(r'^#+ (.+)', c.source, re.M))[-1]
            cells.append(mk_cell(link_re.sub(r'\1\2', c.source), 'markdown'))
            continue
        if mod and 'export' in d: cells += [mk_cell(f'(made-{mod}-{o})=', 'markdown') for o in defined(c.source)]
        tags = [t for k,t in (('echo', 'remove-input'), ('output', 'remove-output')) if d.get(k) == 'false']
        alt = d.get('fig-alt', f'Plot in the section {head}').strip('"\'')
        cells.append(mk_cell(c.source.strip('\n'), 'code', outputs=c.outputs, metadata=dict(tags=tags, mystnb={'image': {'alt': alt}})))
    return new_nb(cells, meta=dict(kernelspec=dict(name='python3', display_name='Python 3', language='python')))

def signature(o, lines, skip=0):
    "Arguments of function `o` as written, and its docments: `(text, {argument: words})`"
    a,ret = o.args,f' -> {ast.unparse(o.returns)}' if o.returns else ''
    a.args = a.args[skip:]
    docs = {p.arg: lines[p.end_lineno-1] for p in [*a.args, a.vararg, *a.kwonlyargs, a.kwarg] if p and p.lineno > o.lineno}
    if o.returns and o.end_lineno > o.lineno: docs['return'] = lines[o.returns.end_lineno-1]
    return f'({ast.unparse(a)}){ret}', {k: m[1] for k,v in docs.items() if (m := doc_re.search(v))}

def symbol(kind, name, o, lines, made, skip=0):
    "One symbol as a directive of Sphinx's Python domain"
    cls = isinstance(o, ast.ClassDef)
    fn = next((m for m in o.body if getattr(m, 'name', '') == '__init__'), None) if cls else o
    sig,docs = signature(fn, lines, skip or cls) if fn else ('', {})
    fields = [f":{'returns' if k == 'return' else f'param {k}'}: {v}" for k,v in docs.items()]
    return '\n'.join([f'```{{py:{kind}}} {name}{sig.split(" -> ")[0] if cls else sig}', ast.get_docstring(o) or '', '', *fields, '', made, '```', ''])

def reference(f, pkg, titles):
    "Module `f` as a page of its exported symbols"
    src = f.read_text(encoding='utf-8')
    lines,tree,mod = src.splitlines(),ast.parse(src),f.stem
    nb = re.search(r'File to edit: \.\./nbs/(\S+)\.$', src, re.M)[1]
    names = next((ast.literal_eval(o.value) for o in tree.body if isinstance(o, ast.Assign) and o.targets[0].id == '__all__'), [])
    res = [f'# {pkg}.{mod}', f'> {ast.get_docstring(tree)}', f'Taught in [{titles[nb]}](../{page_name(nb)}.ipynb).', f'```{{py:module}} {pkg}.{mod}\n```']
    for o in sorted((o for o in tree.body if getattr(o, 'name', None) in names), key=lambda o: names.index(o.name)):
        made,cls = f'[Made and shown in {titles[nb]}](#made-{mod}-{o.name})',isinstance(o, ast.ClassDef)
        res.append(symbol('class' if cls else 'function', o.name, o, lines, made))
        for m in o.body if cls else []:
            if isinstance(m, ast.FunctionDef) and m.name[0] != '_' and ast.get_docstring(m): res.append(symbol('method', f'{o.name}.{m.name}', m, lines, '', 1))
    return nb,'\n\n'.join(res)

def toctree(entries, caption='', opts=':hidden:'):
    return '\n'.join(['```{toctree}', opts, f':caption: {caption}' if caption else '', '', *(f'{t} <{p}>' if t else p for p,t in entries), '```'])

def stage(root, pkg, dst):
    "All pages of the notebooks and the package under `root`, written to `dst`; returns `{page: notebook}`"
    nbs = root/'nbs'
    side = sections(nbs)
    order = [nb for o in side.values() for nb,_ in o]
    if bad := sorted({f.relative_to(nbs).as_posix() for f in nbs.rglob('*.ipynb') if not re.search(r'/[_.]', f'/{f.relative_to(nbs)}')} ^ set(order)):
        raise ValueError(f'nbs/sidebar.yml and the notebooks of nbs/ differ: {bad}')
    titles = {nb: re.search(r'^# (.+)', NBProcessor(nbs/nb).nb.cells[0].source, re.M)[1] for nb in order}
    mods = sorted((reference(f, pkg, titles)+(f.stem,) for f in (root/pkg).glob('*.py') if f.name[0] != '_'), key=lambda o: order.index(o[0]))
    machinery = [nb for nb,_ in side['Reference']]
    shutil.rmtree(dst, ignore_errors=True)
    (dst/'reference').mkdir(parents=True)
    for nb,text,mod in mods:
        if nb in machinery: text += '\n\n' + toctree([(f'/{page_name(nb)}', None)])
        (dst/f'reference/{mod}.md').write_text(text, encoding='utf-8')
    tocs = [toctree([*((f'reference/{m}', m) for *_,m in mods), ('genindex', 'All names')] if name == 'Reference' else
                    [('self' if nb == 'index.ipynb' else page_name(nb), t) for nb,t in nbl], name) for name,nbl in side.items()]
    for nb in order:
        page = notebook(nbs/nb, next((m for o,_,m in mods if o == nb), None))
        if nb == 'index.ipynb': page.cells += [mk_cell(o, 'markdown') for o in tocs]
        (dst/nb).parent.mkdir(exist_ok=True)
        write_nb(page, dst/f'{page_name(nb)}.ipynb')
    shutil.copytree(nbs/'images', dst/'images')
    return {page_name(nb): nbs/nb for nb in order}
