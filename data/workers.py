"""Worker processes that encode blocks of records into token ids."""

import codecs
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

from data.sources import LONGEST_RECORD, Block, utf16_hint
from data.tokenizers import Tokenizer, tokenizer_from_meta
from errors import UsageError


class BadRecord(NamedTuple):
    """A record without a usable text. index: within its block."""

    index: int
    reason: str


class EncodedBlock(NamedTuple):
    """The token ids of a block's documents.

    tokens (n,): the documents, each followed by an end-of-text token. sizes (documents, 2), uint32: tokens
    and UTF-8 bytes of each. records: in the block, good and bad.
    """

    tokens: np.ndarray
    sizes: np.ndarray
    records: int
    bad: list[BadRecord]


def encode_block(block: Block, tokenizer: Tokenizer, column: str) -> EncodedBlock:
    """Encode the documents of a block; bad records are returned for the caller to judge."""
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
        except UnicodeEncodeError:  # a lone surrogate, from \ud800 in JSON; the rest is valid text
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
    return EncodedBlock(joined, np.array(sizes, dtype=np.uint32).reshape(-1, 2), records, bad)


def _texts(block: Block, column: str) -> Iterable[str | BadRecord | None]:
    if block.too_long:
        yield BadRecord(0, f"longer than {LONGEST_RECORD:,} bytes")
    if block.lines:
        for line in block.lines.removesuffix(b"\n").split(b"\n"):
            yield _text_of_line(line, column)
    for text in block.texts:
        yield text if isinstance(text, str) else BadRecord(0, f'its "{column}" is {type(text).__name__}')


def _text_of_line(line: bytes, column: str) -> str | BadRecord | None:
    line = line.removeprefix(codecs.BOM_UTF8)  # of each line: files with a mark may have been joined
    if not line.strip():
        return None
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRecord(0, f"not UTF-8 (byte {error.start:,} of the line){utf16_hint(error)}")
    except (ValueError, RecursionError) as error:
        return BadRecord(0, f"not JSON ({' '.join(str(error).split())})")
    if not isinstance(record, dict) or column not in record:
        return BadRecord(0, f'no "{column}" in it')
    text = record[column]
    return text if isinstance(text, str) else BadRecord(0, f'its "{column}" is {type(text).__name__}')


def make_workers(count: int, tokenizer: dict[str, Any], column: str) -> Executor:
    """An executor for `encode_task`: `count` processes, or this process if `count` is 1.

    tokenizer: its entry in meta.json. column: of the records, the one with the text.
    """
    if count == 1:
        init_worker(tokenizer, column)
        return SerialExecutor()
    spawn = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks
    return _WorkerPool(count, spawn, initializer=init_worker, initargs=(tokenizer, column))


class _WorkerPool(ProcessPoolExecutor):
    """Processes that ignore Ctrl-C, which a terminal sends to all: only their parent reacts to it.

    They are started by `submit`; a signal that is blocked at that moment stays blocked in them.
    """

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(function, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class SerialExecutor(Executor):
    """An executor that runs each task within `submit`: nothing is pickled."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


_worker: dict[str, Any] = {}  # of this process, set by init_worker


def init_worker(tokenizer: dict[str, Any], column: str) -> None:
    """Make the tokeniser, once per process; a worker process exits when its parent does."""
    _worker["tokenizer"], _worker["column"] = tokenizer_from_meta(tokenizer), column
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_with, args=(parent.sentinel,), daemon=True).start()


def _exit_with(sentinel: int) -> None:
    # A killed parent cannot stop its workers: they would wait for tasks, and hold memory, for ever.
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def encode_task(block: Block) -> EncodedBlock:
    """Encode a block with this process' tokeniser."""
    return encode_block(block, _worker["tokenizer"], _worker["column"])
