"""Token files: {train,val}.bin, little-endian uint16, and a meta.json that says what they hold."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from errors import Failure, UsageError
from files import write_atomically, write_json

SPLITS = ("train", "val")
META = "meta.json"
DTYPE = np.dtype("<u2")
_CHUNK = 1 << 24  # tokens read at once when a whole file is looked through
_READ_AGAIN = 1 << 29  # tokens up to which a file is looked through at each start (1 GiB)


def write_corpus(folder: Path, splits: dict[str, list[np.ndarray]], meta: dict[str, Any]) -> None:
    """Write both splits and meta.json, each appearing whole; meta.json comes last and makes them complete.

    splits: the arrays of token ids to be laid end to end. Raises Failure when the folder cannot be written.
    """
    described = {}
    for split, arrays in splits.items():
        digest, count, largest = hashlib.sha256(), 0, 0

        def write(file: BinaryIO, arrays: list[np.ndarray] = arrays) -> None:
            nonlocal count, largest
            for array in arrays:
                content = array.astype(DTYPE).tobytes()
                digest.update(content)  # noqa: B023  (called at once, in this round of the loop)
                file.write(content)
                count += len(array)
                largest = max(largest, int(array.max(initial=0)))

        write_atomically(folder / f"{split}.bin", write)
        described[split] = {"tokens": count, "largest_token": largest, "sha256": digest.hexdigest()}
    write_json(folder / META, {**meta, "splits": described})


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


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Failure(f"cannot read {path}: {error.strerror or error}") from error


def open_tokens(path: Path, meta: dict[str, Any], sequence_length: int, in_ram: bool) -> np.ndarray:
    """The tokens of a file (n,), uint16: mapped read-only, or read into memory.

    Raises Failure naming the file when it is missing, empty, of odd length, of another length than meta.json
    says, too short for one sequence, or holds a token that its tokeniser does not have.
    """
    described = meta.get("splits", {}).get(path.stem)
    with _reading(path):
        count = _token_count(path)
        if described is not None and described["tokens"] != count:
            what = "truncated" if count < described["tokens"] else "longer than it was made"
            raise Failure(
                f"{path} is {what}: {count:,} tokens, but meta.json says {described['tokens']:,}; "
                f"{_remedy(path)}"
            )
        _require_sequence(path, count, sequence_length)
        tokens = np.memmap(path, dtype=DTYPE, mode="r")
    # Of a large file, what was measured when it was made is believed: reading it again would take long.
    # Damage that came later is found by batches that are given a vocab_size.
    believed = described is not None and count > _READ_AGAIN
    largest = described["largest_token"] if believed else _largest(tokens)
    tokenizer = meta["tokenizer"]
    if largest >= tokenizer["vocab_size"]:
        raise Failure(
            f"{path} holds token {largest}, but its {tokenizer['name']} tokeniser has "
            f"{tokenizer['vocab_size']:,}; {_remedy(path)}"
        )
    return np.array(tokens) if in_ram else tokens


def _token_count(path: Path) -> int:
    """Raises Failure unless the file is a whole number of tokens, and one at least."""
    if not path.is_file():
        raise Failure(f"{path} is missing; {_remedy(path)}")
    size = path.stat().st_size
    if size == 0:
        raise Failure(f"{path} is empty; {_remedy(path)}")
    if size % DTYPE.itemsize:
        raise Failure(
            f"{path} has an odd number of bytes ({size:,}), so it is no whole file of 16-bit tokens; "
            f"{_remedy(path)}"
        )
    return size // DTYPE.itemsize


def _remedy(path: Path) -> str:
    # Not the folder: it may hold the text that a corpus is made from, or the other file of a brought one.
    return f"bring the file again or, where it was prepared here, delete {path.parent / META}"


def _require_sequence(path: Path, count: int, sequence_length: int) -> None:
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
            f"--vocab_size {vocab_size:,}; give --vocab_size {-(-needed // 64) * 64}"
        )
