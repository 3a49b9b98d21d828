"What makes a bad report: hostile texts, missing parts, many classes, a write that fails"
import csv,json,os,re,subprocess,sys
from html.parser import HTMLParser
from pathlib import Path
import numpy as np, pandas as pd, pytest
import ulmfit_tut.report
from jinja2 import Environment,PackageLoader
from ulmfit_tut.report import read_run,report,_draw

def page(run): return report(run).read_bytes().decode()
look = Environment(loader=PackageLoader('ulmfit_tut', 'data_files'), autoescape=True).get_template('report.macros.html').make_module(dict(draw=_draw))

XSS = '<script>alert(1)</script><img src=x onerror="alert(2)"> \'"><b onclick=\'x\'>'
COLS = dict(data='part label texts tokens unknown', history='phase stage freeze_to train_loss valid_loss perplexity accuracy',
    metrics='phase stage freeze_to epochs lr_low lr_high train_loss valid_loss perplexity accuracy low high',
    lrs='phase step g0 g1 g2 g3 g4', comparison='arm starts_from accuracy low high n', why='text label word score')

def make(path, classes=('neg','pos'), texts=('good','bad','fine','poor'), wrong=True, **over):
    "A small run; a table given as None is not written"
    path.mkdir(exist_ok=True)
    k,n = len(classes),len(texts)
    lab = [classes[i%k] for i in range(n)]
    pred = [classes[(i+wrong)%k] for i in range(n)]
    probs = np.full((n, k), .3/(k-1))
    for i,p in enumerate(pred): probs[i,classes.index(p)] = .7
    fs = dict(data=[('train',c,90,7000,70) for c in classes]+[('test',c,2,100,2) for c in classes]+[('unsup','',400,28000,280)],
        history=[('lm',1,-1,4.9,4.6,99.5,''), ('lm',2,0,4.5,4.4,81.5,''), ('clas',1,-1,.6,.6,'',.7), ('clas',2,0,.5,.5,'',.8)],
        metrics=[('lm',1,-1,1,1e-2,1e-2,4.9,4.6,99.5,'','',''), ('lm',2,0,1,1e-4,2e-3,4.5,4.4,81.5,'','',''),
                 ('clas',1,-1,1,2e-2,2e-2,.6,.6,'',.7,.5,.8), ('clas',2,0,1,1e-5,1e-3,.5,.5,'',.8,.6,.9)],
        lrs=[('lm',i,0,0,0,.01,'') for i in range(1,5)]+[('clas',i,0,0,0,.01*(i>2),.02) for i in range(1,5)],
        comparison=[('majority','',.5,.4,.6,n), ('this run','wiki',.8,.7,.9,n)],
        why=[(i,p,w,s) for i,p in enumerate(pred) for w,s in ((XSS+'!',1.), ('NA',-.5), ('plain',.1))])
    for name,rows in (fs|over).items():
        if rows is not None and name in COLS: pd.DataFrame(rows, columns=COLS[name].split()).to_csv(path/f'{name}.csv', index=False)
    if over.get('predictions', 1) is not None:
        with open(path/'predictions.csv', 'w', newline='', encoding='utf-8') as f:
            w = csv.writer(f, quoting=csv.QUOTE_ALL)
            w.writerows([['text','label','predicted',*classes], *([t,a,b,*p] for t,a,b,p in zip(texts, lab, pred, probs))])
    cfg = dict(source='toy', pretrained='wiki', backwards=False, classes=list(classes), versions=dict(fastai='2.8.12')) | over.get('cfg', {})
    (path/'config.json').write_text(json.dumps(cfg))
    (path/'test.json').write_text(json.dumps(over.get('test', dict(accuracy=.5, low=.2, high=.8, n=n))))
    return path

class Balanced(HTMLParser):
    "Fails on a tag left open or closed twice; collects tags, attributes and text"
    def __init__(self, s):
        super().__init__()
        self.open,self.tags,self.attrs,self.text = [],[],[],[]
        self.feed(s); self.close()
        assert not self.open, self.open
    def handle_starttag(self, tag, attrs):
        self.tags.append(tag); self.attrs += attrs
        assert len({k for k,_ in attrs})==len(attrs), attrs
        if tag not in ('meta','br'): self.open.append(tag)
    def handle_endtag(self, tag): assert self.open and self.open.pop()==tag, tag
    def handle_data(self, d): self.text.append(d)

def check(run):
    "The page of `run`, parsed, after what must hold of every page"
    s = page(run)
    h = Balanced(s)
    assert not {'script','img','link','iframe','object'} & set(h.tags)
    assert not [k for k,v in h.attrs if k.startswith('on') or k=='src' or (k in ('href','xlink:href') and not v.startswith('#'))]
    assert not re.search(r'url\((?!#)|@import', s)
    ids = [v for k,v in h.attrs if k=='id']
    assert len(set(ids))==len(ids), 'a name stands for two things'
    assert {v[1:] for k,v in h.attrs if k in ('href','xlink:href')} | set(re.findall(r'url\(#(\w+)\)', s)) <= set(ids)
    styles = [v for k,v in h.attrs if k=='style']
    assert not [v for v in styles if re.search(r'\b(fill|stroke): (?!none|var\(--c\d\))', v)], 'a colour that does not follow the page'
    assert all('fill: var(' in v for v in styles if 'font-size' in v)
    assert s.count('<svg role="img" aria-label="')==h.tags.count('svg')
    assert not re.search('[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]', s)
    assert not re.search(r'\b(nan|NaN|None|inf)\b', ' '.join(h.text).replace('null','')), 'a missing number shows'
    assert not re.search(r'(nan|inf)', ' '.join(v or '' for k,v in h.attrs if k in ('d','x','y','transform','style','viewbox')))
    return h

def test_hostile_texts(tmp_path):
    texts = (XSS, '', 'x'*5000, 'a\0b\x07\x1b[0m\x85', '\u202eback to front', '<br /><br />', 'null', 'a\r\nb\rc', '🎬 &amp; مرحبا')
    h = check(make(tmp_path/'r', texts=texts, cfg=dict(source=XSS, note='\ud800', deep=dict(a=[XSS]))))
    whole = ''.join(h.text)
    assert h.tags.count('mark') == 2 + 2*9 and whole.count('NA plain') == 9
    for t in (XSS, '(empty text)', 'x'*5000, '<br /><br />', 'null', '🎬 &amp; مرحبا', 'a\N{REPLACEMENT CHARACTER}b'): assert t in whole, t

def test_hostile_names(tmp_path):
    cs = (XSS, 'NA', 'text', 'label')
    run = make(tmp_path/'r', classes=cs, texts=['one two']*8, comparison=[(XSS, XSS, .5, .4, .6, 4)])
    r = read_run(run)
    assert r['predictions'].label[1]=='NA' and r['confusion'].shape==(4,4) and r['wrong'].p_said.tolist()==[.7]*8 and (r['wrong'].p_true-.1).abs().max()<1e-9
    check(run)

def test_confusion_by_hand(tmp_path):
    "A row is what the text is, a column is what the model says"
    run = make(tmp_path/'r', classes=('a', 'b', 'c'), texts=['x']*5)
    assert read_run(run)['confusion'].to_numpy().tolist() == [[0, 2, 0], [0, 0, 2], [1, 0, 0]]

def test_same_bytes(tmp_path):
    a,b = (report(make(tmp_path/o)).read_bytes() for o in 'ab')
    assert a==b and b'\r' not in a
    code = f'import sys; from ulmfit_tut.report import report; sys.stdout.buffer.write(report({str(tmp_path/"b")!r}).read_bytes()); assert "matplotlib.pyplot" not in sys.modules'
    p = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, env=dict(os.environ, PYTHONHASHSEED='7'), cwd=Path(__file__).parents[1])
    assert p.stdout==a

@pytest.mark.parametrize('gone', ['data','history','metrics','lrs','comparison','predictions','why'])
def test_part_missing(tmp_path, gone):
    check(make(tmp_path/'r', **{gone:None}))
    (tmp_path/'r'/f'{gone}.csv').write_text('')
    check(tmp_path/'r')

def test_nothing_but_the_result(tmp_path): check(make(tmp_path/'r', predictions=None, **{o:None for o in COLS}))

def test_what_is_said_of_guessing_and_of_the_start(tmp_path):
    "The class that is most common in train, not in test, as in the comparison; a model that began with nothing was not fine-tuned"
    run = make(tmp_path/'a', texts=('good', 'bad', 'fine'), data=[('train', 'neg', 3, 9, 0), ('train', 'pos', 4, 9, 0), ('valid', 'pos', 1, 9, 0), ('test', 'neg', 2, 9, 0), ('test', 'pos', 1, 9, 0)])
    assert '<b>33.3\u00a0%</b><span>right by always naming the class that is most common in train' in page(run)
    said = re.sub(r'\s+', ' ', page(make(tmp_path/'b', cfg=dict(pretrained='none'))))
    assert 'from random weights. As a language model it read these texts for 2 epochs, and then learned to tell' in said

def test_unfinished_run(tmp_path):
    run = make(tmp_path/'r')
    (run/'test.json').unlink()
    with pytest.raises(FileNotFoundError, match='`test.json`'): report(run)
    assert not (run/'report.html').exists()

def test_no_language_model_and_one_stage(tmp_path):
    h = check(make(tmp_path/'r', history=[('clas',1,-1,.6,.6,'',.7)], metrics=[('clas',1,-1,1,2e-2,2e-2,.6,.6,'',.7,.5,.8)],
                   lrs=[('clas',1,0,0,0,0,.02)], cfg=dict(pretrained='none')))
    assert 'No language model was fine-tuned in this run. The classifier started from random weights' in ''.join(h.text)

def test_many_classes(tmp_path):
    cs = [f'class {i}' for i in range(20)]
    h = check(make(tmp_path/'r', classes=cs, texts=['t']*40))
    s = page(tmp_path/'r')
    assert 'conf many' in s and s.count('predicted class 19"')==20
    assert '20 classes, 90 texts each' in ''.join(h.text)

def test_nothing_wrong(tmp_path):
    assert 'No test text is classified wrong.' in ''.join(check(make(tmp_path/'r', wrong=False)).text)

def test_numbers_missing(tmp_path):
    n = float('nan')
    check(make(tmp_path/'r', data=[('train','neg',n,n,n), ('unsup','',0,0,n)], history=[('lm',1,-1,n,float('inf'),n,n), ('clas',n,n,n,n,n,n)],
               metrics=[('clas',n,n,n,n,n,n,n,n,n,n,n)], lrs=[('lm',n,n,n,n,n,n), ('clas',1,0,0,0,0,0)],
               comparison=[('a','',n,n,n,n), ('b','wiki',.5,n,.6,n)], test=dict(accuracy=n, low=None, high=None, n=None)))

def test_most_wrong_first(tmp_path):
    run = make(tmp_path/'r', texts=[f'text {i}' for i in range(12)])
    df = pd.read_csv(run/'predictions.csv')
    df.loc[7, ['neg','pos']] = [.999,.001]   # it is pos
    df.loc[4, ['neg','pos']] = [np.nan,np.nan]
    df.to_csv(run/'predictions.csv', index=False)
    h = check(run)
    seen = re.findall(r'text \d+', ''.join(h.text)[''.join(h.text).index('classified wrong'):])
    assert len(seen)==10 and seen[0]=='text 7' and 'text 4' not in seen

def test_a_failing_write_leaves_the_old_report(tmp_path, monkeypatch):
    run = make(tmp_path/'r')
    old = report(run).read_bytes()
    before = sorted(run.iterdir())
    (run/'config.json').write_text((run/'config.json').read_text().replace('toy', 'another'))
    def full(*args): raise OSError(28, 'No space left on device')
    for f in ('fsync','replace'):
        with monkeypatch.context() as m:
            m.setattr(os, f, full)
            with pytest.raises(OSError, match='No space'): report(run)
        assert (run/'report.html').read_bytes()==old and sorted(run.iterdir())==before
    assert report(run).read_bytes()!=old

def test_carriage_return(tmp_path):
    "Within quotes a lone carriage return stays in its row (pandas before Python 3.13 does not quote for its sake: the writer has to)"
    run = make(tmp_path/'r')
    pd.DataFrame([('a\rb','wiki',.5,.4,.6,10)], columns=COLS['comparison'].split()).to_csv(run/'comparison.csv', index=False, quoting=csv.QUOTE_NONNUMERIC)
    df = read_run(run)['comparison']
    assert len(df)==1 and df.arm[0]=='a\rb' and df.n[0]==10

def test_every_line_is_drawn(tmp_path):
    "The main job numbers neither epochs nor steps"
    h = check(make(tmp_path/'r'))
    assert 'no numbers to draw' not in ''.join(h.text)
    alts = [v for k,v in h.attrs if k=='aria-label']
    for o in ('Loss of the language model. loss against epoch: train from 4.9 to 4.5; validation from 4.6 to 4.4.',
              'Perplexity. perplexity against epoch: validation from 99.5 to 81.5.',
              'Loss of the classifier. loss against epoch: train from 0.6 to 0.5; validation from 0.6 to 0.5.',
              'Learning rate, language model. learning rate (logarithmic) against step: embedding and decoder from 0.01 to 0.01.',
              'Learning rate, classifier. learning rate (logarithmic) against step: LSTM 3 from 0.01 to 0.01; head from 0.02 to 0.02.'): assert o in alts, o
    assert sum(k=='d' and v.count('M')==1 and v.count('L')==3 and 'z' not in v for k,v in h.attrs)==2  # one group in each picture learns at every step
    for o in ('embedding (frozen)', 'LSTM 1 (frozen)', 'LSTM 3', 'head'): assert o in h.text, o

def test_lines_differ(tmp_path):
    "In colour and in dash; a layer group has the same look in both pictures"
    lrs = [(ph,i,.001,.002,.003,.004,.005*(ph=='clas')) for ph in ('lm','clas') for i in range(1,50)]
    s = page(make(tmp_path/'r', lrs=lrs))
    look = {}
    for ph in ('language model','classifier'):
        svg = re.search(rf'<svg role="img" aria-label="Learning rate, {ph}.*?</svg>', s, re.S)[0]
        strokes = re.findall(r'<path d="[^"]*" clip-path[^>]*style="fill: none; (?:stroke-dasharray: ([^;]*);[^"]*)?stroke: (var\(--c[0-4]\))', svg)
        assert len(strokes)==len(set(c for _,c in strokes))==len(set(d for d,_ in strokes))==(4 if ph=='language model' else 5)
        look[ph] = strokes
    assert look['classifier'][:4]==look['language model']

def test_settings_of_the_user_do_not_matter(tmp_path):
    import matplotlib as mpl
    s = page(make(tmp_path/'r'))
    with mpl.rc_context({'font.size':30, 'axes.grid':False, 'svg.fonttype':'path', 'text.parse_math':True}), pd.option_context('display.max_colwidth', 5, 'display.precision', 1):
        was = dict(mpl.rcParams)
        assert page(tmp_path/'r')==s and dict(mpl.rcParams)==was

def test_hostile_arms(tmp_path):
    "Formulas, colours, tags, letters that no font here has: in a picture they are words like any other"
    arms = ['$\\frac{', '#0000f1', 'a id="a_1" stroke: #0000f1 > 1.23456', XSS, 'مرحبا 🎬', 'a\x07b', 'two\nlines']
    run = make(tmp_path/'r', comparison=[(o, 'wiki', .5, .4, .6, 4) for o in arms])
    h = check(run)
    for o in arms[:5]: assert h.text.count(o)==2, o  # in the picture and in the table
    assert any(arms[3] in v for k,v in h.attrs if k=='aria-label')

def test_long_review_is_cut_at_a_word(tmp_path):
    h = check(make(tmp_path/'r', texts=['word '*200, 'short']))
    cut,whole = [o for o in h.text if o.startswith('word ')]
    assert cut.endswith('word …') and len(cut)<=400 and whole=='word '*200 and 'Full text, 1,000 characters' in h.text and h.text.count('short')==1

def test_light_import():
    code = 'import sys, ulmfit_tut.report; print([o for o in ("torch","fastai","matplotlib","IPython") if o in sys.modules])'
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert out.stdout.strip()=='[]'

def test_large_run_stays_small(tmp_path):
    lrs = [('clas',i,.001,.002,.003,.004,.01+.001*np.sin(i)) for i in range(20000)]
    assert len(page(make(tmp_path/'r', lrs=lrs)))<100_000

def test_numbers():
    say = lambda f,*vs: str(f(*vs)).replace('\N{NO-BREAK SPACE}', ' ')
    assert [say(look.prob, o) for o in (0, 1e-5, .5, .9997, 1)]==['0.0 %', '&lt; 0.1 %', '50.0 %', '&gt; 99.9 %', '100.0 %']
    assert [say(look.rates, *o) for o in ((2e-2,2e-2), (7.69e-3,1), (1e-12,2e-2))]==['0.02', '0.0077 to 1', '1e-12 to 0.02']
    assert [say(look.num, o) for o in (12055, None, float('nan'), -float('inf'))]==['12,055', '–', '–', '–']
    assert say(look.span, .658, .748)=='65.8 to 74.8 %' and say(look.span, None, None)==say(look.pct, float('nan'))=='–'
    assert [say(look.learns, o) for o in (0, -1., -2)]==['all groups', 'last group', 'last 2 groups']
    assert [say(look.setting, o).strip() for o in (None, True, 0, 'a<b', [1,2], dict(fastai='2.8'))]==['–', 'yes', '0', 'a&lt;b', '1, 2', 'fastai 2.8']

def test_charts_stay_inside():
    df = lambda **cols: pd.DataFrame(cols)
    share = lambda *rows: ([(f'row {i}', *o) for i,o in enumerate(rows)], 't')
    nan = float('nan')
    for o in (look.lines(df(a=[1,50,3], b=[2,nan,1]), 't', 'y', a='a', b='b'), look.dots(*share((.999,.99,1), (0,0,.01))), look.lines(df(a=[1e-9,1]), 't', 'y', log=True, a='a'),
              look.dots(*share((.881,.879,.883), (nan,nan,nan))), look.lines(df(a=[0]), 't', 'y', a='a'), look.lines(df(a=[1e6,2e7], stage=[1,2]), 't', 'y', a='a'),
              look.lines(df(a=[.011,.018]), 't', 'y', log=True, a='a'), look.lines(df(a=[5.]*3000), 't', 'y', a='a'), look.dots(*share((1,1,1)))):
        h = Balanced(str(o))
        w,ht = map(float, [v for k,v in h.attrs if k=='viewbox'][0].split()[2:])
        at = lambda *ks: [float(v) for k,v in h.attrs if k in ks]
        assert all(0<=v<=w for v in at('x','x1','x2','cx')) and all(0<=v<=ht for v in at('y','y1','y2','cy'))
        assert sum('text-anchor: end' in (v or '') or v=='axis' for k,v in h.attrs if k in ('style','class'))>=1 and len(h.text)>=4, 'an axis without numbers'
    assert 'no numbers to draw' in look.lines(df(a=[nan,nan]), 't', 'y', a='a') and 'no numbers to draw' in look.dots(*share((nan,.1,.2)))

def test_dots_stand_where_their_numbers_say():
    s = str(look.dots([('a', .5, .4, .6), ('b', .75, .7, .8)], 't'))
    assert re.findall(r'<text class="axis" x="([\d.]+)" y="[\d.]+">(\d+)<', s)==[('10.0','40'), ('95.0','50'), ('180.0','60'), ('265.0','70'), ('350.0','80')]
    assert re.findall(r'd="M([\d.]+) \d+H([\d.]+)"/><circle cx="([\d.]+)"', s)==[('10.0','180.0','95.0'), ('265.0','350.0','307.5')]
    assert s.count('class="this"')==1 and s.index('class="this"')>s.index('>a<')

def _lum(c):
    v = [int(c[i:i+2], 16)/255 for i in (1,3,5)]
    return sum(k*(o/12.92 if o<=.03928 else ((o+.055)/1.055)**2.4) for k,o in zip((.2126,.7152,.0722), v))
def contrast(a, b): return (max(_lum(a), _lum(b))+.05)/(min(_lum(a), _lum(b))+.05)

def test_contrast():
    "WCAG AA for words, lines and the deepest cells of the confusion matrix, in light and dark"
    css = (Path(ulmfit_tut.report.__file__).parent/'data_files/report.css').read_text(encoding='utf-8')
    light,dark = [{k: (v if len(v)==7 else '#'+''.join(2*o for o in v[1:])) for k,v in re.findall(r'--(\w+):(#\w+)', s)} for s in css.split('@media screen')]
    mix = lambda a,b,t: '#'+''.join(f'{round(int(a[i:i+2],16)*(1-t)+int(b[i:i+2],16)*t):02x}' for i in (1,3,5))
    for c in (light, dark):
        for k in ('fg','mute','c0','c1','c2','c3','c4'): assert contrast(c[k], c['bg'])>=4.5, k
        for k in ('fg','mute'): assert contrast(c[k], c['panel'])>=4.5, k
    html = (Path(ulmfit_tut.report.__file__).parent/'data_files/report.html').read_text(encoding='utf-8')
    deepest = sum(map(float, re.search(r'format\((0\.\d+) \+ (0\.\d+)\*k/of', html).groups()))
    drawn = [(o, deepest) for o in re.findall(r'\.conf \.(?:yes|no)\{background:rgba\((\d+),(\d+),(\d+),var\(--a\)\)', css)]
    drawn += [(o, float(re.search(r'\.u mark\{--a:([.\d]+)', css)[1])) for o in re.findall(r'\.u \.(?:for|against)\{background:rgba\((\d+),(\d+),(\d+),var', css)]
    assert len(drawn) == 4
    for c in (light, dark):
        for rgb, t in drawn: assert contrast(c['fg'], mix(c['bg'], '#'+''.join(f'{int(o):02x}' for o in rgb), t))>=4.5, (rgb, t)
