"""Corpora -> token files -> batches. `open_corpus` opens any of the `registered_corpora`."""

from data.corpora import Corpus, open_corpus, registered_corpora

__all__ = ["Corpus", "open_corpus", "registered_corpora"]
