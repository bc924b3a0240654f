"""From documents to token files, in constant memory, by several processes, killed and taken up again at will.

    pieces of a source -> blocks -> workers -> a part for each piece, in order -> train.bin and val.bin

A piece is a file, or a stretch of a stream. What is finished stands in a journal beside the parts; a second
run goes on behind it and writes the same bytes. Memory: a block or three for each worker, its vocabulary, and
4 bytes a document while the held-out ones are chosen. Disk: the token files, and one part.
"""

import argparse
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from data.assembly import assemble
from data.encoding import Encoded, make_workers, work
from data.journal import Journal, Removed
from data.parts import Part
from data.progress import Progress
from data.records import Block, Damaged
from data.token_files import SPLITS, read_meta
from data.tokenizers import make_tokenizer
from errors import Failure, UsageError

ON_ERROR = ("fatal", "skip")
FRACTION = 0.0005  # of the documents are held out, where a source has no split of its own
MOST_EXAMPLES = 100  # of bad records that meta.json names
_BLOCKS_AHEAD = 2  # for each worker: enough that none waits


@dataclass(frozen=True)
class Piece:
    """name: in reports. split: train or val; None where documents are to be held out.

    blocks: the records, which may raise Damaged. state: where the source stands behind this piece, plain
    data, asked for when the blocks are exhausted.
    """

    name: str
    split: str | None
    blocks: Iterator[Block]
    state: Callable[[], Any] = field(default=lambda: None)


class Source(Protocol):
    """identity: plain data that tells this source from another. size: bytes of it; None is not known.

    read: how many bytes of it have been read.
    """

    identity: dict[str, Any]
    size: int | None
    read: int

    def pieces(self, finished: list[dict[str, Any]]) -> Iterator[Piece]:
        """Those behind the finished ones, of which the journal's lines are given."""


def tokenise(
    source: Source,
    folder: Path,
    tokenizer_name: str,
    about: dict[str, Any],
    *,
    column: str = "text",
    fraction: float = FRACTION,
    workers: int | None = None,
    on_error: str = "fatal",
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Write train.bin, val.bin and meta.json into `folder`; returns what meta.json says.

    about: what else meta.json is to say. fraction: of the documents to hold out, where the source has no
    split of its own. workers: processes; None for one on each core there is. on_error: `skip` leaves bad
    records and damaged files out, counts and names them; `fatal` stops at the first. Raises UsageError or
    Failure; what has been finished is kept, and the same call goes on from there. Where another process is
    at the same work, it waits for what that one writes, or goes on where it was ended.
    """
    workers = available_cores() if workers is None else workers
    if workers < 1:
        raise UsageError(f"--workers {workers} must be at least 1")
    if on_error not in ON_ERROR:
        raise UsageError(f"--on_error {on_error}: choose from {', '.join(ON_ERROR)}")
    tokenizer = make_tokenizer(tokenizer_name)
    if tokenizer.end_of_text is None:
        raise UsageError(f"the tokeniser {tokenizer_name} has no token for the end of a text")
    meta = {"tokenizer": tokenizer.to_meta(), "end_of_text": tokenizer.end_of_text, **about}
    meta["dtype"] = tokenizer.dtype.name
    identity = {"source": source.identity, "tokenizer": meta["tokenizer"], "fraction": fraction}
    try:
        journal = Journal(folder / "parts", identity, say)
    except Removed:
        if (written := read_meta(folder)) is None:
            raise Failure(f"{folder / 'parts'} was deleted while another process worked there") from None
        return written
    if not journal.lines and (written := read_meta(folder)) is not None:
        journal.remove()  # another process finished after the caller had looked
        return written
    try:
        finished = [line for line in journal.lines if "piece" in line]
        if not any("pieces" in line for line in journal.lines):
            if finished:
                say(f"going on behind {finished[-1]['piece']}, number {len(finished)}")
            progress = Progress(source.size, say)
            try:
                _write_parts(
                    source, journal, finished, meta["tokenizer"], column, workers, on_error, progress
                )
            finally:
                progress.close()
            journal.append({"pieces": len(finished)})
        _require_both_splits(finished, folder)
        if any(line["bad"] or "damaged" in line for line in finished):
            meta["skipped"] = _skipped(finished)
        result = assemble(journal, finished, folder, tokenizer.dtype, fraction, meta, say)
        journal.remove()
        return result
    except OSError as error:
        raise Failure(
            f"cannot write in {folder}: {error.strerror or error}; the same command goes on from the last "
            "finished file"
        ) from error
    finally:
        journal.close()


def add_flags(parser: argparse.ArgumentParser) -> None:
    """--workers and --on_error, for every command that tokenises."""
    parser.add_argument("--workers", type=int, help="processes (1: this one); default: one for each core")
    parser.add_argument(
        "--on_error",
        choices=ON_ERROR,
        default="fatal",
        help="bad records and damaged files: stop, or leave out",
    )


def available_cores() -> int:
    """Those that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write_parts(
    source: Source,
    journal: Journal,
    finished: list[dict[str, Any]],
    tokenizer: dict[str, Any],
    column: str,
    workers: int,
    on_error: str,
    progress: Progress,
) -> None:
    """A part for each piece that is not finished; adds their lines to `finished`."""
    pool = make_workers(workers, tokenizer, column)
    part = None
    try:
        for piece, result in _in_order(source.pieces(finished), pool, _BLOCKS_AHEAD * workers):
            part = part or Part(journal.folder, len(finished))
            if isinstance(result, Encoded):
                bad = part.add(result)
                if bad and on_error == "fatal":
                    raise _refusal(f"{piece.name}, {bad[0]}")
                progress.update(source.read, result)
                continue
            if isinstance(result, Damaged):
                if on_error == "fatal":
                    raise _refusal(f"{piece.name}: {result}")
                part.discard()  # whole: the same documents, wherever the damage was noticed
                part = Part(journal.folder, len(finished))
            line = {"piece": piece.name, "split": piece.split, **part.finish()}
            line |= {"damaged": str(result)} if isinstance(result, Damaged) else {"state": result}
            part = None  # before the journal names it: Ctrl-C may come between any two lines
            journal.append(line)
            finished.append(line)
    except BrokenProcessPool as error:
        raise Failure(
            "a worker process was killed, perhaps for want of memory; the same command goes on from the last "
            "finished file, with fewer --workers in less memory"
        ) from error
    finally:
        if part is not None:
            part.discard()
        pool.shutdown(cancel_futures=True)


def _in_order(pieces: Iterator[Piece], pool: Executor, ahead: int) -> Iterator[tuple[Piece, Any]]:
    """Each block's Encoded, and behind a piece's last one its state, or the Damaged that ended it."""
    waiting: deque[tuple[Piece, Any]] = deque()

    def taken() -> tuple[Piece, Any]:
        piece, result = waiting.popleft()
        return piece, result.result() if isinstance(result, Future) else result

    for piece in pieces:
        try:
            for block in piece.blocks:
                waiting.append((piece, pool.submit(work, block)))
                while len(waiting) > ahead:
                    yield taken()
            waiting.append((piece, piece.state()))
        except Damaged as damage:
            waiting.append((piece, damage))
    while waiting:
        yield taken()


def _refusal(what: str) -> Failure:
    return Failure(f"{what}; give --on_error skip to leave such records and files out, counted and named")


def _require_both_splits(finished: list[dict[str, Any]], folder: Path) -> None:
    documents = sum(line["documents"] for line in finished)
    if any(line["split"] for line in finished):
        empty = [s for s in SPLITS if not sum(x["documents"] for x in finished if x["split"] == s)]
        if empty:
            raise Failure(f"the source of {folder} has no documents for {' and '.join(empty)}")
    elif documents < 2:
        raise Failure(
            f"the source of {folder} has {documents} document{'' if documents else 's'}; training and "
            "validation need one each: cut a long text into several files, or into lines of JSON"
        )


def _skipped(finished: list[dict[str, Any]]) -> dict[str, Any]:
    """What was left out: for meta.json. The first ones of each file are named."""
    return {
        "records": sum(line["bad"] for line in finished),
        "files": [f"{line['piece']}: {line['damaged']}" for line in finished if "damaged" in line],
        "examples": [
            f"{line['piece']}, {example}" for line in finished for example in line["examples"]
        ][:MOST_EXAMPLES],
    }  # fmt: skip
