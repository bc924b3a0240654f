"""Corpora -> token files -> batches. `open_corpus` opens any of the `registered_corpora`."""

import importlib
from typing import Any

_HOMES = {"Corpus": "data.corpus"} | dict.fromkeys(
    ("open_corpus", "open_corpus_from_args", "prepare_corpus", "registered_corpora"), "data.corpora"
)
__all__ = ["Corpus", "open_corpus", "open_corpus_from_args", "prepare_corpus", "registered_corpora"]


def __getattr__(name: str) -> Any:
    # When they are asked for: `python -m data.openwebtext2` is to load that module once, as the program.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
