"""Every number of results kind in the pages' prose has a cell, a results file or a named source.

`python docs/check_numbers.py` shows those that have none, `--all` every one with where it stands. `docs/numbers.txt` holds the exceptions, each with
its reason; a reason such as `epochs.json has 3.36` is looked up. Points ("three points ahead") are compared with the differences in the last output before
them that shows any. A wrong word passes there about every other time, so read such sentences yourself. Not seen are "a point or two", "twice as many",
"two of the four runs" in words, and what has no unit. (A file called numbers.py beside readme.py would hide Python's own module of that name.)
"""
import html, json, re, sys
from collections import namedtuple
from pathlib import Path

root = Path(__file__).resolve().parent.parent
_figure = r'\d[\d,]*(?:\.\d+)?|\.\d+'
_n = rf'(?<![\w.,/$-])({_figure})'
_units = r'%|per cent|ms|s|seconds?|min|minutes?|h|hours?|days?|[kKMG]i?B|x|×|times|k|M|thousand|million|billion|tokens/s'
_kinds = re.compile(rf'{_n}(?:[\s\xa0-]?({_units})(?![\w/]|\s\d))|(?<![\w.,/$-])(\d{{1,3}}(?:,\d{{3}})+)|(?<![\w.,/$-])(0?\.\d\d+)(?![\d.]*\w)'
                    r'|(?:accurac(?:y|ies)|perplexity|loss|error|F1)(?:\s(?:of|is|was|at|by|to|about|around|from|rose|rises|fell|falls))*'
                    rf'\s{_n}(?![\w.]*\d)(?:[\s\xa0]?(%|per cent))?(?:\sto\s{_n}(?![\w.,]*\d|[\s\xa0-]?(?:{_units})(?!\w)))?'
                    rf'|(?<!step\s){_n}\s(of\s\d[\d,]*)(?![\w.,]*\d)'
                    r'|(?<![\w.,/$-])(\d{4,})[\s\xa0-](tokens?|words?|texts?|reviews?|labels?|steps?)\b', re.I)
# points, and how many times as much: mostly in words; two points of a curve are none
_words = dict(zip(('half one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen '
                   'twenty').split(), (.5, *range(1, 21))))
_spoken = re.compile(r'(?:\b(more than|over)\s|\b(less than|under|nearly|almost|between\s\w+\sand)\s)?(?<!\bbetween\s)(?<!\bthe\s)'
                     rf'(?<![\w.,/$-])({_figure}|{"|".join(_words)})(\sand\sa\shalf)?'
                     r'(?:(?:\sa)?[\s\xa0-](points?)\b|\s(times)\s(?:as|more|faster|slower|longer|larger|smaller|fewer)\b)', re.I)
# what was published elsewhere, or a file that holds figures; a link within the book, and a program, hold none
_source = re.compile(r'arXiv|(?i:\b(?:sections?|tables?|figures?) \d)|https?://|`[\w./-]+\.(?:json|csv|ipynb)`|`\w+/[\w./-]+\.py` of v1'
                     r'|(?:et al\.|others|and [A-Z]\w+|\([A-Z]\w+),? \(?(?:19|20)\d\d\b')
Number = namedtuple('Number', 'file cell text number unit where')                        # `where` is empty for a number that nothing supports

def prose(md):
    "Sentences, list items and table rows of a markdown cell, without blocks of code"
    md = re.sub(r'^(```|~~~).*?^\1', '\n', md, flags=re.S | re.M)
    for block in re.split(r'\n\s*\n|\n(?=\s*(?:[-*#>]|\d+\.)\s)|(?<=\|)\n(?=\|)', md):
        block = ' '.join(block.split())
        yield from [block] if block.startswith('|') else re.split(r'(?<=[.!?:])\s+(?=[A-Z*_`\[(])', block)

def shown(nb, kinds=('text/plain', 'text/html', 'text/markdown')):
    "What the cells of a notebook print, as one string"
    outs = [o for c in nb['cells'] for o in c.get('outputs', [])]
    texts = [s for o in outs for s in (o.get('text'), *(v for k,v in o.get('data', {}).items() if k in kinds)) if s]
    return html.unescape(re.sub(r'<style.*?</style>|<[^>]*>', ' ', '\n'.join(map(''.join, texts)), flags=re.S))

def leaves(o):
    "Numbers of a results file, but for long lists of bare ones: among hundreds, one or another matches anything"
    if isinstance(o, dict): return [x for v in o.values() for x in leaves(v)]
    if isinstance(o, list): return [] if len(o) > 40 and not isinstance(o[0], dict) else [x for v in o for x in leaves(v)]
    return [o]

def values(text): return {float(o.replace(',', '')) for o in re.findall(r'(?<![\w.])(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:e-?\d+)?', text)}

def same(number, unit, have):
    "Is the number among the values? Rounded as it is written; a percentage also as a share"
    digits,x = len(number.partition('.')[2]),float(number.replace(',', ''))
    return any(round(v*f, digits) == x for v in have for f in ((1, 100) if unit in ('%', 'per cent') else (1,)))

def differences(cells):
    "Absolute values, also times 100, in the last output that shows differences; bounds of intervals are left out, else any small number would be found"
    texts = (shown(dict(cells=[c]), ['text/html']) or shown(dict(cells=[c])) for c in reversed(cells))                # as text a wide table is cut
    text = next((o for o in texts if re.search(r'\b(?:differ\w*|points|gain\w*|less)\b', o)), '')
    x,have = [float(o) for o in re.findall(r'(?<![\w.])[+-]?\d+\.\d+', text)],set()
    while x:
        mean,*x = x
        have |= {abs(mean), abs(100*mean)}
        while len(x) > 1 and x[0] <= mean <= x[1]: x = x[2:]
    return have

def near(m, have):
    "Is a match of `_spoken` among the values? A figure as it is written, a word rounded; after `more than` they are no less, after `nearly` no more"
    if m[3].lower() not in _words: return same(m[3], '', have)
    x = _words[m[3].lower()] + (.5 if m[4] else 0)
    off = .25 if x % 1 else .5
    x += off if m[1] else -off if m[2] else 0
    return any(x - off <= o <= x + off for o in have)

def beside(number, unit, text): return re.search(rf'(?<![\w.,]){re.escape(number)}[\s\xa0]?{re.escape(unit)}(?!\w)', text) is not None

def holds(reason, files):
    "A reason `file.json has 3.36` is looked up; any other is believed"
    m = re.match(r'([\w-]+\.json) has ([\d.]+)$', reason)
    return not m or same(m[2], '%', files.get(m[1], ()))

def check(folder, results=None, allowed=''):
    "A `Number` for each number of results kind in the notebooks of `folder`; lines of `allowed` are `file | words | reason`"
    files = {f.name: json.loads(f.read_text(encoding='utf8')) for f in sorted(Path(results).glob('*.json'))} if results else {}
    files = {k: {abs(float(o)) for o in leaves(v) if isinstance(o, (int, float)) and not isinstance(o, bool)} for k,v in files.items()}
    rows = [tuple(o.strip() for o in l.split('|')) for l in allowed.splitlines() if l.strip() and not l.startswith('#')]
    if bad := [o for o in rows if len(o) != 3 or not all(o)]: raise ValueError(f'not of the form "file | words | reason": {bad[0]}')
    found,used = [],set()
    for f in sorted(o for p in ('*.ipynb', 'api/*.ipynb') for o in Path(folder).glob(p) if o.name[0] not in '_.'):
        nb = json.loads(f.read_text(encoding='utf8'))
        out,named = shown(nb),set(re.findall(r'bench/(?:results/)?(\w[\w-]*)\.', json.dumps(nb)))           # results count where the page names them
        for i,text in ((i, t) for i,c in enumerate(nb['cells']) if c['cell_type'] == 'markdown' for t in prose(''.join(c['source']))):
            bare = re.sub(r'`[^`]*`|(?<=\])\([^)]*\)|\bhttps?://\S+', ' ', text)
            claims = [(m, o.rstrip(','), m[2] or m[6] or m[9] or m[11] or '') for m in _kinds.finditer(bare) for o in m.group(1, 3, 4, 5, 7, 8, 10) if o]
            claims += [(m, m[3], m[5] or m[6]) for m in _spoken.finditer(bare) if m[5] or m[3].lower() in _words]
            for m,number,unit in claims:
                spoken = m.re is _spoken
                # a shorter one may stand there by chance: its unit must stand beside it
                exact = not spoken and len(re.sub(r'^0?\.0*|[,.]', '', number)) > 2
                row = next((r for r in rows if r[0] in ('*', f.name) and r[1].lower() in text.lower() and number.lower() in r[1].lower()), None)
                if exact and same(number, unit, values(out)) or unit and beside(number, unit, out): where = 'a cell'
                elif exact and (name := next((k for k,v in files.items() if k[:-5] in named and same(number, unit, v)), '')): where = name
                elif _source.search(text): where = 'a source'
                elif row: where = row[2]*holds(row[2], files); used.add(row)
                elif spoken and m[5] and near(m, differences(nb['cells'][:i])): where = 'a cell'
                else: where = ''
                found.append(Number(f.name, i, text, number, unit, where))
    return found,[o for o in rows if o not in used]

def main(*args):
    found,stale = check(root/'nbs', root/'bench/results', (root/'docs/numbers.txt').read_text(encoding='utf8'))
    for o in found:
        if '--all' in args or not o.where: print(f'{o.file}, cell {o.cell}: {o.number} {o.unit} [{o.where or "nothing supports it"}]\n    {o.text[:160]}')
    for o in stale: print(f'docs/numbers.txt: no number needs "{" | ".join(o)}"')
    bad = sum(not o.where for o in found)
    print(f'{len(found)} numbers, {bad} without support, {len(stale)} lines too many in docs/numbers.txt')
    return bool(bad or stale)

if __name__ == '__main__': sys.exit(main(*sys.argv[1:]))
