"""What several tests share: short texts, so that a whole run takes seconds."""
import warnings
warnings.filterwarnings('ignore', category=FutureWarning)
import pandas as pd, pytest

@pytest.fixture(scope='session')
def short():
    "120 embedded reviews, the first dozen words of each: 24 of each class in train and test, 24 without labels"
    from ulmfit_tut.data import mini_reviews_df
    df = mini_reviews_df().drop(columns=['film', 'rating']).rename(columns={'split': 'part'})
    df['text'] = df.text.str.split().str[:12].str.join(' ')
    return pd.concat([g.iloc[:24] for _, g in df.groupby(['part', 'label'])]).sort_index().reset_index(drop=True)
