"Pieces of words in place of words: trainings are told apart, and what is missing is said."
import io
from contextlib import redirect_stdout
import pandas as pd, pytest
from fastai.text.all import AWD_LSTM, SentencePieceTokenizer, SpacyTokenizer, TokenizeWithRules, awd_lstm_clas_config, defaults, awd_lstm_lm_config, language_model_learner, text_classifier_learner
from ulmfit_tut.batches import text_dls
from ulmfit_tut.corpus import text_corpus
from ulmfit_tut.encoder import about, load_encoder, load_text_model, save_encoder, save_text_model
from ulmfit_tut.lm import pretrained_lm
from ulmfit_tut.predict import decode_tokens, generate, load_classifier, predict
from ulmfit_tut.rules import rule_sets
from ulmfit_tut.tokens import get_tokenizer, tokenize, tokenizer_names
from ulmfit_tut.why import why

sizes = dict(emb_sz=8, n_hid=10, n_layers=2)
texts = ['Ovo je odličan film.', 'Dosadna priča i loša gluma.', 'Priča je dirljiva, film je lep.', 'Loš kraj!']*6

def trained(folder, n, texts=texts):
    sp = SentencePieceTokenizer(vocab_sz=n, cache_dir=folder)
    with redirect_stdout(io.StringIO()): sp.setup(texts, rule_sets['corrected'])
    return sp

def front(sp): return get_tokenizer(rules='corrected', tok=sp)

def learner(tok, vocab=None, is_lm=False, cache=None):
    df = pd.DataFrame(dict(text=texts, label=['pos', 'neg']*12, part='train', is_valid=[False]*16 + [True]*8))
    c = text_corpus(df, tok, cache=cache)
    dls = text_dls(c, vocab or c.vocab(min_freq=1), is_lm=is_lm, bs=4, seq_len=8, device='cpu')
    if is_lm: return language_model_learner(dls, AWD_LSTM, config={**awd_lstm_lm_config, **sizes}, pretrained=False)
    return text_classifier_learner(dls, AWD_LSTM, config={**awd_lstm_clas_config, **sizes}, pretrained=False, seq_len=8)

def test_two_trainings_are_told_apart(tmp_path):
    "Even if both have the same vocabulary in the learner, and lay in the same file one after the other"
    a = trained(tmp_path/'spm', 60)
    clas = learner(front(a), cache=tmp_path)
    file, enc, vocab = save_text_model(clas, tmp_path/'c.safetensors'), save_encoder(clas, tmp_path/'e.safetensors'), list(clas.dls.vocab[0])
    assert about(learner(front(trained(tmp_path/'again', 60)), cache=tmp_path))['tokenizer'] == about(clas)['tokenizer']            # the folder does not matter
    kept = (tmp_path/'spm/spm.model').rename(tmp_path/'kept.model')
    trained(tmp_path/'spm', 60, texts[:2]*12)                                                  # writes where the first one lay
    same, other = (front(SentencePieceTokenizer(sp_model=o, cache_dir=tmp_path/'x')) for o in (kept, tmp_path/'spm/spm.model'))
    with pytest.raises(ValueError, match='SentencePieceTokenizer #[0-9a-f]{12}, rules corrected: give it by tok='): load_classifier(file)
    with pytest.raises(ValueError, match="tokenizer 'SentencePieceTokenizer #"): load_classifier(file, tok=other)
    with pytest.raises(ValueError, match="tokenizer 'SentencePieceTokenizer #"): load_encoder(learner(other, vocab, cache=tmp_path), enc)
    again = load_classifier(file, tok=same)
    pd.testing.assert_frame_equal(predict(again, texts), predict(clas, texts))
    assert load_text_model(again, file) == dict(unchecked=[])
    new = learner(other, cache=tmp_path)
    res = load_encoder(new, enc, match_vocab=True)                                             # other pieces are other words; of which training they are is not compared
    assert res['unchecked'] == ['tokenizer'] and 0 < res['coverage'] < 1
    assert (clas.model[0].module.rnns[0].module.weight_ih_l0 == new.model[0].module.rnns[0].module.weight_ih_l0).all()
    with pytest.raises(ValueError, match="tokenizer 'SentencePieceTokenizer' / 'spaCy sr'"): load_encoder(learner(get_tokenizer('sr', 'corrected'), cache=tmp_path), enc, match_vocab=True)

class Short(SpacyTokenizer):
    "Words cut to four letters"
    def __call__(self, items): return ([w[:4] for w in o] for o in super().__call__(items))

class Common:
    "A tokenizer that learns the common words, and counts how often it was made to"
    n = 0
    def setup(self, items, rules=None): self.n += 1; self.known = {w for o in items for w in o.split()}; return self
    def __call__(self, items): return ([w if w in self.known else '?' for w in o.split()] for o in items)

def test_a_tokenizer_that_is_trained_stays_so():
    tok = get_tokenizer(tok=Common().setup(texts))
    assert '?' in tokenize(['nov film.'], tok)[0] and tok.tok.n == 1

def test_kinds_of_spacy_are_told_apart(tmp_path):
    "By class, special tokens and what happens afterwards"
    def cut(o): return [w[:3] for w in o]
    plain, own = SpacyTokenizer('en'), SpacyTokenizer('en', special_toks=[*defaults.text_spec_tok, '<user>'])
    names = [tokenizer_names(TokenizeWithRules(o)) for o in (plain, Short('en'), own)] + [tokenizer_names(TokenizeWithRules(plain, post_rules=[cut]))]
    assert names[0] == ('spaCy en', 'fastai') and names[1][0] == 'Short' and names[2][0] == 'SpacyTokenizer' and names[3][1] != 'fastai'
    df = pd.DataFrame(dict(text=texts, label='', part='unsup', is_valid=False))
    a, b = (text_corpus(df, TokenizeWithRules(o), cache=tmp_path) for o in (plain, Short('en')))
    assert a.path != b.path and b[1][:3] == [o[:4] for o in a[1][:3]]

def test_a_language_model_wants_its_tokenizer():
    for tok in ((None, None), ('spaCy en', None), ('spaCy en', 'fastai')): assert pretrained_lm('wiki', tok=tok)[1][:1] == ['xxunk']
    with pytest.raises(ValueError, match="wiki does not fit here, rules 'fastai' in place of 'corrected'"): pretrained_lm('wiki', tok=('spaCy en', 'corrected'))
    with pytest.raises(ValueError, match="wiki does not fit here, tokenizer 'spaCy en' in place of 'spaCy de'"): pretrained_lm('wiki', tok=('spaCy de', 'fastai'))

def letters(texts): return [list(o) for o in texts]

def test_a_function_is_listed_as_unchecked(tmp_path):
    lm = learner(get_tokenizer(rules=[str.lower], tok=letters), is_lm=True, cache=tmp_path)
    assert about(lm)['tokenizer'] == 'function'
    assert load_text_model(lm, save_text_model(lm, tmp_path/'lm.safetensors')) == dict(unchecked=['tokenizer'])
    words = learner(get_tokenizer('sr', [str.lower]), lm.dls.vocab, True, tmp_path)
    with pytest.raises(ValueError, match="tokenizer 'function' / 'spaCy sr'"): load_text_model(words, tmp_path/'lm.safetensors')

@pytest.mark.parametrize('lang', ['qq', 'eo', 'zh', ''])
def test_language_without_a_tokenizer(lang):
    with pytest.raises(ImportError, match=f"no tokenizer '{lang}'.*lang=\"xx\""): get_tokenizer(lang)

def test_untrained_and_gone(tmp_path):
    sp = SentencePieceTokenizer(cache_dir=tmp_path)
    df = pd.DataFrame(dict(text=texts, label='', part='unsup', is_valid=False))
    for tok in (sp, front(sp)):
        with pytest.raises(ValueError, match='not trained: call its setup'): text_corpus(df, tok, cache=tmp_path/'corpora')
    with pytest.raises(Exception, match='gone.model'): SentencePieceTokenizer(sp_model=tmp_path/'gone.model', cache_dir=tmp_path)

def test_extra(root=__import__('pathlib').Path(__file__).resolve().parent.parent):
    assert 'sp_requirements =\n    sentencepiece' in (root/'settings.ini').read_text(encoding='utf8')

def test_pieces_are_read_as_words(tmp_path):
    "A reason is a word, the start is none; what a model writes ends with its text, and reads as text"
    tok = front(trained(tmp_path/'spm', 60))
    clas, lm = (learner(tok, is_lm=o, cache=tmp_path) for o in (False, True))
    assert why(clas, 'Ovo je odličan film. Loš kraj').word.tolist() == ['Ovo', 'je', 'odličan', 'film.', 'Loš', 'kraj']
    with pytest.raises(ValueError, match='hold no word'): why(clas, '')
    vocab, bias = list(lm.dls.vocab), lm.model[1].decoder.bias.data
    assert '▁xxbos' in vocab
    bias[vocab.index('▁xxbos')] = 1e3
    assert generate(lm, 'Ovo je Film', 9, n=2) == ['Ovo je Film']*2
    assert decode_tokens(['▁xxmaj', '▁do', 'bra', '.', '▁xxup', '▁ne']) == ['Dobra.', 'NE']
