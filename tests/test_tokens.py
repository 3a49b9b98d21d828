"""The same tokens as fastai's, for text nobody planned for."""
import multiprocessing, re, signal, subprocess, sys, time
from pathlib import Path
import pytest
import pandas as pd
from fastai.text.all import SpacyTokenizer, Tokenizer, TokenizeWithRules, URLs, defaults, fastai_cfg, fix_html
from hypothesis import given, settings, strategies as st
from ulmfit_tut import tokens
from ulmfit_tut.rules import fix_entities, rule_sets
from ulmfit_tut.chunks import ChunkTokenizer
from ulmfit_tut.corpus import text_corpus
from ulmfit_tut.tokens import encode_texts, get_tokenizer, tokenize

stock = {r: TokenizeWithRules(SpacyTokenizer('en'), rule_sets[r]) for r in rule_sets}
ours = {r: ChunkTokenizer(r, max_tokens=7000) for r in rule_sets}                 # small, so that it forgets on the way
for o in ours.values(): o._reset()

def same(texts):
    for r in rule_sets:
        for text, a, b in zip(texts, ours[r](texts), stock[r](texts)): assert list(a) == list(b), (r, text)

blanks = [' ', ' ', ' ', '  ', '\n', '\n\n', ' \n', '\n ', '\t', '\r\n', '\x0b', '\x1c', '\x85', '\xa0', ' ', '\u2028', '　', '<br />', 'nbsp;', '\\n', '&#10;', '&#32;', ' @-@ ', ' @.@ ']
bits = list('abcABI019.,:;!?\'"()-–—…/#\\&<>*_=[]{}@$%^~|`´’‘“”°') + defaults.text_spec_tok + ['no', 'No', 'NO', 'aaa', '!!!', '...', '1111', '--', '<unk>', 'http://a.b/c?d=e&f',
    'a@b.co', 'U.S.', 'e.g.', '10km', '$5', '5%', 'é', 'É', 'ß', 'ẞ', 'İ', 'ı', 'ſ', 'K', 'Σ', 'ς', 'ΑΣ', '😀', '👩', '\u200d', '️', '👍🏽', '日本', 'مرحبا', 'ไทย',
    '\u0301', '\u200b', '\ufeff', '\x00', '\x07', '\x7f', 'amp;', '&amp;', 'camp;', '#39;', '&lt;', 'quot;', '\\"', '²', '½', '٣', 'ǅ', 'ﬁ']
special = sorted(ours['fastai'].words.rules)

@settings(max_examples=400, deadline=None)
@given(st.lists(st.text(st.characters(codec='utf-8')), max_size=5))
def test_unicode(texts): same(texts)

@settings(max_examples=1200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(bits + special), st.sampled_from(['', *blanks])).map(''.join), max_size=14).map(''.join))
def test_made_to_break_it(text): same([text])

@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(special), st.sampled_from(['', ' ', '\n'])).map(''.join), max_size=8).map(''.join))
def test_special_cases_side_by_side(text): same([text])

@settings(max_examples=400, deadline=None)
@given(st.tuples(st.sampled_from(['', '"', '(']), st.sampled_from([*special, 'film', 'Film', 'FILM', 'FiLm', 'a', 'I', 'well-made']), st.sampled_from(['', "'s", "'S", '-x']),
       st.sampled_from(['', *',.!?;:']), st.sampled_from(['', '"', ')']), st.sampled_from(['', *',.!?;:'])).map(''.join))
def test_words_with_punctuation(text): same([text])

@settings(max_examples=800, deadline=None)
@given(st.lists(st.lists(st.tuples(st.sampled_from(['no', 'no', 'no', 'No', 'nono', 'no.', "no'", 'nooo', 'ooono', '...', 'oooo', 'oooo', 'o', 'o', 'xxrep', 'xxrep', '333', '3', '4444', '4', '(no', 'a']),
       st.sampled_from([' ', ' ', ' ', '  ', '\n', '\xa0'])).map(''.join), max_size=8).map(''.join), max_size=3))
def test_the_same_word_again(texts): same(texts)

@pytest.mark.parametrize('text', ['', ' ', '\n', '\x00', '\x00 no no no', 'x\naaa', 'x\nb', '1111 1 1', 'o oooo 4 o o', '4444 4', '333 3', 'xxrep xxrep oooo 4 o o o o', 'no no no.', 'no no nooo', 'no no', 'x\nno no no', 'no no no yes yes yes', 'x\n/b', '\n\n  y', '😀\u200d👩:-) :3—é',
    'a ' + '1'*111 + ' 1 1', "''em ''", 'http://www.imdb.com/title/tt0111161/', 'xxpad xxbos xxfld 1'])
def test_by_hand(text): same([text])

def test_blanks_are_what_str_says():
    "`split`, `isprintable`, the pattern for blanks and spaCy must mean the same characters"
    for c in map(chr, range(sys.maxunicode + 1)): assert bool(re.match(r'\s', c)) == c.isspace() == (not f'a{c}b'.split()[0] == f'a{c}b') and not (c.isspace() and c.isprintable() and c != ' ')

@pytest.mark.parametrize('most,half', [(20, False), (500, True)])                # a block fills it by itself; it goes back to its half
def test_forgetting_changes_nothing(short, most, half):
    a, b, sizes = ChunkTokenizer(max_tokens=most), ChunkTokenizer(), []
    for i in range(12):
        for k in range(0, 60, 5):
            texts = [o + f' word{i} 17{i}-{i}th\n \n' for o in short.text[k:k+5]]
            assert list(a(texts)) == list(b(texts))
            sizes.append([len(o) for o in (a.chunks, a.types, a.shapes, a.pool, a.cuts, a.shape_info, *a.info)])
            assert len({len(a.chunks), len(a.chunks.names), *map(len, a.info)}) == 1
    assert bool(a.half) == half and len(a.chunks) < len(b.chunks)
    assert max(map(max, sizes[72:])) <= 1.02*max(map(max, sizes[:72])), 'it grows'

def test_long_chunks_are_forgotten_too():
    "A page without a blank is few tokens, and much to remember"
    a, b, sizes = ChunkTokenizer(max_tokens=2000), ChunkTokenizer(), []
    for i in range(24):
        text = ' '.join(f'{i}-{k}-' + 'acgt'*200 for k in range(6))
        assert list(a([text])) == list(b([text]))
        sizes.append(len(a.cuts))
    assert max(sizes[12:]) == max(sizes) < len(b.cuts)/2

def test_another_thread_tokenizes_meanwhile(monkeypatch):
    "What it adds or forgets just then is not what these numbers count"
    def words(s, n): return ' '.join(f'{s}{chr(97 + i//26)}{chr(97 + i%26)}' for i in range(n))
    class Shared(ChunkTokenizer):
        def encode(self, texts):
            res, known = super().encode(texts), len(self.chunks)
            super().encode([words('zd', 30)])
            forgot.append(len(self.chunks) < known)
            return res
    texts, tok, res, types, forgot = [words('qa', 60), words('zb', 60), words('qa', 5), words('zd', 30)], Shared(max_tokens=100), [], [], []
    monkeypatch.setattr(tokens, '_blocks', lambda items, *_: [[o] for o in items])
    for ids, lens, new, *_ in encode_texts(texts, tok, n_workers=0, progress=False):
        types += new
        res.append([types[i] for i in ids])
    assert any(forgot) and res == list(map(list, ChunkTokenizer()(texts)))

def test_spacy_remembers_nothing(short):
    "Its strings would grow with every shape"
    tok = ChunkTokenizer()
    tok([''])
    n = len(tok.words.vocab.strings)
    tok([*short.text, 'with \0 whole, unheard-of'])
    assert len(tok.shapes) > 50 and tok.n_whole == 1 and len(tok.words.vocab.strings) == n

def test_tokens_beyond_what_memory_holds(short, monkeypatch):
    "They lie in a file: the same numbers, whether few or all of them do"
    texts, res = short.text.tolist()*3 + ['a \0 b', 'İ'], []
    monkeypatch.setattr(tokens, '_blocks', lambda items, *_: [items[i:i+40] for i in range(0, len(items), 40)])
    for n in (2**18, 100, 0):
        monkeypatch.setattr(tokens, '_most', n)
        res.append([(ids.tolist(), lens.tolist(), new) for ids, lens, new, *_ in encode_texts(texts, ChunkTokenizer(max_tokens=20), n_workers=0)])    # forgets, and names them anew
    assert len(res[0]) > 3 and sum(len(o[2]) for o in res[0]) > 500 and res[0] == res[1] == res[2]

@pytest.mark.parametrize('how', ['fork', 'spawn'])
def test_processes(short, how, monkeypatch):
    if how not in multiprocessing.get_all_start_methods(): pytest.skip(f'{how}: not on this system')
    monkeypatch.setattr(tokens.multiprocessing, 'get_context', lambda _, get=multiprocessing.get_context: get(how))
    texts = short.text.tolist()*12
    assert tokenize(texts, n_workers=2) == tokenize(texts, n_workers=0)

def test_long_text():
    "spaCy alone refuses more than 1,000,000 characters"
    text = 'A long, long film. '*60_000
    assert len(text) > 1_000_000
    toks, = tokenize([text])
    once, = tokenize(['A long, long film. '])
    assert toks == once[:1] + once[1:]*60_000

def test_50_mb():
    "One text of 50 MB: no limit, no cut"
    text = 'A long, long film. '*2_640_000
    ids, lens, new, whole, *_ = next(encode_texts([text, 'A film.']))
    names, once = list(new), tokenize(['A long, long film. '])[0]
    assert len(text) > 50_000_000 and not whole and lens[0] == 1 + (len(once) - 1)*2_640_000
    assert [names[i] for i in ids[:len(once)]] == once and (ids[1:lens[0]].reshape(2_640_000, -1) == ids[1:len(once)]).all()

@pytest.mark.parametrize('n_workers', [0, 2])
def test_many_long_texts(n_workers):
    "Blocks are cut by what the texts hold"
    texts = ['word '*1500]*5200
    assert sum(len(o[1]) for o in encode_texts(texts, get_tokenizer(tok=lambda ts: (t[:4].split() for t in ts), rules=[]), n_workers, progress=True)) == 5200
    blocks = tokens._blocks(texts, None)
    assert sum(blocks, []) == texts and max(sum(map(len, o)) for o in blocks) < 2**21 + 7500 and max(map(len, tokens._blocks(['']*5000, None))) <= 1024

def test_bar_has_the_length_of_the_blocks(monkeypatch):
    bars, texts = [], ['word '*1500]*1200
    monkeypatch.setattr(tokens, 'progress_bar', lambda o, total, leave: bars.append(total) or o)
    n = len(list(encode_texts(texts, get_tokenizer(tok=lambda ts: (t[:4].split() for t in ts), rules=[]), 0, progress=True)))
    assert bars == [n] and 1 < n < len(texts)

@pytest.mark.parametrize('t', ['1 @.@ 5', 'well @-@ made', 'wait...', 'an <unk> here', 'a<br />b'])
def test_marks_of_wikipedia_are_fastais(t): assert fix_entities(t) == fix_html(t) != t

def test_half_an_entity_stays():
    "An address keeps its arguments, which fastai's rule takes for signs; whole entities are read"
    assert fix_html('?a=1&copy=2') != fix_entities('?a=1&copy=2 &lt 5 &region;') == '?a=1&copy=2 &lt 5 &region;'
    assert fix_entities('&lt;i&gt; &#233;&eacute; AT&amp;T') == '<i> éé AT&T'

def test_one_file(tmp_path):
    (tmp_path/'t.txt').write_text('One file.')
    assert tokenize(tmp_path/'t.txt') == tokenize('One file.') == [['xxbos', 'xxmaj', 'one', 'file', '.']]

def test_lone_surrogate():
    with pytest.raises(ValueError, match='lone surrogate.*mend it'): tokenize(['fine', 'not \ud800 fine'])

def test_fastais_own_tokenizer(short):
    "`Tokenizer` keeps its rules beside: it gives the tokens that it gives in a `DataBlock`, and is not taken letter by letter"
    texts = short.text[:20].tolist()
    for stock in (Tokenizer.from_df('text'), Tokenizer(SpacyTokenizer('en')), Tokenizer(SpacyTokenizer('de')), Tokenizer(SpacyTokenizer('en'), rules=[str.lower])):
        want = [stock(t) for t in texts]
        assert tokenize(texts, stock) == tokenize(texts, get_tokenizer(tok=stock)) == want
    assert list(text_corpus(pd.DataFrame(dict(text=texts, label='a', part='train', is_valid=False)), Tokenizer.from_df('text'))[0]) == list(tokenize(texts[:1])[0])

def test_a_text_beyond_spacys_million():
    for tok in (get_tokenizer('de'), get_tokenizer('en', [str.lower])):
        assert tokenize(['ja nein '*130_000], tok)[0][-4:] == ['ja', 'nein']*2

def test_other_tokenizers(short):
    texts = short.text[:20].tolist()
    tok = get_tokenizer(tok=lambda ts: (t.split() for t in ts), rules=[str.lower])
    assert tokenize(texts, tok) == [t.lower().split() for t in texts]
    assert tokenize(texts, get_tokenizer('de')) == [list(o) for o in TokenizeWithRules(SpacyTokenizer('de'))(texts)]

def test_cut_off_in_the_middle():
    "An interrupt must not leave tables that disagree"
    tok, texts = ChunkTokenizer(), ['A good film, really good.', 'I liked the thing']
    class Cut(dict):
        def __getitem__(self, k): raise KeyboardInterrupt
    tok(['A'])
    tok.types = Cut()
    with pytest.raises(KeyboardInterrupt): tok(texts)
    assert [list(o) for o in tok(texts)] == [list(o) for o in ChunkTokenizer()(texts)]

def test_threads(short):
    "One tokenizer, eight threads"
    from concurrent.futures import ThreadPoolExecutor
    tok, texts = ChunkTokenizer(), short.text.tolist()
    with ThreadPoolExecutor(8) as ex: res = list(ex.map(lambda t: list(next(tok([t]))), texts))
    assert res == [list(o) for o in ChunkTokenizer()(texts)]

@pytest.mark.skipif(not (fastai_cfg().path('data')/'imdb').exists(), reason='IMDb is not in fastai\'s data folder')
def test_imdb():
    files = sorted((fastai_cfg().path('data')/'imdb').glob('t*/???/*.txt'))[::25]
    assert len(files) == 2000
    same([f.read_text(encoding='utf8') for f in files])

@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere nothing tells a process that its parent is gone')
@pytest.mark.parametrize('sig', [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_a_killed_process(tmp_path, sig):
    "They had waited for ever, with half a gigabyte each"
    code = """import multiprocessing, time
from ulmfit_tut.tokens import encode_texts
blocks = iter(encode_texts([f'a film {i} ' + 'word '*2000 for i in range(600)], n_workers=2, progress=False))
next(blocks)
print(*[o.pid for o in multiprocessing.active_children()], flush=True)
time.sleep(600)"""
    with subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code], stdout=subprocess.PIPE, text=True) as p:
        pids = list(map(int, p.stdout.readline().split()))
        assert len(pids) == 2 and all(Path(f'/proc/{o}').exists() for o in pids)
        p.send_signal(sig)
    def runs(pid): return Path(f'/proc/{pid}/stat').exists() and Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    for _ in range(100):
        if not any(map(runs, pids)): break
        time.sleep(.1)
    assert not any(map(runs, pids))
