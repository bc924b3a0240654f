"""A measurement in a process of its own, which is how its memory is known.

The process is forked from a server that has imported torch and this code but has computed nothing: it starts
at once, and its memory at the start is always the same. It ends when its parent does.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from bench import memory
from errors import Failure

# torch imports _dynamo when the first optimiser is made: 80 MiB that are not the step's.
PRELOADED = ["torch", "torch._dynamo", "bench.works", "models.language_model"]
LIMIT_S = 3600.0  # far above the longest measurement, minutes: only a process that hangs takes so long
GRACE_S = 10.0  # that a process has to end its own children
CPU_REFUSED = "can't allocate memory"  # in the message of torch's allocator, a RuntimeError


class Measured(NamedTuple):
    """result: what the function returned. memory_mib: its peak memory on top of the imports; on CUDA that of
    tensors on the device."""

    result: Any
    memory_mib: float


class DoesNotFit(Failure):
    """There was not enough memory, or the process was killed, as the kernel does when memory runs out."""


def in_own_process(
    function: Callable[..., Any], *arguments: Any, threads: int | None = None, limit_s: float = LIMIT_S
) -> Measured:
    """Call an importable function with arguments that can be pickled, in a process of its own.

    threads: torch's; None: its default. Raises Failure with the message of a failure there, or after limit_s
    seconds, and DoesNotFit.
    """
    name = f"{function.__module__}.{function.__qualname__}"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, function, arguments, threads))
    process.start()
    theirs.close()
    try:
        if not ours.poll(limit_s):
            raise Failure(f"{name} took more than {limit_s:g} s")
        kind, *answer = ours.recv()
        process.join(GRACE_S)
    except EOFError:
        process.join(GRACE_S)
        failure = DoesNotFit if process.exitcode == -signal.SIGKILL else Failure
        raise failure(f"{name} ended without an answer (exit code {process.exitcode})") from None
    finally:
        ours.close()
        with suppress(ProcessLookupError, PermissionError):  # with the processes that it started
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
    if kind is not None:
        raise kind(f"{name} failed: {answer[0]}")
    return Measured(*answer)


def _answer(pipe: Any, function: Callable[..., Any], arguments: tuple, threads: int | None) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when this ends, by closing the pipe
    threading.Thread(target=_end_with_parent, args=(pipe,), daemon=True).start()
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    before = memory.after_imports_mib()
    try:
        result = function(*arguments)
    except Failure as error:
        pipe.send((Failure, str(error)))
    except Exception as error:
        too_much = isinstance(error, torch.OutOfMemoryError | MemoryError) or CPU_REFUSED in str(error)
        if not too_much:
            traceback.print_exc()
        sentence = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        pipe.send((DoesNotFit if too_much else Failure, sentence))
    else:
        on_device = torch.cuda.is_initialized()
        taken = torch.cuda.max_memory_allocated() / memory.MIB if on_device else memory.peak_mib() - before
        pipe.send((None, result, round(max(0.0, taken), 2)))


def _end_with_parent(pipe: Any) -> None:
    """The parent sends nothing: the pipe becomes readable only when its other end is closed."""
    with suppress(OSError, EOFError):
        pipe.poll(None)
        os.killpg(0, signal.SIGKILL)
