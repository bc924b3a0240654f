"""Token files in shards: a header of 256 int32 (magic number, version, token count), then uint16 ids.

The format of modded-nanogpt's FineWeb files: <name>_train_000001.bin, ..., <name>_val_000000.bin.
"""

import logging
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.brought import SAMPLE, note_origin
from data.local_files import match
from data.token_files import (
    HF_TOKENIZER,
    META,
    SPLITS,
    read_meta,
    require_known,
    require_sequence,
)
from data.tokenizers import describe, keep_file, same_tokenizer
from errors import Failure, UsageError
from files import folder_name, write_atomically, write_json

if TYPE_CHECKING:
    from data.corpus import TokenCorpus

logger = logging.getLogger(__name__)

MAGIC, VERSION = 20240520, 1
HEADER = 256  # int32
DTYPE = np.dtype("<u2")
PER_SHARD = 100_000_000  # tokens


def find_shards(dataset: str) -> list[Path]:
    """The .bin files that `files:<pattern>` matches; none if it matches documents.

    Raises UsageError if it matches both.
    """
    paths = [path for path in match(dataset).paths if path.name not in (META, HF_TOKENIZER)]
    found = [path for path in paths if path.suffix == ".bin"]
    if found and len(found) < len(paths):
        raise UsageError(
            f"--dataset {dataset}: .bin shards and documents cannot be one corpus; give two patterns"
        )
    return found


def open_shards(
    paths: list[Path], tokenizer: str | None, sequence_length: int, in_ram: bool
) -> tuple[dict[str, Any], dict[str, list[np.ndarray]]]:
    """Open shards: their meta, and the arrays (n,) of each split, which is read off the file names.

    tokenizer: what --tokenizer says they are in. The meta.json next to them says so too; without both they
    are taken for GPT-2's.

    Raises:
        UsageError: there are no files for a split, or they are in other tokens.
        Failure: some are damaged, or all of a split are too short for one window.
    """
    splits: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for path in paths:
        named = [split for split in SPLITS if f"_{split}_" in path.name]
        if len(named) != 1:
            raise UsageError(f"{path}: the name of a shard must hold _train_ or _val_")
        splits[named[0]].append(open_shard(path))
    for split, arrays in splits.items():
        if not arrays:
            raise UsageError(f"{paths[0].parent}: no shard is named _{split}_; both splits are needed")
        longest = max(arrays, key=len)  # shorter ones than a window are left out
        require_sequence(Path(longest.filename), len(longest), sequence_length)
    expected = describe(tokenizer) if tokenizer else None
    described = [_origin(folder, paths, expected) for folder in sorted({path.parent for path in paths})]
    for folder, found in described:
        if not same_tokenizer(found, described[0][1]):
            raise UsageError(
                f"{folder} is in {found['name']} tokens, but {described[0][0]} in {described[0][1]['name']} "
                "tokens: they cannot be one corpus"
            )
    for array in (array for arrays in splits.values() for array in arrays):
        remedy = "give the --tokenizer that it was written with"
        require_known(Path(array.filename), array[:SAMPLE], described[0][1], remedy)
    if in_ram:
        splits = {split: [np.array(array) for array in arrays] for split, arrays in splits.items()}
    return {"corpus": "shards", "tokenizer": described[0][1]}, splits


def _origin(
    folder: Path, paths: list[Path], expected: tuple[dict[str, Any], int | None] | None
) -> tuple[Path, dict[str, Any]]:
    """A folder and the tokeniser of its shards. expected: what --tokenizer says, and its end of text.

    Raises UsageError for another tokeniser than expected, Failure for shards that are not those of meta.json.
    """
    paths, meta = [path for path in paths if path.parent == folder], read_meta(folder)
    if meta is None:
        tokenizer, end_of_text = expected or describe("gpt2")
        if expected is None:
            note_origin(folder, tokenizer, end_of_text, open_shard(paths[0])[:SAMPLE])
        return folder, tokenizer
    tokenizer, sizes = meta["tokenizer"], meta.get("shards")
    if expected and not same_tokenizer(expected[0], tokenizer):
        raise UsageError(
            f"--tokenizer {expected[0]['name']}: {folder / META} says that its shards are in "
            f"{tokenizer['name']} tokens ({tokenizer['vocab_size']:,})"
        )
    for path in paths if sizes is not None else ():
        if sizes.get(path.name) != len(open_shard(path)):
            raise Failure(
                f"{path} is not the file of that name in {META}: it is left from elsewhere; move it away, or "
                "write all shards again into another folder"
            )
    missing = [name for name in sizes or () if not (folder / name).exists()]
    if missing:
        logger.warning(
            f"{len(missing)} of the {len(sizes)} shards in {folder / META} are not there, like {missing[0]}"
        )
    return folder, tokenizer


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
    _require_narrow(path, tokens)
    header = np.zeros(HEADER, dtype="<i4")
    header[:3] = MAGIC, VERSION, len(tokens)
    write_atomically(path, lambda file: file.write(header.tobytes() + tokens.astype(DTYPE).tobytes()))


def _require_narrow(path: Path, tokens: np.ndarray) -> None:
    if tokens.dtype.itemsize > DTYPE.itemsize and tokens.max(initial=0) >= 1 << 16:
        raise UsageError(f"{path}: shards hold ids below 65,536, and these reach {tokens.max():,}")


def write_shards(corpus: "TokenCorpus", folder: Path, per_shard: int = PER_SHARD) -> Iterator[Path]:
    """Write a corpus in shards of `per_shard` tokens, the last of each split shorter; yields their paths.

    A meta.json next to them names their tokeniser, whose tokenizer.json is copied, and lists them.

    Raises:
        UsageError: the arguments make no sense, ids need more than 16 bits, or the folder holds other shards.
        Failure: writing fails.
    """
    if per_shard < 1:
        raise UsageError(f"--tokens_per_shard {per_shard} must be at least 1")
    tokenizer, parts = corpus.meta["tokenizer"], dict[str, np.ndarray]()
    for split, first in (("val", 0), ("train", 1)):
        numbers = count(first)
        for array in corpus.arrays(split):
            for start in range(0, len(array), per_shard):
                name = f"{folder_name(corpus.name)}_{split}_{next(numbers):06d}.bin"
                parts[name] = array[start : start + per_shard]
    sizes = {name: len(tokens) for name, tokens in parts.items()}
    others = _others(folder, folder_name(corpus.name), sizes, tokenizer)
    if tokenizer["vocab_size"] > 1 << 16:
        for name, tokens in parts.items():
            _require_narrow(folder / name, tokens)
    if tokenizer["name"] == HF_TOKENIZER:
        keep_file(corpus.load_tokenizer().path, folder)
    write_json(folder / META, {"corpus": "shards", "tokenizer": tokenizer, "shards": others | sizes})
    for name, tokens in parts.items():
        write_shard(folder / name, tokens)
        yield folder / name


def _others(folder: Path, name: str, sizes: dict[str, int], tokenizer: dict[str, Any]) -> dict[str, int]:
    """The shards of other corpora that a folder's meta.json lists.

    Raises UsageError for further shards, whose tokens are not known, and for those of another tokeniser.
    """
    meta = read_meta(folder) or {}
    listed = {path: size for path, size in meta.get("shards", {}).items() if not path.startswith(f"{name}_")}
    left = [path for path in sorted(folder.glob("*.bin")) if path.name not in {**sizes, **listed}]
    if left:
        raise UsageError(f"--output {folder} holds other token files, {left[0].name}; choose another folder")
    if meta and not same_tokenizer(meta["tokenizer"], tokenizer):
        raise UsageError(
            f"--output {folder} is for {meta['tokenizer']['name']} tokens, and these are {tokenizer['name']} "
            "tokens; choose another folder"
        )
    return listed


if __name__ == "__main__":  # the former `python -m data.shards`
    import runpy
    import sys

    sys.argv[1:1] = ["shards"]
    runpy.run_module("prepare_data", run_name="__main__", alter_sys=True)
