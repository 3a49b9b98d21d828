"Numbers in the pages' prose: the check finds those that nothing supports, and there are none."
import hashlib, json, re, sys
from pathlib import Path
import pytest

root = Path(__file__).resolve().parent.parent
sys.path.append(str(root/'docs'))
from check_numbers import check, main, prose, shown

def page(tmp, md, *outs, name='a.ipynb', code=''):
    outs = [dict(output_type='execute_result', data={'text/plain': o, **({'text/html': [o]} if '<' in o else {})}) for o in outs]
    cells = [dict(cell_type='markdown', source=[md]), dict(cell_type='code', source=[code], outputs=outs)]
    (tmp/name).write_text(json.dumps(dict(cells=cells)))
    return tmp

def after(tmp, md, *outs):
    "A page with `md` below cells that print `outs`; one of two parts has its HTML first"
    outs = [dict(output_type='execute_result', data={'text/plain': o} if isinstance(o, str) else {'text/html': o[0], 'text/plain': o[1]}) for o in outs]
    cells = [*(dict(cell_type='code', source=[], outputs=[o]) for o in outs), dict(cell_type='markdown', source=[md])]
    (tmp/'a.ipynb').write_text(json.dumps(dict(cells=cells)))
    return tmp

def bad(*args, **kwargs): return [(o.number, o.unit) for o in check(*args, **kwargs)[0] if not o.where]

@pytest.mark.parametrize('md,number', [('It reaches 94.3 % of them.', ('94.3', '%')), ('It takes 12 minutes.', ('12', 'minutes')), ('A file of 45 MB.', ('45', 'MB')),
    ('It is 5x as fast.', ('5', 'x')), ('It is 7.5 times as fast.', ('7.5', 'times')), ('Of 25,000 reviews.', ('25,000', '')), ('A share of 0.83 was right.', ('0.83', '')),
    ('An accuracy of 94.3 is good.', ('94.3', '')), ('About 3 million words.', ('3', 'million')), ('| ours | 210 s |', ('210', 's')), ('In 30-second steps', ('30', 'second')),
    ('In 2018 it was 94.3 %.', ('94.3', '%')), ('It is 3.2 points ahead.', ('3.2', 'points')), ('Some seven points ahead', ('seven', 'points')),
    ('It gives half a point.', ('half', 'point')), ('between two and three points', ('three', 'points')), ('It knows 300 of 400.', ('300', 'of 400')),
    ('It reads 4854 tokens a second.', ('4854', 'tokens')), ('An F1 of 71', ('71', '')), ('It takes three times as long.', ('three', 'times'))])
def test_a_number_needs_support(tmp_path, md, number): assert bad(page(tmp_path, md)) == [number]

@pytest.mark.parametrize('md', ['fastai 2.8.12 on Python 3.11', 'three layers of 256 units', 'Merity, arXiv 1708.02182', 'issue 3379, version 0.3.1', 'a 6x15 batch', 'set `lr=0.02` for `12 s`',
    '```\ntakes 12 s\n```', 'half a minute', 'two of three rows of the picture', 'step 3 of 3', 'Between two points of a curve', 'said three times', '12 of them',
    'halfway between the two points', 'half the point of it', 'the loss at a point', 'several points', 'from 1 to 10',
    '[a page](x/12s/0.99)', 'chapters 2 and 3', 'in 2018'])
def test_what_is_no_result(tmp_path, md): assert not check(page(tmp_path, md))[0]

def test_output_supports(tmp_path):
    assert not bad(page(tmp_path, 'It is right on 83.2 % of 1,200, in 12 MB.', '0.83199', '1200 rows', "'12 MB'"))
    assert not bad(page(tmp_path, 'It is right on 83.2 %.', '<table><td>0.832</td></table>'))
    assert bad(page(tmp_path, 'It is right on 83.2 %.', '0.8333')) == [('83.2', '%')]
    assert bad(page(tmp_path, 'It takes 12 s.', '12 rows')) == [('12', 's')]              # so small a number may stand there by chance

def test_two_numbers_from_and_to(tmp_path):
    assert bad(page(tmp_path, 'The accuracy rose from 70 to 80.')) == [('70', ''), ('80', '')]
    assert bad(page(tmp_path, 'A loss of 0.31 to 12 %.')) == [('0.31', ''), ('12', '%')]
    assert not bad(page(tmp_path, 'The perplexity fell from 68.4 to 49.8.', '68.4 and 49.8'))

def test_points_are_differences(tmp_path):
    "They are looked up in the last output that shows differences, as points or as shares, and not in the bounds of intervals."
    table = 'difference, points\na 3.8 (0.7 to 6.8)\nb -4.6 (-9.1 to -1.7)'
    for md in ('3.8 points', 'nearly four points', 'some four points', 'more than four points', 'four and a half points', 'between four and five points'):
        assert bad(page(tmp_path, md)), md
        assert not bad(after(tmp_path, md, table)), md
        assert not bad(after(tmp_path, md, 'mean low high difference\na 0.038 0.007 0.068\nb -0.046 -0.091 -0.017')), md
        assert not bad(after(tmp_path, md, table, 'loss 9.2')), md
        assert bad(after(tmp_path, md, table, 'difference 9.2')), md
    for md in ('3.9 points', 'one point', 'seven points', 'more than five points', 'nearly three points', 'two points'): assert bad(after(tmp_path, md, table)), md
    wide = ['<td>difference</td><td>0.046</td><td>0.01</td><td>0.09</td>', 'difference ... 0.09']
    assert bad(after(tmp_path, 'nine points', wide)) and not bad(after(tmp_path, 'five points', wide))

def test_times_in_words_need_a_reason(tmp_path):
    assert bad(after(tmp_path, 'three times as long', 'less 3.1')) == [('three', 'times')]
    assert not bad(tmp_path, allowed='a.ipynb | Three times as long | 31 s beside 10 s')

def test_a_reason_that_names_a_figure_is_looked_up(tmp_path):
    (res := tmp_path/'results').mkdir()
    (res/'arms.json').write_text(json.dumps(dict(difference=.03362)))
    page(tmp_path, 'It gains three points.')
    assert not bad(tmp_path, res, 'a.ipynb | gains three points | arms.json has 3.36')
    assert bad(tmp_path, res, 'a.ipynb | gains three points | arms.json has 3.46') == bad(tmp_path, res, 'a.ipynb | gains three points | b.json has 3.36') != []

def test_results_file_supports_where_it_is_named(tmp_path):
    res = tmp_path/'results'
    res.mkdir()
    (res/'arms.json').write_text(json.dumps(dict(rows=[dict(accuracy=.76275, seconds=332.4)], ok=True)))
    assert not bad(page(tmp_path, 'ULMFiT reached 76.3 % in 332 s.', code="read('../bench/results/arms.json')"), res)
    assert not bad(page(tmp_path, 'ULMFiT reached 76.3 % by `bench/arms.py`.'), res)
    assert bad(page(tmp_path, 'ULMFiT reached 76.3 %.'), res) == [('76.3', '%')]

@pytest.mark.parametrize('source', ['(Howard and Ruder 2018, table 2)', 'in arXiv 1801.06146', 'from `models/wiki.json`', '(Guo et al., section 4.2)', 'by Howard and Ruder (2018)'])
def test_source_supports_its_own_sentence(tmp_path, source):
    assert not bad(page(tmp_path, f'An error of 4.6 % {source}.'))
    assert bad(page(tmp_path, f'An error of 4.6 %. So it stands {source}.')) == [('4.6', '%')]
    assert bad(page(tmp_path, f'| a | 4.6 % | {source} |\n| b | 5.3 % | ours |')) == [('5.3', '%')]

@pytest.mark.parametrize('o', ['([Results](results.ipynb))', '(`bench/labels.py`)', '(`tests/test_tokens.py`)'])
def test_a_link_within_the_book_is_no_source(tmp_path, o): assert bad(page(tmp_path, f'It reached 98.7 % {o}.')) == [('98.7', '%')]

def test_long_lists_of_a_results_file_support_nothing(tmp_path):
    "Of hundreds of probabilities one is like any number"
    (res := tmp_path/'results').mkdir()
    (res/'arms.json').write_text(json.dumps(dict(probs=[i/1000 for i in range(1000)], few=[.123])))
    assert bad(page(tmp_path, 'Right on 47.3 % and 12.3 %.', code="read('../bench/results/arms.json')"), res) == [('47.3', '%')]

def test_exceptions_have_reasons_and_users(tmp_path):
    page(tmp_path, 'Is 80 % good?')
    assert not bad(tmp_path, allowed='# why\na.ipynb | Is 80 % good | a question')
    assert check(tmp_path, allowed='* | Is 80 % good | a question\nb.ipynb | 80 % | no such page')[1] == [('b.ipynb', '80 %', 'no such page')]
    assert bad(tmp_path, allowed='a.ipynb | good? | no number') == [('80', '%')]
    with pytest.raises(ValueError, match=re.escape('not of the form "file | words | reason"')): check(tmp_path, allowed='a.ipynb | 80 % |')

def test_prose(): assert list(prose('One. Two is 2.6 times.\n- a\n- b\n\n| c |\n| d |')) == ['One.', 'Two is 2.6 times.', '- a', '- b', '| c |', '| d |']

def test_this_repository(capsys): assert main() == 0, capsys.readouterr().out

def test_results_page_shows_every_results_file():
    "It reads each file by its name, and was run on the files as they are."
    nb = json.loads((root/'nbs/results.ipynb').read_text(encoding='utf8'))
    code,out = '\n'.join(''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'code'),shown(nb)
    for f in [*(root/'bench/results').iterdir(), *(root/'ulmfit_tut/models').glob('*.json')]:
        assert f"'{f.name}'" in code, f'nbs/results.ipynb does not show {f.name}'
        assert re.search(rf'(?<![\w-]){re.escape(f.name)}\s+{hashlib.sha256(f.read_bytes()).hexdigest()[:12]}', out), f'run nbs/results.ipynb: {f.name} has changed'
