"""Token files in shards: a header of 256 int32 (magic number, version, token count), then uint16 ids.

The format of modded-nanogpt's FineWeb files: <name>_train_000001.bin, ..., <name>_val_000000.bin.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.local_files import match
from data.token_files import SPLITS, require_sequence
from data.tokenizers import TiktokenTokenizer
from errors import Failure, UsageError
from files import write_atomically

MAGIC, VERSION = 20240520, 1
HEADER = 256  # int32
DTYPE = np.dtype("<u2")
PER_SHARD = 100_000_000  # tokens


def find_shards(dataset: str) -> list[Path]:
    """The .bin files that `files:<pattern>` matches; none if it matches documents.

    Raises UsageError if it matches both.
    """
    paths = match(dataset).paths
    found = [path for path in paths if path.suffix == ".bin"]
    if found and len(found) < len(paths):
        raise UsageError(
            f"--dataset {dataset}: .bin shards and documents cannot be one corpus; give two patterns"
        )
    return found


def open_shards(
    paths: list[Path], sequence_length: int, in_ram: bool
) -> tuple[dict[str, Any], dict[str, list[np.ndarray]]]:
    """Open shards: their meta, and the arrays (n,) of each split, which is read off the file names.

    Raises UsageError without files for both splits, Failure for damaged ones.
    """
    splits: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for path in paths:
        named = [split for split in SPLITS if f"_{split}_" in path.name]
        if len(named) != 1:
            raise UsageError(f"{path}: the name of a shard must hold _train_ or _val_")
        tokens = open_shard(path)
        require_sequence(path, len(tokens), sequence_length)
        splits[named[0]].append(np.array(tokens) if in_ram else tokens)
    for split, arrays in splits.items():
        if not arrays:
            raise UsageError(f"{paths[0].parent}: no shard is named _{split}_; both splits are needed")
    vocab_size, _ = TiktokenTokenizer.SIZES["gpt2"]
    return {"corpus": "shards", "tokenizer": {"name": "gpt2", "vocab_size": vocab_size}}, splits


def open_shard(path: Path) -> np.ndarray:
    """The tokens (n,), uint16, mapped read-only. Raises Failure for another format or a damaged file."""
    try:
        size = path.stat().st_size
        header = np.fromfile(path, dtype="<i4", count=HEADER)
        if len(header) < HEADER or header[0] != MAGIC:
            raise Failure(f"{path} is no shard: its header does not begin with {MAGIC}")
        if header[1] != VERSION:
            raise Failure(f"{path} is a shard of version {header[1]}; this code reads version {VERSION}")
        count = int(header[2])
        if count < 1 or size != 4 * HEADER + DTYPE.itemsize * count:
            raise Failure(
                f"{path} is damaged: it has {size:,} bytes, and {count:,} tokens take "
                f"{4 * HEADER + DTYPE.itemsize * count:,}; copy it here again"
            )
        return np.memmap(path, dtype=DTYPE, mode="r", offset=4 * HEADER, shape=(count,))
    except OSError as error:
        raise Failure(f"cannot read {path}: {error.strerror or error}") from error


def write_shard(path: Path, tokens: np.ndarray) -> None:
    """Write a shard atomically. Raises UsageError for ids that need more than 16 bits."""
    if tokens.dtype.itemsize > DTYPE.itemsize and tokens.max(initial=0) >= 1 << 16:
        raise UsageError(f"{path}: shards hold ids below 65,536, and these reach {tokens.max():,}")
    header = np.zeros(HEADER, dtype="<i4")
    header[:3] = MAGIC, VERSION, len(tokens)
    write_atomically(path, lambda file: file.write(header.tobytes() + tokens.astype(DTYPE).tobytes()))


def write_shards(
    folder: Path, name: str, split: str, arrays: list[np.ndarray], per_shard: int = PER_SHARD
) -> Iterator[Path]:
    """Write a split in shards of `per_shard` tokens, the last of each array shorter; yields their paths."""
    if per_shard < 1:
        raise UsageError(f"--tokens_per_shard {per_shard} must be at least 1")
    number = 0 if split == "val" else 1
    for array in arrays:
        for start in range(0, len(array), per_shard):
            path = folder / f"{name}_{split}_{number:06d}.bin"
            write_shard(path, array[start : start + per_shard])
            number += 1
            yield path


if __name__ == "__main__":  # the former `python -m data.shards`
    import runpy
    import sys

    sys.argv[1:1] = ["shards"]
    runpy.run_module("prepare_data", run_name="__main__", alter_sys=True)
