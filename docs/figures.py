"""The drawings of the book, as plain SVG: `python docs/figures.py` writes nbs/images/*.svg, the same bytes each time.

With `--check` it writes nothing and says whether the files are current. ulmfit.svg shows the three steps of ULMFiT; ulmfit-1.svg to
ulmfit-3.svg mark one of them; layers.svg shows which groups each `freeze_to` lets learn; stream.svg how a stream of tokens is cut.
"""
import sys
from pathlib import Path

out = Path(__file__).resolve().parent.parent/'nbs/images'
ink,grey,line = '#222222','#555555','#333333'
blue,sand,rose,green = '#b9d3ea','#f4d6a0','#f2b5a7','#c5e0c0'

def text(x, y, s, size=14, fill=ink, anchor='middle', bold=False):
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{fill}" text-anchor="{anchor}"' + (' font-weight="bold"' if bold else '') + f'>{s}</text>'

def box(x, y, w, h, fill='#ffffff', r=5, stroke=line, sw=1, dash=''):
    return f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="{r}" fill="{fill}" stroke="{stroke}" stroke-width="{sw}"' + (f' stroke-dasharray="{dash}"' if dash else '') + '/>'

def arrow(x1, y1, x2, y2): return f'<path d="M{x1} {y1}L{x2} {y2}" stroke="{line}" stroke-width="2" fill="none" marker-end="url(#a)"/>'

def dim(parts): return ['<g opacity="0.45">', *parts, '</g>']

def svg(h, title, desc, parts, head=8):
    top = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 {h}" font-family="Helvetica, Arial, sans-serif" role="img" aria-labelledby="t d">',
           f'<title id="t">{title}</title>', f'<desc id="d">{desc}</desc>', f'<rect width="860" height="{h}" rx="8" fill="#ffffff"/>',
           f'<defs><marker id="a" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="{head}" markerHeight="{head}" markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0 10 5 0 10z" fill="{line}"/></marker></defs>']
    return '\n'.join([*top, *parts, '</svg>']) + '\n'

# name, what it does, the top layer, what it learns from
steps = [('Read Wikipedia', 'guess the next word', 'decoder: next word', ('millions of words,', 'done once, shared here')),
         ('Read the reviews', 'guess the next word, no labels', 'decoder: next word', ('train and unlabelled texts,', 'never test')),
         ('Learn to classify', 'layer group by layer group', 'head: neg or pos', ('freeze all but the head,', 'then wake one group at a time'))]

def step(i):
    (name,what,top,foot),x = steps[i],140 + 290*i
    layers = [box(x-90, y, 180, 26, blue) + text(x, y+18, o) for o,y in zip(('LSTM 3', 'LSTM 2', 'LSTM 1', 'embedding'), range(118, 209, 30))]
    return [text(x, 32, f'{i+1}  {name}', 16, bold=True), text(x, 52, what, 13, grey), box(x-90, 72, 180, 34, (sand, sand, rose)[i]), text(x, 94, top), *layers,
            *(text(x, y, o, 13, line) for o,y in zip(foot, (262, 280)))]

def ulmfit(at=None):
    "The three steps; `at` (0 to 2) stands out, by a frame and a mark in words, and the others are dimmed"
    marked = [] if at is None else [box(36 + 290*at, 8, 208, 284, 'none', 8, ink, 3), box(95 + 290*at, 292, 90, 22, ink, 4), text(140 + 290*at, 308, 'we are here', 13, '#ffffff')]
    parts = [p for i in range(3) for p in (step(i) if at in (None, i) else dim(step(i)))]
    ends = [(236 + 290*i + 12*(at == i), 332 + 290*i - 10*(at == i+1)) for i in range(2)]                 # clear of the frame
    links = [*(arrow(a, y, b, y) for (a,b),y in zip(ends, (153, 176))), text(284, 144, 'all weights', 13, line), text(574, 167, 'the encoder', 13, line)]
    desc = 'A language model is pretrained on Wikipedia, fine-tuned on the texts of the target domain, and its encoder is carried over to a classifier.'
    if at is not None: desc += f' Marked: step {at+1}, {steps[at][0].lower().replace("wikipedia", "Wikipedia")}.'
    return svg(300 if at is None else 322, 'ULMFiT in three steps', desc, [*parts, *links, *marked], 16)

def layers():
    groups = [('4', 'head', rose), ('3', 'LSTM 3', blue), ('2', 'LSTM 2', blue), ('1', 'LSTM 1', blue), ('0', 'embedding', blue)]
    res = [text(86, 40, 'group', 13, grey), text(790, 30, 'its rate, if each', 13, grey), text(790, 46, 'is 2.6 times lower', 13, grey), text(440, 24, 'after learn.freeze_to(...)', 13, grey)]
    for c,n in enumerate(('-1', '-2', '-3', '-4', '0')): res.append(text(216 + 112*c, 46, n.replace('-', '\u2212'), 16, bold=True))
    for r,(i,name,fill) in enumerate(groups):
        y = 60 + 40*r
        res += [text(30, y+21, i, 14, grey), box(46, y, 100, 32, fill), text(96, y+21, name)]
        for c in range(5):
            on = c >= r
            res += [box(166 + 112*c, y, 100, 32, green if on else '#ffffff', 5, line if on else '#999999', 2 if on else 1, '' if on else '4 3'), text(216 + 112*c, y+21, 'learns' if on else 'frozen', 13, ink if on else '#666666')]
        res.append(text(790, y+21, 'lr' + ('' if not r else ' / 2.6' + ('', '\u00b2', '\u00b3', '\u2074')[r-1])))
    return svg(296, 'The five layer groups of a text classifier', 'Five groups from the embedding at the bottom to the head at the top. freeze_to(-1) lets the head alone learn, -2 adds LSTM 3, -3 adds LSTM 2, -4 adds LSTM 1, '
               '0 lets all learn. The head learns at the rate lr, and each group below at a rate 2.6 times lower.', [*res, text(440, 282, 'The text enters at the bottom, the answer leaves at the top. \u22122 counts from the top: the last two groups. 0 is all, as learn.unfreeze().', 13, grey)])

def stream():
    "37 tokens, 3 rows, windows of 3: what `LMDataLoader(bs=3, seq_len=3)` makes of them"
    shade,w,x0 = (sand, blue, green),21,38
    res = [text(x0, 26, 'All texts, laid end to end', 14, ink, 'start', True)]
    for i in range(37): res += [box(x0 + w*i, 38, w, 26, shade[i//12] if i < 36 else '#ffffff', 0, dash='' if i < 36 else '3 2'), text(x0 + w*i + w/2, 56, i, 12)]
    for a,b,n in ((0, 7, 1), (7, 17, 2), (17, 31, 3), (31, 37, 4)):
        res += [f'<path d="M{x0 + w*a + 2} 70v6H{x0 + w*b - 2}v-6" stroke="{grey}" fill="none"/>', text(x0 + w*(a + b)/2, 91, f'review {n}', 13, grey)]
    res.append(text(x0, 126, 'cut into 3 rows (bs=3), and into windows of 3 tokens (seq_len=3)', 14, ink, 'start', True))
    for b in range(4):
        x = 112 + 140*b
        res += [text(x + 57, 156, f'batch {b+1}', 13, grey), box(x - 6, 162, 126, 114, 'none', 6, line, 2)]
        for r in range(3):
            for k in range(3): res += [box(x + 38*k, 168 + 36*r, 38, 30, shade[r], 0), text(x + 38*k + 19, 188 + 36*r, 12*r + 3*b + k)]
            if b < 3: res.append(arrow(x + 121, 183 + 36*r, x + 132, 183 + 36*r))
    for r in range(3): res.append(text(92, 188 + 36*r, f'row {r+1}', 13, grey, 'end'))
    res += [text(751, 140, 'target of batch 1:', 13, grey), text(751, 156, 'one token later', 13, grey), box(688, 162, 126, 114, 'none', 6, line, 2, '5 3')]
    for r in range(3):
        for k in range(3): res += [box(694 + 38*k, 168 + 36*r, 38, 30, shade[r], 0, dash='3 2'), text(694 + 38*k + 19, 188 + 36*r, 12*r + k + 1)]
    res += [text(x0, 302, 'An arrow: the next batch goes on where this one stopped, and the memory of each row goes on with it.', 13, grey, 'start'),
            text(x0, 320, 'Token 36 is a target alone: nothing follows it that could be guessed.', 13, grey, 'start')]
    return svg(334, 'A stream of tokens cut into batches for a language model', 'Reviews are laid end to end: 37 tokens. They are cut into three rows of twelve, and each row into four windows of three. A batch is the same window of all rows. '
               'The target is the same window one token later.', res)

def figures(): return {'ulmfit.svg': ulmfit(), **{f'ulmfit-{i+1}.svg': ulmfit(i) for i in range(3)}, 'layers.svg': layers(), 'stream.svg': stream()}

def main(check=False):
    new = [k for k,v in figures().items() if not (out/k).exists() or (out/k).read_bytes() != v.encode()]
    if check:
        for k in new: print(f'  nbs/images/{k} is not current: python docs/figures.py')
        return bool(new)
    out.mkdir(parents=True, exist_ok=True)
    for k in new: (out/k).write_bytes(figures()[k].encode())
    print(f'Written: {", ".join(new)}' if new else 'The drawings are current.')

if __name__ == '__main__':
    if bad := [o for o in sys.argv[1:] if o != '--check']: sys.exit(f'Unknown option {bad[0]}; there is --check.')
    sys.exit(main('--check' in sys.argv))
