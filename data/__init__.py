"""Corpora -> token files -> batches. `open_corpus` opens any of the `registered_corpora`."""

from data.corpora import registered_corpora
from data.corpus import Corpus, open_corpus, open_corpus_from_args, prepare_corpus

__all__ = ["Corpus", "open_corpus", "open_corpus_from_args", "prepare_corpus", "registered_corpora"]
