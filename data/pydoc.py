"""pydoc: the English text that every CPython installs, its language reference and library documentation."""

import ast
import inspect
import io
import platform
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.token_files import SPLIT_RULE, held_out, write_corpus
from data.tokenise import Preparation
from data.tokenizers import make_tokenizer
from errors import Failure

# Tests, and packages installed into the library's folder.
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}
FRACTION = 0.05  # of the documents are held out


def prepare(job: Preparation) -> int:
    """Write the token files; returns the number of documents."""
    tokenizer = make_tokenizer(job.tokenizer)
    texts = list(documents())
    fraction = FRACTION if job.val_fraction is None else job.val_fraction
    validation = set(held_out(len(texts), fraction).tolist())
    splits = {
        "train": [text for index, text in enumerate(texts) if index not in validation],
        "val": [text for index, text in enumerate(texts) if index in validation],
    }
    end = np.array([tokenizer.end_of_text], dtype=tokenizer.dtype)
    meta: dict[str, Any] = {
        "corpus": "pydoc",
        "tokenizer": tokenizer.to_meta(),
        "end_of_text": tokenizer.end_of_text,
        "source": "topics of the language reference, docstrings and comments of the standard library",
        "python": platform.python_version(),
        "documents": {split: len(part) for split, part in splits.items()},
        "bytes": {split: sum(len(text.encode()) for text in part) for split, part in splits.items()},
        "split": f"{fraction:.2%} of the documents, {SPLIT_RULE}",
    }
    if job.val_fraction is not None:
        meta["val_fraction"] = fraction
    tokens = {
        split: [array for text in part for array in (tokenizer.encode(text), end)]
        for split, part in splits.items()
    }
    write_corpus(job.folder, tokens, meta)
    return len(texts)


def documents() -> Iterator[str]:
    """A document for each topic of the language reference, by name, and for each library module, by path.

    A module's document is its docstrings and comments in order. Text and order depend on the installed Python
    alone. Raises Failure if the sources are not installed.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise Failure(
            "this Python comes without pydoc_data; use another --dataset, or a full CPython"
        ) from error
    library = Path(sysconfig.get_path("stdlib"))
    modules = sorted(
        path for path in library.rglob("*.py") if not LEFT_OUT & set(path.relative_to(library).parts)
    )
    if not modules:
        raise Failure(f"{library} holds no library sources; use another --dataset, or a full CPython")
    for _, text in sorted(topics.items()):
        yield text.strip()
    for path in modules:
        text = prose(path.read_bytes())
        if text:
            yield text


def prose(source: bytes) -> str:
    """Docstrings and comments of a module in order, separated by empty lines; "" if it does not parse."""
    try:
        parts = [*_docstrings(source), *_comments(source)]
    except (SyntaxError, ValueError, tokenize.TokenError):
        return ""
    return "\n\n".join(text for _, text in sorted(parts))


def _docstrings(source: bytes) -> Iterator[tuple[int, str]]:
    """(line, text) of each docstring."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.body and isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant):
            text = node.body[0].value.value
            if isinstance(text, str) and text.strip():
                yield node.body[0].lineno, inspect.cleandoc(text)


def _comments(source: bytes) -> Iterator[tuple[int, str]]:
    """(line, text) of each block of comment lines; lines without a letter are decoration."""
    first, last, lines = 0, 0, []
    for token in tokenize.tokenize(io.BytesIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        text = token.string.lstrip("#").strip()
        if not re.search("[A-Za-z]", text) or text.startswith("!"):
            continue
        line = token.start[0]
        if lines and line != last + 1:
            yield first, "\n".join(lines)
            lines = []
        if not lines:
            first = line
        lines.append(text)
        last = line
    if lines:
        yield first, "\n".join(lines)
