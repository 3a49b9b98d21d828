"""Baselines and intervals, against figures that can be worked out beside them."""
import numpy as np, pandas as pd, pytest
from ulmfit_tut.compare import majority, paired_difference, tfidf

def test_paired_difference():
    "Against the normal interval of many texts; and with two seeds that differ, or two texts, each end is one of them alone"
    d = np.r_[np.ones(60), -np.ones(40), np.zeros(300)]
    mean, low, high = paired_difference(np.maximum(d, 0), np.maximum(-d, 0))
    se = d.std()/20
    assert mean == pytest.approx(.05) and (low, high) == pytest.approx((mean - 1.96*se, mean + 1.96*se), abs=.2*se)
    by_seed = np.repeat([[1.], [0.]], 50, 1)
    for o in (by_seed, by_seed.T): assert paired_difference(o, 0*o, 2000) == (.5, 0., 1.)
    assert paired_difference(by_seed, np.zeros(50), 2000) == (.5, 0., 1.)
    for o in (d[:, None], d[:-1], [1], 0):
        with pytest.raises(ValueError, match=r'Shapes \(400,\) and .* same texts'): paired_difference(d, o)

def test_baselines_see_train_alone():
    df = pd.DataFrame(dict(text=['fine film', 'dull film', 'fine, fine', 'so dull'] + ['odd word']*6, label=['pos', 'neg']*2 + ['pos']*6, part=['train']*4 + ['test']*6))
    assert majority(df).tolist() == ['neg']*6 and majority(df).index.tolist() == [*range(4, 10)]
    flipped = df.assign(label=[*df.label[:4], *['neg']*6])
    pd.testing.assert_series_equal(tfidf(df)[0], tfidf(flipped)[0])
    with_unused = df.assign(label=pd.Categorical(df.label, ['neg', 'pos', 'unused']))          # of which no text is there
    assert tfidf(with_unused)[0].tolist() == tfidf(df)[0].tolist() and majority(with_unused).tolist() == ['neg']*6
