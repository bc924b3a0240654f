"""Token files: {train,val}.bin, little-endian uint16, and a meta.json that says what they hold."""

import hashlib
import json
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
    if not path.exists():
        return None
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(meta["tokenizer"]["vocab_size"], int):
            raise TypeError("vocab_size")
    except (ValueError, KeyError, TypeError) as error:
        raise Failure(
            f"{path} is damaged ({error}); delete its folder to prepare the corpus again"
        ) from error
    return meta


def open_tokens(
    path: Path, meta: dict[str, Any] | None, vocab_size: int, sequence_length: int, in_ram: bool
) -> np.ndarray:
    """The tokens of a file (n,), uint16: mapped read-only, or read into memory.

    Raises Failure naming the file when it is missing, empty, of odd length, of another length than meta.json
    says, too short for one sequence, or holds a token beyond vocab_size.
    """
    if not path.is_file():
        raise Failure(f"{path} is missing; delete its folder to prepare the corpus again, or bring the file")
    size = path.stat().st_size
    if size == 0:
        raise Failure(f"{path} is empty; delete its folder to prepare the corpus again")
    if size % DTYPE.itemsize:
        raise Failure(
            f"{path} has an odd number of bytes ({size:,}), so it is no whole file of 16-bit tokens"
        )
    described = (meta or {}).get("splits", {}).get(path.stem)
    count = size // DTYPE.itemsize
    if described is not None and described["tokens"] != count:
        what = "truncated" if count < described["tokens"] else "longer than it was made"
        raise Failure(f"{path} is {what}: {count:,} tokens, but meta.json says {described['tokens']:,}")
    if count < sequence_length + 1:
        raise Failure(
            f"{path} has {count:,} tokens, too few for a sequence of {sequence_length} and its targets; "
            f"choose --sequence_length below {count}"
        )
    tokens = np.memmap(path, dtype=DTYPE, mode="r")
    # Of a large file, what was measured when it was made is believed: reading it again would take long.
    believed = described is not None and count > _READ_AGAIN
    largest = described["largest_token"] if believed else _largest(tokens)
    if largest >= vocab_size:
        raise Failure(f"{path} holds token {largest}, beyond vocab_size {vocab_size}")
    return np.array(tokens) if in_ram else tokens


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
