"""The main job: the same bytes twice, the same bytes when cut off, nothing overwritten, every mistake named before any work."""
import io, json, os, pickle, subprocess, sys, warnings
from pathlib import Path
import pandas as pd, pytest, torch
from fastai.text.all import AWD_LSTM, Callback, MixedPrecision, TextDataLoaders, awd_lstm_clas_config, awd_lstm_lm_config, fastai_cfg, get_language_model, language_model_learner, risinstance, set_seed
from ulmfit_tut import cli, files, lm, runs, unfreeze
from ulmfit_tut.batches import text_dls
from ulmfit_tut.compare import majority, tfidf, wilson
from ulmfit_tut.corpus import text_corpus
from ulmfit_tut.data import get_texts
from ulmfit_tut.encoder import encoder_of, save_encoder, save_text_model, words_of
from ulmfit_tut.predict import load_classifier
from ulmfit_tut.tokens import get_tokenizer, tokenize, tokenizer_names
from ulmfit_tut.ulmfit import _arms, classifier_learner, ulmfit

fast = dict(split_col='part', lm_epochs=(1, 1), epochs=(1, 1, 1, 2), bs=8, seq_len=16, progress=False, device='cpu')

def written(out): return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob('*')) if p.is_file() and p.name != 'timings.csv'}

@pytest.fixture(scope='module')
def finished(short, tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'a'
    ulmfit(short, out, **fast)
    return out

def test_run_folder(finished):
    assert {o.name for o in finished.iterdir()} == {'config.json', 'data.csv', 'history.csv', 'metrics.csv', 'lrs.csv', 'predictions.csv', 'comparison.csv',
                                                    'test.json', 'timings.csv', 'why.csv', 'encoder.safetensors', 'classifier.safetensors', 'report.html'}
    m, p = pd.read_csv(finished/'metrics.csv'), pd.read_csv(finished/'predictions.csv')
    assert m.freeze_to.tolist() == [-1, 0, -1, -2, -3, 0] and m.epochs.tolist() == [1, 1, 1, 1, 1, 2]
    assert json.loads((finished/'test.json').read_text())['accuracy'] == pytest.approx((p.label == p.predicted).mean())
    assert len(p) == 48 and ((p.neg + p.pos - 1).abs() < 1e-5).all()
    lrs = pd.read_csv(finished/'lrs.csv').query('phase=="clas"')
    assert ((lrs.g0 > 0) == (lrs.stage == 4)).all() and (lrs.stage == 4).sum() == 2*len(lrs)/5     # the embedding learns in the last two of five epochs alone

def test_all_layers_at_once(short, tmp_path):
    ulmfit(short, tmp_path/'run', **{**fast, 'lm_epochs': (0, 0), 'epochs': (0, 0, 0, 2), 'lrs': (1, 1, 1, 2e-3), 'lr_ratio': 1})
    assert pd.read_csv(tmp_path/'run/metrics.csv')[['stage', 'freeze_to', 'epochs', 'lr_low', 'lr_high']].values.tolist() == [[1, 0, 2, 2e-3, 2e-3]]
    lrs = pd.read_csv(tmp_path/'run/lrs.csv').filter(regex='g[0-9]')
    assert (lrs.values > 0).all() and lrs.eq(lrs.g0, axis=0).to_numpy().all() and lrs.to_numpy().max() == pytest.approx(2e-3, rel=.02)

def test_a_language_model_of_ones_own(short, tmp_path):
    "A file of `save_text_model` is a start like the embedded ones: the same weights for the same words; one that does not fit is refused before any work"
    corpus = text_corpus(get_texts(short, split_col='part'))
    learn = lm.lm_learner(text_dls(corpus, corpus.vocab(lm.pretrained_lm('movies')[1]), is_lm=True, bs=8, seq_len=16, device='cpu'), 'movies')
    with torch.no_grad(): learn.model[0].encoder.weight += 1
    file = save_text_model(learn, tmp_path/'mine.safetensors')
    (tmp_path/'none').mkdir()
    again = lm.lm_learner(learn.dls, file)
    assert all(torch.equal(a, b) for a, b in zip(learn.model.state_dict().values(), again.model.state_dict().values())) and again.opt.frozen_idx > 0
    ulmfit(short, tmp_path/'run', tmp_path/'none'/'..'/'mine.safetensors', **{**fast, 'lm_epochs': (0, 1), 'epochs': (0, 0, 0, 1)}, compare=('direct',))
    table = pd.read_csv(tmp_path/'run/comparison.csv')
    assert table.arm.tolist() == ['mine, no LM fine-tuning', 'ULMFiT from mine'] and set(table.starts_from) == {str(tmp_path/'none'/'..'/'mine.safetensors')}
    assert 'a language model of your own (mine.safetensors)' in (tmp_path/'run/report.html').read_text()
    untied = language_model_learner(learn.dls, AWD_LSTM, config={**awd_lstm_lm_config, **lm.pretrained_lm('movies')[2], 'tie_weights': False}, pretrained=False)
    with pytest.raises(ValueError, match='a decoder of its own'): lm.lm_learner(learn.dls, save_text_model(untied, tmp_path/'untied.safetensors'))
    enc = save_encoder(learn, tmp_path/'enc.safetensors')
    for bad, kw in [('tokenizer', dict(pretrained=file, lang='de')), ('backwards', dict(pretrained=file, backwards=True)), ('kind', dict(pretrained=enc))]:
        with pytest.raises(ValueError, match=bad): ulmfit(short, tmp_path/'no', **{**fast, **kw})
    own_rules = text_corpus(get_texts(short, split_col='part'), get_tokenizer(rules='corrected'), cache=tmp_path)
    for start in (file, 'wiki', 'movies', 'wt103'):
        with pytest.raises(ValueError, match="rules 'fastai' in place of 'corrected'"): lm.lm_learner(text_dls(own_rules, is_lm=True, bs=8, device='cpu'), start)
    with pytest.raises(FileNotFoundError, match='my.safetensors'): ulmfit(short, tmp_path/'no', 'my.safetensors', **fast)
    assert not (tmp_path/'no').exists()

def test_rules_of_ones_own(short, tmp_path):
    "A language model made by the corrected rules goes through the whole job, if the job is told of them"
    corpus = text_corpus(get_texts(short, split_col='part'), get_tokenizer(rules='corrected'))
    learn = language_model_learner(text_dls(corpus, is_lm=True, bs=8, seq_len=16, device='cpu'), AWD_LSTM, pretrained=False,
                                   config={**awd_lstm_lm_config, 'emb_sz': 8, 'n_hid': 10, 'n_layers': 3})
    file = save_text_model(learn, tmp_path/'mine.safetensors')
    args = [str(o) for o in ('x.csv', '--pretrained', file, '--rules', 'corrected', '--out', tmp_path/'run', '--compare')]
    settings = {**cli.parse_args(args), **fast, 'epochs': (0, 0, 0, 1), 'lm_epochs': (0, 1), 'source': short}
    ulmfit(**settings)
    assert tokenizer_names(load_classifier(tmp_path/'run').dls.train_ds.tokenizer) == ('spaCy en', 'corrected')
    for bad, has in (dict(rules='fastai'), "rules 'corrected' in place of 'fastai'"), (dict(rules='mine'), "rules='mine' is none of fastai, corrected"):
        with pytest.raises(ValueError, match=has): ulmfit(**{**settings, 'out': tmp_path/'no'} | bad)
    assert not (tmp_path/'no').exists()

def test_what_does_not_fit_into_memory_goes_on_with_less(short, tmp_path, monkeypatch):
    "After the language model is trained the classifier takes too much: the same call with a smaller `bs` does not train the language model again"
    import ulmfit_tut.ulmfit as module
    fit, calls = module.fit_stages, []
    def full(learn, stages, seed, file):
        calls.append(file.stem)
        if calls == ['lm', 'clas']:
            class Full(Callback):
                def before_batch(self): raise RuntimeError('CUDA out of memory')
            learn.add_cb(Full())
        return fit(learn, stages, seed, file)
    monkeypatch.setattr(module, 'fit_stages', full)
    with pytest.raises(torch.OutOfMemoryError, match='take bs=4'): ulmfit(short, tmp_path/'run', **fast)
    lm_file = next((tmp_path/'run/state').rglob('lm.safetensors'))
    before = lm_file.stat().st_mtime_ns
    with pytest.raises(FileExistsError, match='bs was 8 and is 16'): ulmfit(short, tmp_path/'run', **{**fast, 'bs': 16})     # an option forgotten, not a remedy
    monkeypatch.setattr(module, 'fit_stages', lambda *a: calls.append((a[3].stem, a[3].exists() and a[3].stat().st_mtime_ns)) or fit(*a))
    ulmfit(short, tmp_path/'run', **{**fast, 'bs': 4})
    assert calls[2:] == [('lm', before), ('clas', False)] and json.loads((tmp_path/'run/config.json').read_text())['bs'] == 4

@pytest.mark.parametrize('n', [1, 4])
def test_a_language_model_of_other_depth(short, tmp_path, n):
    "The groups are those of the network at hand, from the rates to the report"
    corpus = text_corpus(get_texts(short, split_col='part'))
    learn = lm.lm_learner(text_dls(corpus, is_lm=True, bs=8, seq_len=16, device='cpu'), 'none', config=dict(emb_sz=8, n_hid=10, n_layers=n), metrics=[])      # the rest as stock has it
    ulmfit(short, tmp_path/'run', save_text_model(learn, tmp_path/'mine.safetensors'), **{**fast, 'lm_epochs': (0, 1), 'epochs': (1, 0, 0, 1)}, compare=())
    assert encoder_of(lm.lm_learner(text_dls(corpus, is_lm=True, bs=8, seq_len=16, device='cpu'), 'none', config=None)).n_layers == 3, 'None, as stock takes it'
    lrs = pd.read_csv(tmp_path/'run/lrs.csv').query('phase == "clas"')
    last = lrs[lrs.stage.eq(lrs.stage.max())]
    assert last[f'g{n+1}'].max()/last.g0.max() == pytest.approx(1.2**(n + 1), rel=1e-3)
    page = (tmp_path/'run/report.html').read_text()
    assert f'LSTM {n} from' in page and f'LSTM {n+1} from' not in page and 'head from' in page

def test_a_classifier_on_stock_loaders(short):
    dls = TextDataLoaders.from_df(short[short.part.ne('unsup')], text_col='text', label_col='label', bs=8, device='cpu', num_workers=0)
    sizes = dict(emb_sz=8, n_hid=10, n_layers=2)
    assert classifier_learner(dls, sizes).model[0].bptt == 72 == classifier_learner(dls, sizes, seq_len=72).model[0].bptt
    with pytest.raises(ValueError, match='seq_len=16, its DataLoaders pad for 72'): classifier_learner(dls, sizes, seq_len=16)

def test_steady_memory_elsewhere(monkeypatch):
    "On Windows `ctypes` wants a name, on musl there is no `mallopt`"
    for e in (TypeError, OSError, AttributeError):
        def CDLL(name): raise e
        monkeypatch.setattr(runs.ctypes, 'CDLL', CDLL)
        runs.steady_memory()

def test_same_bytes_when_cut_off_anywhere(short, finished, monkeypatch):
    "Cut off after each epoch in turn, once in the middle of a checkpoint, then left to end: what an uninterrupted run writes"
    class Cut(Exception): pass
    out, save, n = finished.parent/'b', unfreeze.save_weights, []
    def cut(file, *a, **k):
        n.append(1)
        if len(n) == 4: file.with_name(f'.{file.name}.tmp').write_bytes(b'half'); raise Cut('half')
        save(file, *a, **k)
        stages = [dict(o)['stage'] for o in k['history']]
        raise Cut(f'{file.stem} {stages[-1], stages.count(stages[-1])}')
    monkeypatch.setattr(unfreeze, 'save_weights', cut)
    cuts = []
    for _ in range(8):
        with pytest.raises(Cut) as e: ulmfit(short, out, **fast)
        cuts.append(str(e.value))
    assert cuts == ['lm (1, 1)', 'lm (2, 1)', 'clas (1, 1)', 'half', 'clas (2, 1)', 'clas (3, 1)', 'clas (4, 1)', 'clas (4, 2)']
    monkeypatch.undo()
    ulmfit(short, out, **fast)
    assert written(out) == written(finished)

def test_finished_and_foreign_folders_are_left_alone(short, finished, tmp_path):
    before = written(finished)
    with pytest.raises(FileExistsError, match='finished run'): ulmfit(short, finished, **fast)
    assert written(finished) == before
    (tmp_path/'thesis.txt').write_text('mine')
    with pytest.raises(FileExistsError, match='no run folder'): ulmfit(short, tmp_path, **fast)
    (tmp_path/'thesis.txt').unlink()
    (tmp_path/'config.json').write_text(json.dumps(dict(seed=1)))
    with pytest.raises(FileExistsError, match='seed was 1 and is 42'): ulmfit(short, tmp_path, **fast)

@pytest.mark.parametrize('n_hid,n,epochs,lrs,ratio,bs', [(10, 10_000, [2, 2, 2, 8], [1e-2]*4, 1.2, 16), (1152, 9_999, [2, 2, 2, 8], [1e-2]*4, 2.6, 32),
    (1152, 10_000, [1, 1, 1, 2], [2e-2, 1e-2, 5e-3, 1e-3], 2.6, 32)])
def test_schedules_by_the_size_of_network_and_labels(tmp_path, monkeypatch, n_hid, n, epochs, lrs, ratio, bs):
    "Where they are not given: measured ones for a small network, the paper's and the tutorial's for one of theirs; what is given stays"
    import ulmfit_tut.ulmfit as module
    class Enough(Exception): pass
    def stop(*args): raise Enough
    monkeypatch.setattr(module, '_arm', stop)
    monkeypatch.setattr(module, 'pretrained_lm', lambda *a: (None, [], dict(emb_sz=8, n_hid=n_hid, n_layers=3)))
    monkeypatch.setattr(module, 'minutes', lambda *a: 0.)                                               # a step of the large one takes seconds
    df = pd.DataFrame(dict(text=[f'{"good" if i%2 else "bad"} film {i%7}' for i in range(n + 2)], label=['ab'[i%2] for i in range(n + 2)], part=['train']*n + ['test']*2))
    usual = dict(epochs=epochs, lrs=lrs, lr_ratio=ratio, bs=bs)
    for i, kw in enumerate([{}, dict(epochs=(1, 1, 1, 5)), dict(epochs=(1, 0, 0, 1), lrs=(1e-3,)*4), dict(epochs=(0, 0, 0, 1), lrs=(1e-3,)*4, lr_ratio=1., bs=8)]):
        out = tmp_path/str(i)
        with warnings.catch_warnings(action='ignore'), pytest.raises(Enough): ulmfit(df, out, 'none', split_col='part', compare=(), device='cpu', progress=False, **kw)
        c = json.loads((out/'config.json').read_text())
        assert {k: c[k] for k in usual} == usual | {k: list(v) if isinstance(v, tuple) else v for k, v in kw.items()}

@pytest.mark.parametrize('bad,has', [(dict(pretrained='bert'), 'wiki, movies'), (dict(compare=('svm',)), 'majority, tfidf'), (dict(epochs=(1, 1)), '4 numbers, whole'),
    (dict(epochs=(0, 0, 0, 0)), '4 numbers, whole, not all 0'), (dict(epochs=(1, 1, 1, -1)), '4 numbers, whole'), (dict(lr_ratio=0), 'lr_ratio'), (dict(lr_ratio=1e80), 'at most 100'), (dict(lr_ratio='steep'), 'lr_ratio'), (dict(label_col=['a', 'b']), 'label_col'), 
    (dict(lrs=(1, 1, 0, 1)), 'above 0'), (dict(lrs=(1, 1, float('nan'), 1)), 'above 0'), (dict(bs=1), 'at least 2'), (dict(valid_pct=1.5), 'between 0 and 1'),
    (dict(seed=-1), 'seed'), (dict(drop_mult=-1), 'drop_mult'), (dict(bs=5000), 'largest that works'), (dict(text_col='review'), "'review'"),
    (dict(device='tpu'), 'cpu, cuda'), (dict(backwards=True), 'wt103'), (dict(lm_epochs=3), '2 numbers, whole'), (dict(lrs='abcd'), '4 numbers'), (dict(drop_mult=2.6), 'at most 2'), (dict(drop_mult='0.3'), 'at most 2'), (dict(lm_drop_mult=None), 'at most 4'), (dict(lm_drop_mult=-.1), 'at least 0, at most 4'), (dict(drop_mult=float('nan')), 'at least 0'),
    (dict(seq_len=1500), 'at most 1440'), (dict(seed=2**40), 'at most'), (dict(lang='zz'), 'zz')])
def test_mistakes(short, tmp_path, bad, has):
    with pytest.raises(ValueError) as e: ulmfit(short, tmp_path/'run', **{**fast, **bad})
    assert has in str(e.value) and not (tmp_path/'run').exists()

def test_texts_without_labels(short, tmp_path):
    for o in (list(short.text), iter(short.text)):
        with pytest.raises(ValueError, match='no training texts'): ulmfit(o, tmp_path/'run', **{**fast, 'split_col': None})
    assert not (tmp_path/'run').exists()

def test_a_home_in_the_path(short, tmp_path, monkeypatch):
    "pandas reads `~` as the home folder, so the run folder must lie there, too"
    monkeypatch.setenv('HOME', str(tmp_path)); monkeypatch.chdir(tmp_path)
    short.to_csv('t.csv', index=False)
    ulmfit('~/t.csv', '~/mine', **{**fast, 'lm_epochs': (0, 0), 'epochs': (0, 0, 0, 1)}, compare=(), cache='~/texts')
    assert (tmp_path/'mine/report.html').exists() and (tmp_path/'texts').is_dir() and not (tmp_path/'~').exists()
    again = load_classifier('~/mine')
    assert save_text_model(again, '~/again.safetensors') and (tmp_path/'again.safetensors').exists() and load_classifier('~/again.safetensors')

def test_another_run_begins_in_the_same_folder_meanwhile(short, tmp_path, monkeypatch):
    import ulmfit_tut.ulmfit as module
    def prepared(*args):
        files.Path(tmp_path/'run').mkdir(exist_ok=True); runs.write(dict(seed=7), tmp_path/'run/config.json')
        return text_corpus(*args)
    monkeypatch.setattr(module, 'text_corpus', prepared)
    with pytest.raises(FileExistsError, match='seed was 7 and is 42'): ulmfit(short, tmp_path/'run', **fast)
    assert json.loads((tmp_path/'run/config.json').read_text()) == dict(seed=7)

def test_word_counts_without_words(short):
    emoji = get_texts(short.assign(text=[':-) 😀'*(1 + i%5) for i in range(len(short))]), split_col='part')
    with pytest.raises(ValueError, match='words in them: leave tfidf out of compare='): tfidf(emoji)

def test_a_mistake_leaves_no_run_behind(short, tmp_path):
    "What the message says to do, would be another run; a file that a killed run left half-written is none"
    emoji, out = short.assign(text=[':-) 😀'*(1 + i%5) for i in range(len(short))]), tmp_path/'run'
    with pytest.raises(ValueError, match='leave tfidf out of compare='): ulmfit(emoji, out, **fast)
    assert not out.exists()
    out.mkdir(); (out/'.config.json.1-2.tmp').write_text('{')
    assert not runs.unfinished(out, dict(seed=1)) and ulmfit(emoji, out, compare=(), **fast | dict(lm_epochs=(0, 0), epochs=(1, 0, 0, 0))) is not None
    assert (out/'report.html').exists() and not [*out.glob('.*')]

def test_a_column_in_a_list_is_the_same_run(short, tmp_path, monkeypatch):
    "The command names columns in a list: what it began, a notebook may continue"
    import ulmfit_tut.ulmfit as module
    seen = []
    def asked(out, config): seen.append(config); raise FileExistsError
    monkeypatch.setattr(module, 'unfinished', asked)
    for col in ('text', ['text']):
        with pytest.raises(FileExistsError): ulmfit(short, tmp_path/'run', text_col=col, **fast)
    assert seen[0] == seen[1]

def test_a_command_that_is_stopped(monkeypatch):
    def stop(m): raise KeyboardInterrupt
    with pytest.raises(SystemExit, match='Stopped. Nothing was written.'): cli._run('ulmfit-predict', {}, 'cli', stop, 'Nothing was written.')

def test_a_warning_of_a_command_is_one_line(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter('always')
        cli._run('ulmfit', {}, 'files', lambda m: warnings.warn('one text stands twice'))
        assert capsys.readouterr().err == 'ulmfit: one text stands twice\n'
    with pytest.warns(UserWarning, match='as before'): warnings.warn('as before')

def test_encoder_is_the_language_models(finished):
    "Neither what wiki brought along, nor what the classifier made of it"
    k = 'rnns.0.weight_hh_l0_raw'
    enc, clas = (files.load_weights(finished/f'{o}.safetensors')[0] for o in ('encoder', 'classifier'))
    assert not torch.equal(enc[k], lm.pretrained_lm('wiki')[0][f'0.{k}']) and not torch.equal(enc[k], clas[f'0.module.{k}'])

def test_settings_reach_the_learners(short, tmp_path, monkeypatch):
    import ulmfit_tut.ulmfit as module
    seen, fit = [], module.fit_stages
    def spy(learn, *args):
        assert not learn.cbs.filter(risinstance(MixedPrecision))                       # which does nothing on a CPU but warn
        seen.append((learn.moms, encoder_of(learn).hidden_dps[0].p, words_of(learn)))
        return fit(learn, *args)
    monkeypatch.setattr(module, 'fit_stages', spy)
    ulmfit(short, tmp_path/'run', **{**fast, 'lm_epochs': (0, 1), 'epochs': (1, 0, 0, 0)}, compare=(), lm_drop_mult=.2, drop_mult=.4, min_freq=2, max_vocab=500)
    moms, rates, words = zip(*seen)
    assert moms == ((.95, .85, .95),)*2 and rates == pytest.approx([.2*awd_lstm_lm_config['hidden_p'], .4*awd_lstm_clas_config['hidden_p']])
    want = text_corpus(get_texts(short, split_col='part')).vocab(lm.pretrained_lm('wiki')[1], 2, 500)
    assert len(want) == 500 and words == (want, want)

def test_tables_by_hand(short, tmp_path):
    short = short.drop(short.index[short.part.eq('test') & short.label.eq('pos')][:8])           # else the baseline is right on half, and wrong on half
    ulmfit(short, tmp_path/'run', **{**fast, 'lm_epochs': (0, 0), 'epochs': (1, 0, 0, 0)}, compare=('majority',))
    df = get_texts(short, split_col='part')
    vocab, toks = {*text_corpus(df).vocab(lm.pretrained_lm('wiki')[1])}, tokenize(df.text)
    part = df.part.mask(df.is_valid & df.part.eq('train'), 'valid')
    want = pd.DataFrame(dict(part=part, label=df.label, texts=1, tokens=[len(o) for o in toks], unknown=[sum(t not in vocab for t in o) for o in toks])).groupby(['part', 'label'], as_index=False).sum()
    got = pd.read_csv(tmp_path/'run/data.csv', keep_default_na=False)
    assert got.values.tolist() == want.values.tolist() and 0 < want.unknown.sum() < want.tokens.sum()/2
    m, n = pd.read_csv(tmp_path/'run/metrics.csv').iloc[-1], int((part == 'valid').sum())
    assert (m.low, m.high) == pytest.approx(wilson(round(m.accuracy*n), n))
    arm, test = pd.read_csv(tmp_path/'run/comparison.csv').iloc[0], df[df.part.eq('test')]
    assert (arm.accuracy, arm.n) == ((majority(df) == test.label).mean(), len(test)) and (arm.low, arm.high) == pytest.approx(wilson(arm.accuracy*arm.n, arm.n))

def test_reasons_belong_to_the_wrong_answers(finished):
    w, p = pd.read_csv(finished/'why.csv'), pd.read_csv(finished/'predictions.csv')
    assert w.text.nunique() == min(10, (p.label != p.predicted).sum()) > 1
    for i, g in w.groupby('text'): assert p.label[i] != p.predicted[i] and set(g.label) == {p.predicted[i]}

def test_from_scratch_all_layers_learn_for_all_epochs(short, tmp_path):
    ulmfit(short, tmp_path/'run', 'none', **{**fast, 'lm_epochs': (0, 0), 'epochs': (1, 0, 0, 1), 'lrs': (1., 3e-3, 1., 1.)}, compare=())
    assert pd.read_csv(tmp_path/'run/metrics.csv')[['stage', 'freeze_to', 'epochs', 'lr_low', 'lr_high']].values.tolist() == [[1, 0, 2, 3e-3, 3e-3]]

def test_odd_classes(short, tmp_path):
    "Three classes, named like columns; one arm asked for by a plain string"
    df = short.assign(label=[l and ('text', 'predicted', 'label')[i % 3] for i, l in enumerate(short.label)])
    ulmfit(df, tmp_path/'run', **{**fast, 'lm_epochs': (0, 0), 'compare': 'majority'})
    assert pd.read_csv(tmp_path/'run/comparison.csv').arm.tolist() == ['majority class', 'wiki, no LM fine-tuning']

@pytest.mark.parametrize('pretrained,lm_epochs,names', [('wiki', [1, 4], ['same network from scratch', 'wiki, no LM fine-tuning', 'ULMFiT from wiki']),
    ('wiki', [0, 0], ['same network from scratch', 'wiki, no LM fine-tuning']), ('none', [0, 0], ['same network from scratch']),
    ('movies', [0, 1], ['same network from scratch', 'wiki, no LM fine-tuning', 'ULMFiT from movies']),
    ('none', [0, 1], ['same network from scratch', 'language model and classifier from scratch'])])
def test_arms(pretrained, lm_epochs, names):
    "The main one last, none twice, each named for what it is"
    got = _arms(dict(pretrained=pretrained, lm_epochs=lm_epochs, compare=['direct', 'scratch', 'tfidf']))
    assert [k for k, _ in got] == names and (got[-1][1]['pretrained'], got[-1][1]['lm_epochs']) == (pretrained, lm_epochs)
    assert all(c['lm_epochs'] == [0, 0] for _, c in got[:-1])

def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    f = files.save_weights(tmp_path/'w.safetensors', {'w': torch.ones(2)}, vocab=['a'], config={})
    def full(fd): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(files.os, 'fsync', full)
    with pytest.raises(OSError, match=r'No space left on device.*w\.safetensors'): files.save_weights(f, {'w': torch.zeros(2)}, vocab=['a'], config={})
    assert files.load_weights(f)[0]['w'].tolist() == [1, 1] and [o.name for o in tmp_path.iterdir()] == ['w.safetensors']

def test_wt103_look_alike(short, tmp_path, monkeypatch):
    "fastai's own pair of files, made small and laid in place: the full model's road without its download"
    monkeypatch.setattr(lm, 'awd_lstm_lm_config', {**awd_lstm_lm_config, 'emb_sz': 12, 'n_hid': 16})
    home = tmp_path/'wt103-fwd'; home.mkdir()
    monkeypatch.setattr('ulmfit_tut.data.untar_data', lambda *a, **k: home)
    vocab = ['xxunk', 'xxpad', 'xxbos', 'xxeos', 'xxfld', 'xxrep', 'xxwrep', 'xxup', 'xxmaj', 'the', 'a', 'of']
    set_seed(0)
    model = get_language_model(AWD_LSTM, len(vocab), {**awd_lstm_lm_config, 'emb_sz': 12, 'n_hid': 16})
    torch.save(model.state_dict(), home/'lstm_fwd.pth'); (home/'itos_wt103.pkl').write_bytes(pickle.dumps(vocab))
    weights, v, sizes = lm.pretrained_lm('wt103')
    assert v == vocab and sizes == dict(emb_sz=12, n_hid=16, n_layers=3) and torch.equal(weights['0.encoder.weight'], model[0].encoder.weight)
    ulmfit(short, tmp_path/'run', 'wt103', **{**fast, 'compare': ()})
    assert json.loads((tmp_path/'run/config.json').read_text())['network'] == sizes

def test_foreign_pickle_runs_no_code(tmp_path, monkeypatch):
    class Bad:
        def __reduce__(self): return (os.system, (f'touch {tmp_path}/ran',))
    home = tmp_path/'m'; home.mkdir()
    monkeypatch.setattr('ulmfit_tut.data.untar_data', lambda *a, **k: home)
    (home/'itos_wt103.pkl').write_bytes(pickle.dumps(Bad())); (home/'lstm_fwd.pth').write_bytes(b'')
    with pytest.raises(ValueError, match='list of strings'): lm.pretrained_lm('wt103')
    assert not (tmp_path/'ran').exists()

def test_wt103_without_network_names_the_remedy(monkeypatch):
    def no_network(*a, **k): raise OSError('no network')
    monkeypatch.setattr('ulmfit_tut.data.untar_data', no_network)
    with pytest.raises(FileNotFoundError, match='lay lstm_fwd.pth and itos_wt103.pkl in .*movies'): lm.pretrained_lm('wt103')

def test_command(tmp_path):
    "One line for a mistake, no traceback, nothing written; help without torch"
    def cmd(*a): return subprocess.run([sys.executable, '-c', 'from ulmfit_tut.cli import main; main()', *a], capture_output=True, text=True, cwd=tmp_path)
    r = cmd('nowhere.csv')
    assert r.returncode == 1 and r.stderr.strip() == 'ulmfit: No such file: nowhere.csv' and not list(tmp_path.iterdir())
    r = cmd('--pretrained', 'bert')
    assert r.returncode == 1 and r.stderr.startswith("ulmfit: --pretrained='bert' is none of wiki, movies") and not list(tmp_path.iterdir())
    from ulmfit_tut.cli import parse_args
    assert parse_args(['--device', 'cuda:1'])['device'] == 'cuda:1'
    assert parse_args(['--lr-ratio', '1.5'])['lr_ratio'] == 1.5
    assert parse_args(['r.csv', '--text-col', 'title', 'body'])['text_col'] == ['title', 'body'] and parse_args([])['text_col'] == 'text'
    r = cmd('--device', 'gpu')
    assert r.returncode == 1 and r.stderr.startswith("ulmfit: --device='gpu': use cpu, cuda or mps") and not list(tmp_path.iterdir())
    r = cmd('--min-freq', '0')
    assert r.returncode == 1 and r.stderr.strip() == 'ulmfit: --min-freq=0: use a whole number, at least 1', 'an option has the name that the command has for it'
    code = "import sys; sys.argv = ['ulmfit', '--help']\ntry: from ulmfit_tut.cli import main; main()\nexcept SystemExit: assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True).returncode == 0

def test_a_terminal_that_knows_few_letters(monkeypatch):
    "As a log file of Windows: what it cannot hold is spelled out, and nothing stops"
    monkeypatch.setattr(sys, 'stdout', out := io.TextIOWrapper(io.BytesIO(), 'ascii'))
    cli._run('ulmfit', {}, 'files', lambda m: print('é 😀'))
    out.flush()
    assert out.buffer.getvalue().split() == [rb'\xe9', rb'\U0001f600']

def test_backwards_reads_from_the_end(short, tmp_path):
    corpus = text_corpus(get_texts(short, split_col='part'))
    a, b = (text_dls(corpus, corpus.vocab(), backwards=o, device='cpu').valid_ds[0][0] for o in (False, True))
    assert a.tolist() == b.tolist()[::-1] and a[0] == 2
    ulmfit(short, tmp_path/'run', 'none', backwards=True, **{**fast, 'lm_epochs': (0, 0), 'compare': ()})
    assert not (tmp_path/'run/encoder.safetensors').exists(), 'no language model, no encoder of one'

def test_columns_named_by_an_index(short, tmp_path):
    "`df.columns[...]` names columns as well as a list does, and goes into config.json"
    df = short.assign(title='About')
    ulmfit(df, tmp_path/'run', **{**fast, 'lm_epochs': (0, 0), 'epochs': (1, 0, 0, 0)}, pretrained='none', compare=(), text_col=pd.Index(['title', 'text']), label_col=pd.Index(['label'])[0])
    assert json.loads((tmp_path/'run/config.json').read_text())['text_col'] == ['title', 'text']
