"""ULMFiT from the first token to the last layer: a tutorial that is also a small library, on fastai

ULMFiT classifies text with few labels, in three steps. A language model reads a lot of text and learns to guess the next word. It then reads the texts you care about, labelled or not. Its encoder is carried over to a classifier, which is unfrozen layer group by layer group. Jeremy Howard and Sebastian Ruder published the method in 2018, and fastai made it a matter of a few lines.

This project teaches those lines, one idea at a time, and keeps the helpers that the lessons build in a small package. The helpers take stock fastai learners and `DataLoaders`, and return them. Once it is set up, every page runs on a laptop, without a network. Only IMDb and the published model are fetched, when you ask for them."""

__version__ = "0.0.1"
