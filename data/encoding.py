"""What a worker process does: a block of records becomes token ids."""

import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from data.records import LONGEST_RECORD, Block
from data.tokenizers import Tokenizer, tokenizer_from_meta
from errors import UsageError


class BadRecord(NamedTuple):
    """index: of the record within its block. reason: what is wrong with it."""

    index: int
    reason: str


class Encoded(NamedTuple):
    """tokens (n,): documents one after the other, an end-of-text behind each. sizes (documents, 2), uint32:
    tokens and UTF-8 bytes of each. records: how many the block held, good or bad. bad: those without a text.
    """

    tokens: np.ndarray
    sizes: np.ndarray
    records: int
    bad: list[BadRecord]


def encode_block(block: Block, tokenizer: Tokenizer, column: str) -> Encoded:
    """The documents of a block; what is no document is told, and left to the caller."""
    arrays, sizes, bad, records = [], [], [], 0
    end = np.array([tokenizer.end_of_text], dtype=tokenizer.dtype)
    for index, text in enumerate(_texts(block, column)):
        records += 1
        if text is None:  # an empty line
            continue
        if isinstance(text, BadRecord):
            bad.append(text._replace(index=index))
            continue
        try:
            size = len(text.encode("utf-8"))
        except UnicodeEncodeError:  # half a surrogate pair, from a \ud800 in JSON: the rest is good text
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            size = len(text.encode("utf-8"))
        try:
            tokens = tokenizer.encode(text)
        except UsageError as error:
            bad.append(BadRecord(index, str(error)))
            continue
        arrays += [tokens, end]
        sizes.append((len(tokens) + 1, size))
    joined = np.concatenate(arrays) if arrays else np.empty(0, dtype=tokenizer.dtype)
    return Encoded(joined, np.array(sizes, dtype=np.uint32).reshape(-1, 2), records, bad)


def _texts(block: Block, column: str) -> Iterable[str | BadRecord | None]:
    if block.too_long:
        yield BadRecord(0, f"longer than {LONGEST_RECORD:,} bytes")
    for line in block.lines.split(b"\n")[: -1 if block.lines.endswith(b"\n") else None]:
        yield _text_of_line(line, column)
    for text in block.texts:
        yield text if isinstance(text, str) else BadRecord(0, f'its "{column}" is {type(text).__name__}')


def _text_of_line(line: bytes, column: str) -> str | BadRecord | None:
    if not line.strip():
        return None
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRecord(0, f"not UTF-8 (byte {error.start:,} of the line)")
    except (ValueError, RecursionError) as error:
        return BadRecord(0, f"not JSON ({' '.join(str(error).split())})")
    if not isinstance(record, dict) or column not in record:
        return BadRecord(0, f'no "{column}" in it')
    text = record[column]
    return text if isinstance(text, str) else BadRecord(0, f'its "{column}" is {type(text).__name__}')


def make_workers(count: int, tokenizer: dict[str, Any], column: str) -> Executor:
    """What runs `work`: that many processes, or, for one, this process."""
    if count == 1:
        start_worker(tokenizer, column)
        return InThisProcess()
    spawn = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks
    return _Workers(count, spawn, initializer=start_worker, initargs=(tokenizer, column))


class _Workers(ProcessPoolExecutor):
    """Processes that Ctrl-C does not reach, though it goes to all of a terminal: their parent decides.

    They are started as tasks come, and a signal that is blocked then stays so in them from their first
    moment.
    """

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(function, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class InThisProcess(Executor):
    """An executor whose tasks are done when submit returns: nothing is sent to and fro."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


_worker: dict[str, Any] = {}  # of this process: what start_worker has put together


def start_worker(tokenizer: dict[str, Any], column: str) -> None:
    """Put together, once in each process, what its tasks need; and end with the process that began it."""
    _worker["tokenizer"], _worker["column"] = tokenizer_from_meta(tokenizer), column
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    # A parent that is killed cannot tell its workers; they would wait for work, and hold memory, for ever.
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def work(block: Block) -> Encoded:
    """A task of a worker."""
    return encode_block(block, _worker["tokenizer"], _worker["column"])
