"""The last step of a preparation: parts, in order, become train.bin and val.bin."""

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data.journal import Journal
from data.parts import sizes_path, tokens_path
from data.token_files import META, SPLITS, describe_tokens
from files import write_json

SPLIT_SEED = 2357
_COUNTS = ("documents", "tokens", "bytes")


def held_out(documents: int, fraction: float) -> np.ndarray:
    """Indices of the validation documents, ascending: the first max(1, round(fraction * documents)) of
    numpy's default_rng(2357).permutation(documents) (`spec/cotformer.md`, section 5).

    Shuffling 32-bit numbers draws the same permutation in half the memory.
    """
    count = max(1, round(fraction * documents))
    order = np.arange(documents, dtype=np.uint32 if documents < 1 << 32 else np.int64)
    np.random.default_rng(SPLIT_SEED).shuffle(order)
    return np.sort(order[:count])


def assemble(
    journal: Journal,
    finished: list[dict[str, Any]],
    folder: Path,
    dtype: np.dtype,
    fraction: float,
    meta: dict[str, Any],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Lay the parts end to end, each deleted when it is on disk in its new place; write meta.json last.

    Killed anywhere, a second call goes on behind the part that was completed last. Returns what meta.json
    says.
    """
    splits_itself = any(line["split"] for line in finished)
    chosen = np.empty(0) if splits_itself else held_out(sum(x["documents"] for x in finished), fraction)
    counts = {split: dict.fromkeys(_COUNTS, 0) for split in SPLITS}
    done = [line for line in journal.lines if "assembled" in line]
    if done:
        counts = done[-1]["counts"]
    begun = {split: folder / f"{split}.bin.partial" for split in SPLITS}
    first = 0  # document of the part
    if len(done) < len(finished):
        files = {split: _opened(begun[split], counts[split]["tokens"] * dtype.itemsize) for split in SPLITS}
        for number, line in enumerate(finished):
            if number >= len(done):
                _append_part(journal.folder, number, line["split"], chosen, first, files, counts, dtype)
                for file in files.values():
                    file.flush()
                    os.fsync(file.fileno())
                journal.append({"assembled": number, "counts": counts})
                _delete(journal.folder, number)
            first += line["documents"]
        for file in files.values():
            file.close()
    say("checking what was written ...")
    described = {}
    for split in SPLITS:
        path = folder / f"{split}.bin"
        if begun[split].exists():
            os.replace(begun[split], path)
        described[split] = describe_tokens(path, dtype)
    how = (
        "the source's own"
        if splits_itself
        else f"{fraction:.2%} of the documents, numpy default_rng({SPLIT_SEED}).permutation"
    )
    result = {
        **meta,
        "documents": {split: counts[split]["documents"] for split in SPLITS},
        "bytes": {split: counts[split]["bytes"] for split in SPLITS},
        "split": how,
        "splits": described,
    }
    write_json(folder / META, result)
    return result


def _opened(path: Path, size: int) -> BinaryIO:
    """For appending behind the first `size` bytes: what came later is of a part that was not completed."""
    file = open(path, "a+b")  # noqa: SIM115
    file.truncate(size)
    return file


def _delete(folder: Path, number: int) -> None:
    tokens_path(folder, number).unlink()
    sizes_path(folder, number).unlink()


def _append_part(
    folder: Path,
    number: int,
    split: str | None,
    chosen: np.ndarray,
    first: int,
    files: dict[str, BinaryIO],
    counts: dict[str, dict[str, int]],
    dtype: np.dtype,
) -> None:
    sizes = np.fromfile(sizes_path(folder, number), dtype=np.uint32).reshape(-1, 2).astype(np.int64)
    ends = np.append(0, sizes[:, 0].cumsum())  # of the documents, in tokens
    if split is not None:
        cuts, names = [0, len(sizes)], [split]
    else:  # runs of training documents, between single ones that are held out
        mine = chosen[np.searchsorted(chosen, first) : np.searchsorted(chosen, first + len(sizes))] - first
        cuts, names = [0], []
        for index in mine.tolist():
            cuts += [index, index + 1]
            names += ["train", "val"]
        cuts.append(len(sizes))
        names.append("train")
    with open(tokens_path(folder, number), "rb") as part:
        for name, (start, stop) in zip(names, pairwise(cuts), strict=True):
            _copy(part, files[name], int(ends[stop] - ends[start]) * dtype.itemsize)
            run = {
                "documents": stop - start,
                "tokens": int(ends[stop] - ends[start]),
                "bytes": int(sizes[start:stop, 1].sum()),
            }
            for what, count in run.items():
                counts[name][what] += count


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> None:
    while size:
        part = source.read(min(size, 1 << 22))
        if not part:
            raise OSError(f"{source.name} is shorter than its journal says")
        target.write(part)
        size -= len(part)
