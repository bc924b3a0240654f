"""From documents to token files: in constant memory, in parallel, and resumable.

    pieces of a source -> blocks -> worker processes -> a part for each piece, in order -> train.bin and
    val.bin

A journal lists the finished pieces; a killed preparation resumes after the last one and writes the same
bytes.
Memory: up to three blocks and a vocabulary for each worker, and 8 bytes per document while documents are held
out. Disk: the token files and one part.
"""

import logging
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from data.journal import Journal, JournalRemoved
from data.local_files import RECORD, LocalFiles, copies, listed
from data.parts import Part, assemble, require_both_splits
from data.sources import DamagedFile, Piece, Source
from data.token_files import read_meta
from data.tokenizers import make_tokenizer
from data.workers import EncodedBlock, encode_task, make_workers
from errors import Failure, UsageError, duration
from files import write_json
from provenance import cores

logger = logging.getLogger(__name__)

ON_ERROR = ("fatal", "skip")
FRACTION = 0.0005  # of the documents are held out, if a source has no splits of its own
MOST_EXAMPLES = 100  # bad records named in meta.json
_BLOCKS_AHEAD = 2  # for each worker: enough that none waits
_LOG_SECONDS = 30.0  # between log lines of progress


@dataclass(frozen=True)
class Preparation:
    """What was asked for when a corpus is prepared.

    corpus: its name. data_dir: the folder of all corpora. folder: of this one's token files. tokenizer: a
    name or the path of a tokenizer.json. workers: processes, None for one per core. on_error: `fatal` stops
    at the first bad record or damaged file; `skip` leaves them out, and meta.json counts and names them.
    archive: of the source, if not in its usual place. val_fraction: of the documents to hold out, None for
    the corpus' own rule.
    """

    corpus: str
    data_dir: Path
    folder: Path
    tokenizer: str
    workers: int | None = None
    on_error: str = "fatal"
    archive: Path | None = None
    val_fraction: float | None = None

    def __post_init__(self) -> None:
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise UsageError(f"--val_fraction {self.val_fraction} must be between 0 and 1")


def refuse_fraction(corpus: str, fraction: float | None) -> None:
    """Raises UsageError if a fraction is given for a corpus whose validation tokens are fixed."""
    if fraction is not None:
        raise UsageError(f"--val_fraction {fraction}: {corpus} has a validation set of its own; leave it out")


def tokenise(
    source: Source,
    job: Preparation,
    about: dict[str, Any],
    *,
    column: str = "text",
    least: int | None = None,
) -> int:
    """Write the token files and meta.json of a source; returns the number of documents.

    While another process prepares the same folder, this one waits for its result, and resumes the work if
    that process is killed.

    Args:
        about: further content of meta.json.
        column: of the records, the one with the text.
        least: tokens to hold out at least, unless the job says how much; None for the rule of the released
            code, which also refuses a single document.

    Raises:
        UsageError: the job makes no sense, or another preparation is unfinished.
        Failure: the source or the disk fails; finished pieces are kept, and the same call resumes after them.
    """
    workers = cores() if job.workers is None else job.workers
    if workers < 1:
        raise UsageError(f"--workers {workers} must be at least 1")
    if job.on_error not in ON_ERROR:
        raise UsageError(f"--on_error {job.on_error}: choose from {', '.join(ON_ERROR)}")
    fraction = FRACTION if job.val_fraction is None else job.val_fraction
    if least is not None and job.val_fraction is not None:
        least = 0
    tokenizer = make_tokenizer(job.tokenizer)
    if tokenizer.end_of_text is None:
        raise UsageError(f"the tokeniser {job.tokenizer} has no token for the end of a text")
    folder = job.folder
    meta = {"tokenizer": tokenizer.to_meta(), "end_of_text": tokenizer.end_of_text, **about}
    meta["dtype"] = tokenizer.dtype.name
    if job.val_fraction is not None:
        meta["val_fraction"] = job.val_fraction
    identity = {"source": source.identity, "tokenizer": meta["tokenizer"], "fraction": fraction}
    try:
        journal = Journal(folder / "parts", identity, source.unchanged)
    except JournalRemoved:
        if (written := read_meta(folder)) is None:
            raise Failure(f"{folder / 'parts'} was deleted while another process worked there") from None
        return _document_count(written)
    if not journal.lines and (written := read_meta(folder)) is not None:
        journal.remove()  # another process finished after the caller had looked
        return _document_count(written)
    try:
        finished = [line for line in journal.lines if "piece" in line]
        if not any("pieces" in line for line in journal.lines):
            if finished:
                logger.info(f"resuming after {finished[-1]['piece']}, number {len(finished)}")
            progress = _Progress(source.size)
            try:
                pool = make_workers(workers, meta["tokenizer"], column)
                _write_parts(source, journal, finished, pool, _BLOCKS_AHEAD * workers, job.on_error, progress)
            finally:
                progress.close()
            journal.append({"pieces": len(finished)})
        require_both_splits(finished, folder, 2 if least is None else 1)
        if any(line["bad"] or "damaged" in line for line in finished):
            meta["skipped"] = _skipped(finished)
        entries = [line.get("state") for line in finished]
        if isinstance(source, LocalFiles) and all(entries):
            write_json(folder / RECORD, entries)
            if again := copies(entries):
                logger.warning(f"the documents of copies count twice, also in validation: {listed(again)}")
        assemble(journal, finished, folder, tokenizer, fraction, least, meta)
        journal.remove()
        return sum(line["documents"] for line in finished)
    except OSError as error:
        raise Failure(
            f"cannot write in {folder}: {error.strerror or error}; the same command resumes after the "
            "last finished file"
        ) from error
    finally:
        journal.close()


def _document_count(meta: dict[str, Any]) -> int:
    return sum(meta["documents"].values())


def _write_parts(
    source: Source,
    journal: Journal,
    finished: list[dict[str, Any]],
    pool: Executor,
    ahead: int,
    on_error: str,
    progress: "_Progress",
) -> None:
    """Write a part for each piece that is not finished, and add its journal line to `finished`."""
    part = None
    try:
        for piece, result in _in_order(source.pieces(finished), pool, ahead):
            part = part or Part(journal.folder, len(finished))
            if isinstance(result, EncodedBlock):
                bad = part.add(result)
                if bad and on_error == "fatal":
                    raise _refusal(f"{piece.name}, {bad[0]}")
                progress.update(source.read, result)
                continue
            if result.damage is not None:
                if on_error == "fatal":
                    raise _refusal(f"{piece.name}: {result.damage}")
                part.discard()  # all of it: which documents are kept does not depend on block sizes
                part = Part(journal.folder, len(finished))
            line = {"piece": piece.name, "split": piece.split, **part.finish(), "state": result.state}
            if result.damage is not None:
                line["damaged"] = str(result.damage)
            part = None  # before the journal names it: Ctrl-C may come between any two lines
            journal.append(line)
            finished.append(line)
    except BrokenProcessPool as error:
        raise Failure(
            "a worker process was killed, perhaps for lack of memory; the same command resumes after the "
            "last finished file, and prepare_data.py with fewer --workers needs less memory"
        ) from error
    finally:
        if part is not None:
            part.discard()
        pool.shutdown(cancel_futures=True)


class _End(NamedTuple):
    """The end of a piece. state: `Piece.state`. damage: why the piece was not read to its end."""

    state: Any
    damage: DamagedFile | None


def _in_order(pieces: Iterator[Piece], pool: Executor, ahead: int) -> Iterator[tuple[Piece, Any]]:
    """Each block's EncodedBlock; after a piece's last block its _End.

    ahead: blocks submitted before their turn.
    """
    waiting: deque[tuple[Piece, Any]] = deque()

    def next_result() -> tuple[Piece, Any]:
        piece, result = waiting.popleft()
        return piece, result.result() if isinstance(result, Future) else result

    for piece in pieces:
        damage = None
        try:
            for block in piece.blocks:
                waiting.append((piece, pool.submit(encode_task, block)))
                while len(waiting) > ahead:
                    yield next_result()
        except DamagedFile as error:
            damage = error
        waiting.append((piece, _End(piece.state(), damage)))
    while waiting:
        yield next_result()


def _refusal(what: str) -> Failure:
    return Failure(
        f"{what}; prepare_data.py --on_error skip leaves such records and files out, counted and named"
    )


def _skipped(finished: list[dict[str, Any]]) -> dict[str, Any]:
    """Entry of meta.json for what was left out; the first bad records of each file are named."""
    return {
        "records": sum(line["bad"] for line in finished),
        "files": [f"{line['piece']}: {line['damaged']}" for line in finished if "damaged" in line],
        "examples": [
            f"{line['piece']}, {example}" for line in finished for example in line["examples"]
        ][:MOST_EXAMPLES],
    }  # fmt: skip


class _Progress:
    """MB/s of text, tokens and time left: a bar on a terminal, log lines elsewhere.

    size: bytes of the source, None if unknown.
    """

    def __init__(self, size: int | None) -> None:
        self._size = size
        self._started = self._logged = time.perf_counter()
        self._first: int | None = None
        self._read = self._text = self._tokens = 0
        self._bar = tqdm(
            total=size, desc="tokenising", unit="B", unit_scale=True, disable=not sys.stderr.isatty()
        )

    def update(self, read: int, encoded: EncodedBlock) -> None:
        """read: bytes of the source so far, up to and including the block `encoded`."""
        tokens, text = encoded.sizes.sum(axis=0).tolist()
        if self._first is None:
            self._first = read  # what an earlier process read does not count towards the speed
        self._tokens += tokens
        self._text += text
        self._bar.set_postfix_str(f"{self._speed():.1f} MB/s of text, {self._tokens:,} tokens", refresh=False)
        self._bar.update(read - self._read)
        self._read = read
        if self._bar.disable and time.perf_counter() - self._logged > _LOG_SECONDS:
            self._logged = time.perf_counter()
            logger.info(self._line())

    def close(self) -> None:
        self._bar.close()
        if self._bar.disable and self._tokens:
            logger.info(self._line())

    def _speed(self) -> float:
        return self._text / 1e6 / (time.perf_counter() - self._started)

    def _line(self) -> str:
        parts = [f"{self._speed():.1f} MB/s of text", f"{self._tokens:,} tokens"]
        done = self._read - self._first
        if self._size and done:
            left = (time.perf_counter() - self._started) / done * (self._size - self._read)
            parts = [f"{self._read / self._size:.1%}", *parts, f"{duration(left)} left"]
        return "tokenising: " + ", ".join(parts)
