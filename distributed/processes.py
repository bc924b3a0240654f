"""The process group of a run, and what its ranks agree on besides gradients: numbers, errors, when to stop.

Agreement goes over a gloo group on the CPU, even where gradients go over NCCL: small collectives among large
ones have hung there.
"""

import contextlib
import datetime
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from distributed.failure_watch import FailureWatch
from errors import Failure, UsageError, explained

logger = logging.getLogger(__name__)

SIGNALS = (  # they stop a training: of schedulers, a closed terminal, a limit of CPU time, Ctrl-C
    signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGXCPU, signal.SIGINT,
)  # fmt: skip
_TIME_LIMIT = 1000  # in place of a signal's number
_MINUTE = 60.0

# Parts of gloo's and NCCL's errors when a process has gone, or is late.
_LOST = ("Connection", "Timed out", "timed out", "Timeout", "timeout", "NCCL", "Broken pipe", "socket")
_DISK_TIMEOUT = datetime.timedelta(hours=6)
_CAUSE_SECONDS = 3.0  # within which the rank that failed first has reported it


class Processes:
    """This rank among all. With one process there is no group, and every collective is the identity.

    All ranks call `max`, `sum`, `mean`, `gather`, `broadcast` and `barrier` together.
    """

    def __init__(self, on_cuda: bool = False, timeout_minutes: float = 10.0) -> None:
        """Join the group of processes that torchrun started, if it did.

        Args:
            on_cuda: reduce gradients over NCCL, where there are GPUs.
            timeout_minutes: how long a rank waits for another before all give up.

        Raises Failure when the processes do not connect.
        """
        self.rank = environment_number("RANK", 0)
        self.size = environment_number("WORLD_SIZE", 1)
        self.is_main = self.rank == 0
        self.failure_watch: FailureWatch | None = None
        self._group = self._disk_group = self._checkpoint_group = None
        if self.size == 1:
            return
        timeout = datetime.timedelta(minutes=timeout_minutes)
        nccl = on_cuda and torch.cuda.is_available()
        # NCCL raises nothing: it kills the process. The failure watch comes first, and says why.
        group_timeout = 2 * timeout + datetime.timedelta(minutes=1) if nccl else timeout
        try:
            store, _, _ = next(dist.rendezvous("env://", self.rank, self.size, timeout=timeout))
            self.failure_watch = FailureWatch(store, self.rank, self.size, timeout_minutes)
            dist.init_process_group(
                "cuda:nccl,cpu:gloo" if nccl else "gloo", store=dist.PrefixStore("train", store),
                rank=self.rank, world_size=self.size, timeout=group_timeout,
            )  # fmt: skip
        except (ValueError, RuntimeError) as error:
            raise Failure(f"the {self.size} processes cannot connect to one another: {error}") from error
        self._group = dist.new_group(backend="gloo", timeout=timeout)
        # Disks may take longer than networks.
        self._disk_group = dist.new_group(backend="gloo", timeout=_DISK_TIMEOUT)
        self._checkpoint_group = dist.new_group(backend="gloo", timeout=_DISK_TIMEOUT)

    @property
    def checkpoint_group(self) -> dist.ProcessGroup | int | None:
        """The group of the threads that write checkpoints, and of nothing else; None for one process."""
        return self._checkpoint_group

    def max(self, value: int) -> int:
        """The largest value of all ranks."""
        return self._reduce(value, dist.ReduceOp.MAX)

    def sum(self, value: int) -> int:
        """The sum over all ranks."""
        return self._reduce(value, dist.ReduceOp.SUM)

    def _reduce(self, value: int, operation: dist.ReduceOp.RedOpType) -> int:
        if self.size == 1:
            return value
        if self.failure_watch is not None:
            self.failure_watch.heartbeat()
        number = torch.tensor([value])
        dist.all_reduce(number, operation, self._group)
        return int(number.item())

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean over ranks of a tensor on the device, which is overwritten."""
        if self.size > 1:
            dist.all_reduce(value)
            value = value / self.size
        return value

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank; plain data."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, self._group)
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on all ranks; plain data."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, 0, self._group)
        return values[0]

    def barrier(self) -> None:
        """Wait for all ranks, for hours if one of them waits for a disk."""
        if self.size > 1:
            dist.barrier(self._disk_group)

    def waiting(self) -> AbstractContextManager:
        """The context of a call that waits for other ranks and may never raise, as with NCCL."""
        return contextlib.nullcontext() if self.failure_watch is None else self.failure_watch.waiting()

    @contextlib.contextmanager
    def exit_together(self) -> Iterator[None]:
        """The context of a run's work: when a rank fails, all exit, and only the first error is printed.

        They exit at once, without cleaning up: a thread may wait in a collective for a process that has gone.
        """
        try:
            yield
        except BaseException as error:
            if self.size == 1:
                raise
            code = self._print_first(error)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        self.close()

    def _print_first(self, error: BaseException) -> int:
        """Print the error unless another rank has failed before; the exit code."""
        error = explained(error) or error
        message = f"{type(error).__name__}: {error}"
        lost = isinstance(error, RuntimeError) and any(part in str(error) for part in _LOST)
        if lost:
            if self.failure_watch.another_failed(_CAUSE_SECONDS):  # the cause, which that rank prints
                return 1
            error = self.failure_watch.lost(str(error).strip().splitlines()[-1])
        if not self.failure_watch.report_failure(message):
            return 1
        if isinstance(error, Failure):
            print(f"error: rank {self.rank}: {error}", file=sys.stderr)
            return error.exit_code
        if isinstance(error, KeyboardInterrupt):
            print(f"interrupted: {error}" if str(error) else "interrupted", file=sys.stderr)
            return 130
        if isinstance(error, SystemExit):
            return error.code if isinstance(error.code, int) else 1
        print(f"rank {self.rank}:", file=sys.stderr)
        traceback.print_exception(error)
        return 1

    def exit_only_after(self, busy: Callable[[], bool]) -> None:
        """When another rank fails, this process does not exit while `busy()`."""
        if self.failure_watch is not None:
            self.failure_watch.busy = busy

    def close(self) -> None:
        """Leave the group. After a failure, others may have left before."""
        if self.failure_watch is not None:
            self.failure_watch.close()
            self.failure_watch = None
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()


class Stop:
    """A context in which any of SIGNALS stops the run, on all ranks after the same step.

    A SIGHUP that is ignored, as under nohup, stays ignored.

    max_steps: optimiser steps of this process; `first_step` is set when training begins. reason: why the run
    stops; None while it does not.
    """

    def __init__(
        self, processes: Processes, max_minutes: float | None, began: float, max_steps: int | None = None
    ) -> None:
        """began: the time.monotonic() from which max_minutes count. None: no limit."""
        self.first_step = 0
        self.reason: str | None = None
        self._processes, self._max_steps = processes, max_steps
        self._end = None if max_minutes is None else began + max_minutes * _MINUTE
        self._signal = 0  # the latest
        self._failure: str | None = None
        self._handlers: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Stop":
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def fail(self, sentence: str) -> None:
        """Let `requested` raise a Failure; another thread may call this."""
        self._failure = sentence

    def requested(self, step: int | None = None) -> bool:
        """Whether the run stops, at `step` or now. All ranks ask at the same places.

        Raises Failure after `fail`.
        """
        if self._failure is not None:
            raise Failure(self._failure)
        if self.reason is None and step is not None and step - self.first_step == self._max_steps:
            self.reason = f"--max_steps_this_run {self._max_steps}"
        if self.reason is None:
            late = self._end is not None and time.monotonic() > self._end
            number = self._processes.max(self._signal or (_TIME_LIMIT if late else 0))
            if number:
                self.reason = "time limit" if number == _TIME_LIMIT else signal.Signals(number).name
        return self.reason is not None

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            logger.info("stopping after this micro-batch; Ctrl-C again ends at once, and saves nothing")
        self._signal = number


def local_rank() -> int:
    """The rank of this process among those of its machine."""
    return environment_number("LOCAL_RANK", 0)


def environment_number(name: str, default: int) -> int:
    """A number that torchrun puts into the environment; an empty one is one that is not set.

    Raises UsageError for anything else that is no number.
    """
    text = os.environ.get(name) or str(default)
    if not text.isdecimal():
        raise UsageError(f"the environment has {name}={text!r}, which is no number; unset it")
    return int(text)


def require_single_process() -> None:
    """Raises UsageError when torchrun started several processes."""
    size = environment_number("WORLD_SIZE", 1)
    if size != 1:
        raise UsageError(
            f"torchrun started {size} processes, but this script runs in one: run it with python"
        )
