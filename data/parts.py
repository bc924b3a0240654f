"""The parts of an unfinished preparation, one for each piece of the source, and their assembly."""

import logging
import os
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data.journal import Journal, sync
from data.token_files import (
    META,
    SPLIT_RULE,
    SPLITS,
    describe_tokens,
    held_out_count,
    validation_order,
)  # fmt: skip
from data.tokenizers import Tokenizer
from data.workers import EncodedBlock
from errors import Failure
from files import write_json

logger = logging.getLogger(__name__)

LEAST_SHARE = 0.1  # of the tokens of a small corpus are held out
EXAMPLES = 5  # bad records named for each piece


def _part_paths(folder: Path, number: int) -> tuple[Path, Path]:
    """Token ids; and (documents, 2), uint32: tokens and UTF-8 bytes of each document."""
    return folder / f"{number:06d}.tokens", folder / f"{number:06d}.sizes"


class Part:
    """A part being written; replaces any earlier file of that number."""

    def __init__(self, folder: Path, number: int) -> None:
        self._paths = _part_paths(folder, number)
        self._files: tuple[BinaryIO, ...] = tuple(open(path, "wb") for path in self._paths)  # noqa: SIM115
        self._counts = {"documents": 0, "tokens": 0, "bytes": 0, "bad": 0}
        self._examples: list[str] = []
        self._records = 0

    def add(self, encoded: EncodedBlock) -> list[str]:
        """Append documents; returns a line for each bad record, numbered from 1 within the piece."""
        for file, array in zip(self._files, (encoded.tokens, encoded.sizes), strict=True):
            file.write(array.data if array.size else b"")
        bad = [f"record {self._records + index + 1}: {reason}" for index, reason in encoded.bad]
        self._records += encoded.records
        self._examples += bad[: EXAMPLES - len(self._examples)]
        tokens, size = encoded.sizes.sum(axis=0, dtype=np.int64).tolist()
        counted = {"documents": len(encoded.sizes), "tokens": tokens, "bytes": size, "bad": len(bad)}
        for name, count in counted.items():
            self._counts[name] += count
        return bad

    def finish(self) -> dict[str, Any]:
        """Force the part to disk; returns its entry for the journal."""
        for file in self._files:
            sync(file)
            file.close()
        return {**self._counts, "examples": self._examples}

    def discard(self) -> None:
        """Delete the part."""
        for file, path in zip(self._files, self._paths, strict=True):
            file.close()
            path.unlink(missing_ok=True)


def require_both_splits(finished: list[dict[str, Any]], folder: Path, fewest: int) -> None:
    """Raises Failure for a split without documents. fewest: documents that can be split."""
    documents = sum(line["documents"] for line in finished)
    if any(line["split"] for line in finished):
        empty = [s for s in SPLITS if not sum(x["documents"] for x in finished if x["split"] == s)]
        if empty:
            raise Failure(f"the source of {folder} has no documents for {' and '.join(empty)}")
    elif 0 < documents == sum(line["tokens"] for line in finished):  # the end-of-text tokens alone
        raise Failure(f"the documents of {folder} are empty: their source has no text")
    elif documents < fewest:
        raise Failure(
            f"the source of {folder} has {documents} document{'' if documents else 's'}; training and "
            "validation need one each: cut a long text into several files, or into lines of JSON"
        )


def assemble(
    journal: Journal,
    finished: list[dict[str, Any]],
    folder: Path,
    tokenizer: Tokenizer,
    fraction: float,
    least: int | None,
    meta: dict[str, Any],
) -> None:
    """Concatenate the parts into train.bin and val.bin, then write meta.json.

    Each part is deleted once its copy is on disk: the token files and one part are all the space needed.
    A killed assembly resumes after the last completed part.

    Args:
        finished: the journal's lines of all pieces, in order.
        tokenizer: of the parts.
        fraction: of the documents to hold out for validation, if the source has no splits of its own.
        least: tokens to hold out at least, None for the rule of the released code, see `_validation`.
        meta: further content of meta.json.
    """
    dtype = tokenizer.dtype
    has_splits = any(line["split"] for line in finished)
    validation, tail, rule = np.empty(0), 0, "the source's own"
    if not has_splits:
        validation, tail, rule = _validation(journal, finished, fraction, least)
    counts = {split: dict.fromkeys(("documents", "tokens", "bytes"), 0) for split in SPLITS}
    done = [line for line in journal.lines if "assembled" in line]
    if done:
        counts = done[-1]["counts"]
    partial = {split: folder / f"{split}.bin.partial" for split in SPLITS}
    if len(done) < len(finished):
        files = {
            split: _open_at(partial[split], counts[split]["tokens"] * dtype.itemsize) for split in SPLITS
        }
        first = 0  # index of the part's first document
        tail_start = sum(line["tokens"] for line in finished) - tail  # in tokens, from the part's first one
        for number, line in enumerate(finished):
            if number >= len(done):
                paths = _part_paths(journal.folder, number)
                if tail and tail_start < line["tokens"]:
                    _append_halves(paths, max(tail_start, 0), files, counts, tokenizer)
                else:
                    _append_part(paths, line["split"], validation, first, files, counts, dtype)
                for file in files.values():
                    sync(file)
                journal.append({"assembled": number, "counts": counts})
                for path in paths:
                    path.unlink()
            first += line["documents"]
            tail_start -= line["tokens"]
        for file in files.values():
            file.close()
    logger.info("checking the token files ...")
    described = {}
    for split in SPLITS:
        path = folder / f"{split}.bin"
        if partial[split].exists():
            os.replace(partial[split], path)
        described[split] = describe_tokens(path, dtype)
    result = {
        **meta,
        "documents": {split: counts[split]["documents"] for split in SPLITS},
        "bytes": {split: counts[split]["bytes"] for split in SPLITS},
        "split": rule,
        "splits": described,
    }
    write_json(folder / META, result)


def _validation(
    journal: Journal, finished: list[dict[str, Any]], fraction: float, least: int | None
) -> tuple[np.ndarray, int, str]:
    """Held-out documents (their indices), or the number of held-out tokens at the end; and the rule in words.

    Held out is the fraction of the documents. If they have fewer than `least` tokens, or 10 % of a small
    corpus, further documents follow in the same random order. If these are more than half of the text, the
    end of the text is held out instead, as of a single document.
    """
    documents, tokens = (sum(line[name] for line in finished) for name in ("documents", "tokens"))
    order, published, tail = validation_order(documents), held_out_count(documents, fraction), 0
    count = min(published, max(documents - 1, 1))
    chosen = [line for line in journal.lines if "held_out" in line]
    if chosen:
        count, tail = chosen[0]["held_out"], chosen[0]["tail"]
    elif least is not None and not any("assembled" in line for line in journal.lines):
        wanted = min(least, int(LEAST_SHARE * tokens))
        parts = (_part_paths(journal.folder, number)[1] for number in range(len(finished)))
        sizes = np.concatenate([np.fromfile(path, np.uint32)[::2] for path in parts])[order]
        count = max(count, 1 + int(np.searchsorted(sizes.cumsum(dtype=np.int64), wanted)))
        if documents == 1 or (least and sizes[:count].sum(dtype=np.int64) > tokens / 2):
            count, tail = 0, max(wanted if least else int(fraction * tokens), 1)
        journal.append({"held_out": count, "tail": tail})
    if tail:
        return np.empty(0), tail, f"the {tail:,} last tokens"
    share = f"{fraction:.2%} of the" if count == published else f"{count:,}"
    return np.sort(order[:count]), 0, f"{share} documents, {SPLIT_RULE}"


def _open_at(path: Path, size: int) -> BinaryIO:
    """Open for appending after `size` bytes: the rest is of a part that was not completed."""
    file = open(path, "a+b")  # noqa: SIM115
    file.truncate(size)
    return file


def _append_part(
    paths: tuple[Path, Path],
    split: str | None,
    validation: np.ndarray,
    first: int,
    files: dict[str, BinaryIO],
    counts: dict[str, dict[str, int]],
    dtype: np.dtype,
) -> None:
    """Copy a part's documents to their splits, and count them. validation: indices of held-out documents."""
    sizes = np.fromfile(paths[1], dtype=np.uint32).reshape(-1, 2).astype(np.int64)
    ends = np.append(0, sizes[:, 0].cumsum())  # of the documents, in tokens
    if split is not None:
        cuts, names = [0, len(sizes)], [split]
    else:  # stretches of training documents between single validation documents
        start, stop = np.searchsorted(validation, [first, first + len(sizes)])
        cuts, names = [0], []
        for index in (validation[start:stop] - first).tolist():
            cuts += [index, index + 1]
            names += ["train", "val"]
        cuts.append(len(sizes))
        names.append("train")
    with open(paths[0], "rb") as part:
        for name, (start, stop) in zip(names, pairwise(cuts), strict=True):
            tokens = int(ends[stop] - ends[start])
            _copy(part, files[name], tokens * dtype.itemsize)
            counts[name]["documents"] += stop - start
            counts[name]["tokens"] += tokens
            counts[name]["bytes"] += int(sizes[start:stop, 1].sum())


def _append_halves(
    paths: tuple[Path, Path],
    cut: int,
    files: dict[str, BinaryIO],
    counts: dict[str, dict[str, int]],
    tokenizer: Tokenizer,
) -> None:
    """Copy the first `cut` tokens of a part to training, and the rest to validation; and count them.

    A document that is cut ends with an end-of-text token in both.
    """
    sizes = np.fromfile(paths[1], dtype=np.uint32).reshape(-1, 2).astype(np.int64)
    tokens = np.fromfile(paths[0], dtype=tokenizer.dtype)
    ends = sizes[:, 0].cumsum()
    whole = int(np.searchsorted(ends, cut, side="right"))  # documents before the cut
    size = int(sizes[:whole, 1].sum())
    halves = {"train": tokens[:cut], "val": tokens[cut:]}
    if cut > (ends[whole - 1] if whole else 0):
        end = tokenizer.end_of_text
        size += int(sizes[whole, 1]) - sum(
            len(tokenizer.token_bytes(token)) for token in tokens[cut : ends[whole] - 1].tolist()
        )
        halves["train"] = np.append(tokens[:cut], np.array([end], tokenizer.dtype))
        counts["train"]["documents"] += 1
    counts["train"]["documents"] += whole
    counts["val"]["documents"] += len(sizes) - whole
    counts["train"]["bytes"] += size
    counts["val"]["bytes"] += int(sizes[:, 1].sum()) - size
    for split, half in halves.items():
        files[split].write(half.tobytes())
        counts[split]["tokens"] += len(half)


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> None:
    while size:
        content = source.read(min(size, 1 << 22))
        if not content:
            raise OSError(f"{source.name} is shorter than its journal says")
        target.write(content)
        size -= len(content)
