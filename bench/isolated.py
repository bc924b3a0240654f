"""A measurement in a process of its own, which is the only way to know the memory that it took.

The process is forked from a server that has imported torch and this code but has computed nothing: it is
there at once, and what it holds at its start is the same each time. It ends when we do.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from bench.memory import MIB, after_imports_mib, peak_mib
from bench.processes import GRACE_S
from errors import Failure

# torch imports _dynamo when the first optimiser is made: 80 MiB that are not the step's.
PRELOADED = (
    "torch", "torch._dynamo", "models.language_model", "optim.optimizers", "distributed",
    "optim.validation",
)  # fmt: skip
LIMIT_S = 3600.0  # far above the longest case, minutes: only what hangs takes so long
CPU_REFUSED = "can't allocate memory"  # in the message of torch's allocator, a RuntimeError


class Measured(NamedTuple):
    """result: what the function returned. memory_mib: the most memory that it took on top of the imports;
    on CUDA that of tensors on the device. import_mib: of the process before it began."""

    result: Any
    memory_mib: float
    import_mib: float


class Died(Failure):
    """The process ended without an answer."""


class DoesNotFit(Died):
    """There was not enough memory, or the process was killed, as one is that takes too much."""


def apart(
    function: Callable[..., Any], *arguments: Any, threads: int | None = None, limit_s: float = LIMIT_S
) -> Measured:
    """Run `function`, which must be one that can be imported, with arguments that can be pickled.

    threads: that torch computes with; None: its default. Raises Failure with the sentence of a failure over
    there or where it takes longer than limit_s, DoesNotFit, and Died where it ended otherwise.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, function, arguments, threads))
    process.start()
    theirs.close()
    try:
        if not ours.poll(limit_s):
            raise Failure(f"{_name(function)} took more than {limit_s:g} s")
        kind, answer = ours.recv()
    except EOFError:
        process.join(GRACE_S)
        code = process.exitcode
        kind = DoesNotFit if code == -signal.SIGKILL else Died
        raise kind(f"{_name(function)} ended without an answer (exit code {code})") from None
    else:
        process.join(GRACE_S)
    finally:
        ours.close()
        with suppress(ProcessLookupError, PermissionError):  # with what it may have started
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
    if kind == "done":
        return Measured(*answer)
    raise (DoesNotFit if kind == "memory" else Failure)(f"{_name(function)} failed: {answer}")


def _answer(pipe: Any, function: Callable[..., Any], arguments: tuple, threads: int | None) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to end, by closing the pipe
    threading.Thread(target=_end_with_parent, args=(pipe,), daemon=True).start()
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    before = after_imports_mib()
    try:
        result = function(*arguments)
    except Failure as error:
        pipe.send(("failed", str(error)))
    except Exception as error:
        short = isinstance(error, torch.OutOfMemoryError | MemoryError) or CPU_REFUSED in str(error)
        if not short:
            traceback.print_exc()
        said = str(error).partition("\n")[0]
        pipe.send(("memory" if short else "failed", f"{type(error).__name__}: {said}"))
    else:
        if torch.cuda.is_initialized():
            memory = torch.cuda.max_memory_allocated() / MIB
        else:
            memory = max(0.0, peak_mib() - before)
        pipe.send(("done", (result, memory, before)))


def _end_with_parent(pipe: Any) -> None:
    """The parent sends nothing: what there is to read is that its end was closed."""
    with suppress(OSError, EOFError):
        pipe.poll(None)
        os.killpg(0, signal.SIGKILL)


def _name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"
