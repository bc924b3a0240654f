"""Checkpoints are written by a thread: training waits for a copy in host memory, and for nothing else."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from errors import Failure
from optim import checkpoint, run_folder

logger = logging.getLogger(__name__)

_LONG = 5.0  # seconds of waiting that are worth a line


class HostCopy:
    """Copies nested dicts of tensors into buffers that are made once: fresh memory costs more than the copy.

    Tensors that are one (tied weights) are one in the copy. Valid until the next call.
    """

    def __init__(self, on_cuda: bool) -> None:
        self._on_cuda = on_cuda
        self._buffers: dict[tuple, Tensor] = {}

    def __call__(self, content: dict[str, Any]) -> dict[str, Any]:
        done: dict[tuple, Tensor] = {}

        def copy(value: Any, path: tuple) -> Any:
            if isinstance(value, dict):
                return {key: copy(part, (*path, key)) for key, part in value.items()}
            if not isinstance(value, Tensor):
                return value
            place = (value.data_ptr(), value.shape, value.stride(), value.dtype)
            if place not in done:
                done[place] = self._buffer(path, value).copy_(value, non_blocking=self._on_cuda)
            return done[place]

        copied = copy(content, ())
        if self._on_cuda:
            torch.cuda.synchronize()
        return copied

    def _buffer(self, path: tuple, like: Tensor) -> Tensor:
        known = self._buffers.get(path)
        if known is None or known.shape != like.shape or known.dtype != like.dtype:
            pinned = self._on_cuda and like.is_cuda
            self._buffers[path] = torch.empty_like(like, device="cpu", pin_memory=pinned)
        return self._buffers[path]


def _parts_on_host(on_cuda: bool) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The same for tensors that are parts of ones in several processes, which torch knows how to copy."""
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    options = StagingOptions(
        use_pinned_memory=on_cuda,
        use_shared_memory=False,
        use_async_staging=False,
        use_non_blocking_copy=on_cuda,
    )
    return DefaultStager(options).stage


class Saver:
    """Writes the checkpoints of a run, one at a time.

    One that cannot be written is told of, and harms none that is there; training goes on. sharded: all
    processes write their parts of a folder; else one process writes one file.
    """

    def __init__(
        self,
        folder: Path,
        *,
        sharded: bool,
        group: dist.ProcessGroup | None,
        staging: Path | None,
        keep_last: int | None,
        keep_every: int | None,
        on_cuda: bool,
    ) -> None:
        """staging: see `checkpoint_file.write`. keep_last, keep_every: which to keep; None: all."""
        self._folder, self._sharded, self._group = folder, sharded, group
        self._staging, self._keep = staging, (keep_last, keep_every)
        self._stage = _parts_on_host(on_cuda) if sharded else HostCopy(on_cuda)
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._job: Future | None = None

    def save(self, content: dict[str, Any], step: int, final: bool = False) -> None:
        """Begin to write `content`, of `step`. Waits for the one before, if that is still being written."""
        started = time.perf_counter()
        self.wait()
        waited = time.perf_counter() - started
        if waited > _LONG:
            logger.warning(f"training waited {waited:.0f} s for the checkpoint before to be written")
        suffix = run_folder.FOLDER if self._sharded else run_folder.FILE
        path = self._folder / run_folder.name_of(None if final else step, suffix)
        self._job = self._thread.submit(self._write, path, self._stage(content))

    def wait(self, must: bool = False) -> None:
        """Until what was begun is on disk. Where it failed: a warning, or, if it must, Failure."""
        if self._job is None:
            return
        try:
            self._job.result()
        except Failure as error:
            if must:
                raise
            logger.warning(f"{error}; training goes on, and the next checkpoint is tried in its turn")
        finally:
            self._job = None

    def busy(self) -> bool:
        """Whether something is being written."""
        return self._job is not None and not self._job.done()

    def close(self) -> None:
        """What is still being written goes on, to the end of the process."""
        self._thread.shutdown(wait=False)

    def _write(self, path: Path, content: dict[str, Any]) -> None:
        if not self._written_by_way_of_staging(path, content):
            self._write_to(path, content, None)
        keep_last, keep_every = self._keep
        if keep_last is not None and not run_folder.is_final(path) and self._is_first():
            checkpoint.keep_some(path, keep_last, keep_every)

    def _written_by_way_of_staging(self, path: Path, content: dict[str, Any]) -> bool:
        """Not where the disk of a machine is full, or has gone: then it is written straight to its place."""
        if self._staging is None:
            return False
        try:
            self._write_to(path, content, self._staging)
        except Failure:
            return False
        return True

    def _write_to(self, path: Path, content: dict[str, Any], staging: Path | None) -> None:
        checkpoint.write(path, content, staging, self._group)

    def _is_first(self) -> bool:
        return self._group is None or dist.get_rank(self._group) == 0
