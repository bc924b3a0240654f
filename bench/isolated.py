"""A measurement in a process of its own, which is the only way to know the memory that it took.

The process is forked from a server that has imported torch and this code but has computed nothing: it is
there at once, and what it holds at its start is the same each time.
"""

import multiprocessing
import os
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from errors import Failure

# torch imports _dynamo when the first optimiser is made: 80 MiB that are not the step's.
PRELOADED = (
    "torch", "torch._dynamo", "models.language_model", "optim.optimizers", "distributed",
    "evaluation.perplexity",
)  # fmt: skip
MIB = 2**20


class Measured(NamedTuple):
    """result: what the function returned. memory_mib: the most memory that it took on top of the imports;
    on CUDA that of tensors on the device. import_mib: of the process before it began."""

    result: Any
    memory_mib: float
    import_mib: float


class Died(Failure):
    """The process ended without an answer, as one that took too much memory does."""


def apart(function: Callable[..., Any], *arguments: Any, threads: int | None = None) -> Measured:
    """Run `function`, which must be one that can be imported, with arguments that can be pickled.

    threads: that torch computes with; None: its default. Raises Failure with the sentence of a failure over
    there, and Died where the process was killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, function, arguments, threads))
    process.start()
    theirs.close()
    try:
        kind, answer = ours.recv()
    except EOFError:
        process.join()
        raise Died(f"{_name(function)} ended without an answer (exit code {process.exitcode})") from None
    finally:
        if process.is_alive() and sys.exc_info()[0] is KeyboardInterrupt:
            process.terminate()
        process.join()
    if kind == "failed":
        raise Failure(f"{_name(function)} failed: {answer}")
    return Measured(*answer)


def _answer(pipe: Any, function: Callable[..., Any], arguments: tuple, threads: int | None) -> None:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    before = resident_mib()
    try:
        result = function(*arguments)
    except Failure as error:
        pipe.send(("failed", str(error)))
    except Exception as error:
        traceback.print_exc()
        pipe.send(("failed", f"{type(error).__name__}: {error}"))
    else:
        if torch.cuda.is_initialized():
            memory = torch.cuda.max_memory_allocated() / MIB
        else:
            memory = peak_mib() - before
        pipe.send(("done", (result, memory, before)))
    pipe.close()


def _name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def resident_mib() -> float:
    """Memory of this process now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux: what it took at most so far, which at the start is the same
        return peak_mib()
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def peak_mib() -> float:
    """The most memory of this process so far (ru_maxrss counts KiB, on macOS bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024
