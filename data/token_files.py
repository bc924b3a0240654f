"""Token files: {train,val}.bin, little-endian uint16 or uint32, and a meta.json that says what they hold."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.ids import id_dtype
from errors import Failure, UsageError
from files import write_atomically, write_json

SPLITS = ("train", "val")
META = "meta.json"
_CHUNK = 1 << 24  # tokens read at once when a whole file is looked through
_READ_AGAIN = 1 << 29  # tokens up to which a file is looked through at each start (1 GiB)


def write_corpus(folder: Path, splits: dict[str, list[np.ndarray]], meta: dict[str, Any]) -> None:
    """Write both splits and meta.json, each appearing whole; meta.json comes last and makes them complete.

    splits: the arrays of token ids to be laid end to end. Raises Failure when the folder cannot be written.
    """
    dtype = id_dtype(meta["tokenizer"]["vocab_size"])
    described = {}
    for split, arrays in splits.items():
        path = folder / f"{split}.bin"
        content = np.concatenate(arrays).astype(dtype)
        write_atomically(path, lambda file, content=content: file.write(content.tobytes()))
        described[split] = describe_tokens(path, dtype)
    write_json(folder / META, {**meta, "dtype": dtype.name, "splits": described})


def describe_tokens(path: Path, dtype: np.dtype, end_of_text: int | None = None) -> dict[str, Any]:
    """What meta.json says of a split: read off its file. Raises Failure where that cannot be read.

    end_of_text: where given, `documents` is how often it stands there.
    """
    digest, count, largest, documents = hashlib.sha256(), 0, 0, 0
    with _reading(path), open(path, "rb") as file:
        while content := file.read(_CHUNK * dtype.itemsize):
            digest.update(content)
            tokens = np.frombuffer(content, dtype=dtype, count=len(content) // dtype.itemsize)
            count += len(tokens)
            largest = max(largest, int(tokens.max(initial=0)))
            documents += 0 if end_of_text is None else int((tokens == end_of_text).sum())
    found = {"tokens": count, "largest_token": largest, "sha256": digest.hexdigest()}
    return found if end_of_text is None else {**found, "documents": documents}


def dtype_of(meta: dict[str, Any]) -> np.dtype:
    """Of the ids in the files; uint16 where meta.json does not tell."""
    return np.dtype(meta.get("dtype", "uint16")).newbyteorder("<")


def read_meta(folder: Path) -> dict[str, Any] | None:
    """The content of meta.json; None where there is none. Raises Failure when it is damaged."""
    path = folder / META
    try:
        with _reading(path):
            meta = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        if meta is not None:
            _check_meta(meta)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failure(
            f"{path} is damaged ({error}); delete it to prepare the corpus again, or bring it again"
        ) from error
    return meta


def _check_meta(meta: Any) -> None:
    """Raises KeyError, TypeError or AttributeError where something that is read later is not there."""
    numbers = {"vocab_size": meta["tokenizer"]["vocab_size"]}
    for split, described in meta.get("splits", {}).items():
        numbers |= {f"{name} of {split}": described[name] for name in ("tokens", "largest_token")}
    for name, value in numbers.items():
        if not isinstance(value, int):
            raise TypeError(f"{name} is {value!r}")
    if not isinstance(meta["tokenizer"]["name"], str):
        raise TypeError("the tokeniser's name is no text")
    if meta.get("dtype", "uint16") not in ("uint16", "uint32"):
        raise TypeError(f"dtype is {meta['dtype']!r}")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Failure(f"cannot read {path}: {error.strerror or error}") from error


def open_tokens(path: Path, meta: dict[str, Any], sequence_length: int, in_ram: bool) -> np.ndarray:
    """The tokens of a file (n,), uint16 or uint32: mapped read-only, or read into memory.

    Raises Failure naming the file when it is missing, empty, of odd length, of another length than meta.json
    says, too short for one sequence, or holds a token that its tokeniser does not have.
    """
    described, dtype = meta.get("splits", {}).get(path.stem), dtype_of(meta)
    with _reading(path):
        count = _token_count(path, dtype)
        if described is not None and described["tokens"] != count:
            what = "truncated" if count < described["tokens"] else "longer than it was made"
            raise Failure(
                f"{path} is {what}: {count:,} tokens, but meta.json says {described['tokens']:,}; "
                f"{_remedy(path)}"
            )
        require_sequence(path, count, sequence_length)
        tokens = np.memmap(path, dtype=dtype, mode="r")
    # Of a large file, what was measured when it was made is believed: reading it again would take long.
    # Damage that came later is found by batches that are given a vocab_size.
    believed = described is not None and count > _READ_AGAIN
    largest = described["largest_token"] if believed else _largest(tokens)
    require_known(path, largest, meta)
    return np.array(tokens) if in_ram else tokens


def require_known(path: Path, largest: int, meta: dict[str, Any]) -> None:
    """Raises Failure for a token that the tokeniser does not have."""
    tokenizer = meta["tokenizer"]
    if largest >= tokenizer["vocab_size"]:
        raise Failure(
            f"{path} holds token {largest}, but its {tokenizer['name']} tokeniser has "
            f"{tokenizer['vocab_size']:,}; {_remedy(path)}"
        )


def _token_count(path: Path, dtype: np.dtype) -> int:
    """Raises Failure unless the file is a whole number of tokens, and one at least."""
    if not path.is_file():
        raise Failure(f"{path} is missing; {_remedy(path)}")
    size = path.stat().st_size
    if size == 0:
        raise Failure(f"{path} is empty; {_remedy(path)}")
    if size % dtype.itemsize:
        raise Failure(
            f"{path} has {size:,} bytes, so it is no whole file of {8 * dtype.itemsize}-bit tokens; "
            f"{_remedy(path)}"
        )
    return size // dtype.itemsize


def _remedy(path: Path) -> str:
    # Not the folder: it may hold the text that a corpus is made from, or the other file of a brought one.
    return f"bring the file again or, where it was prepared here, delete {path.parent / META}"


def require_sequence(path: Path, count: int, sequence_length: int) -> None:
    """Raises Failure for a file that is too short for one window."""
    if count < sequence_length + 1:
        raise Failure(
            f"{path} has {count:,} tokens, too few for a sequence of {sequence_length} and its targets; "
            f"choose --sequence_length below {count}"
        )


def _largest(tokens: np.ndarray) -> int:
    return max(int(tokens[start : start + _CHUNK].max()) for start in range(0, len(tokens), _CHUNK))


def require_vocabulary(folder: Path, meta: dict[str, Any], vocab_size: int) -> None:
    """Raises UsageError when the model's vocabulary is smaller than the tokeniser's."""
    needed = meta["tokenizer"]["vocab_size"]
    if needed > vocab_size:
        raise UsageError(
            f"the {meta['tokenizer']['name']} tokeniser of {folder} has {needed:,} tokens, more than "
            f"--vocab_size {vocab_size:,}; give --vocab_size {padded(needed)}"
        )


def padded(vocab_size: int) -> int:
    """The next multiple of 64, a width that matrix units like."""
    return -(-vocab_size // 64) * 64


def vocabulary_note(meta: dict[str, Any], vocab_size: int) -> str | None:
    """A sentence where a model's vocabulary is larger than needed, or of a width that is slow."""
    tokenizer = meta["tokenizer"]
    best = padded(tokenizer["vocab_size"])
    if vocab_size == best:
        return None
    what = "is no multiple of 64, which is slower" if vocab_size % 64 else "has more rows than are used"
    return (
        f"note: --vocab_size {vocab_size} {what}: {tokenizer['vocab_size']:,} {tokenizer['name']} tokens fit "
        f"into --vocab_size {best}"
    )
