"""Token files in shards: a header of 256 int32 (magic, version, token count), then uint16 ids.

The format of modded-nanogpt's FineWeb files: <name>_train_000001.bin, ..., <name>_val_000000.bin.
`python -m data.shards --dataset NAME --output FOLDER` writes a corpus in it.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from errors import Failure, UsageError, run_script
from files import folder_name, write_atomically

MAGIC, VERSION = 20240520, 1
HEADER = 256  # int32
DTYPE = np.dtype("<u2")
PER_SHARD = 100_000_000  # tokens


def open_shard(path: Path) -> np.ndarray:
    """The tokens (n,), uint16, mapped read-only. Raises Failure for another format, or a damaged file."""
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
                f"{4 * HEADER + DTYPE.itemsize * count:,}; bring it again"
            )
        return np.memmap(path, dtype=DTYPE, mode="r", offset=4 * HEADER, shape=(count,))
    except OSError as error:
        raise Failure(f"cannot read {path}: {error.strerror or error}") from error


def write_shard(path: Path, tokens: np.ndarray) -> None:
    """Write a shard, which appears whole. Raises UsageError for ids that 16 bits do not hold."""
    if tokens.dtype.itemsize > DTYPE.itemsize and tokens.max(initial=0) >= 1 << 16:
        raise UsageError(f"{path}: shards hold ids below 65,536, and these reach {tokens.max():,}")
    header = np.zeros(HEADER, dtype="<i4")
    header[:3] = MAGIC, VERSION, len(tokens)
    write_atomically(path, lambda file: file.write(header.tobytes() + tokens.astype(DTYPE).tobytes()))


def write_shards(
    folder: Path, name: str, split: str, arrays: list[np.ndarray], per_shard: int = PER_SHARD
) -> Iterator[Path]:
    """Write a split in shards of `per_shard` tokens, the last one shorter; yields each path."""
    if per_shard < 1:
        raise UsageError(f"--tokens_per_shard {per_shard} must be at least 1")
    number = 0 if split == "val" else 1
    for array in arrays:
        for start in range(0, len(array), per_shard):
            path = folder / f"{name}_{split}_{number:06d}.bin"
            write_shard(path, array[start : start + per_shard])
            number += 1
            yield path


def main() -> None:
    """Write the corpus that the flags name as shards."""
    from data import open_corpus, registered_corpora

    parser = argparse.ArgumentParser(prog="python -m data.shards", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, help=f"one of {', '.join(registered_corpora())}")
    parser.add_argument("--tokenizer", help="default: the corpus' own")
    parser.add_argument("--data_dir", help="where token files lie; default: data/datasets")
    parser.add_argument("--output", required=True, help="the folder that the shards go to")
    parser.add_argument("--tokens_per_shard", type=int, default=PER_SHARD)
    args = parser.parse_args()
    corpus = open_corpus(args.dataset, data_dir=args.data_dir, tokenizer=args.tokenizer)
    name = folder_name(corpus.name)
    for split in ("val", "train"):
        arrays = corpus.arrays(split)
        for path in write_shards(Path(args.output), name, split, arrays, args.tokens_per_shard):
            print(path)


if __name__ == "__main__":
    run_script(main)
