"""Asynchronous checkpointing: a thread writes, and training only waits for a copy in host memory."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from errors import Failure
from optim import checkpoint

logger = logging.getLogger(__name__)

_LONG_SECONDS = 5.0  # a longer wait for the previous checkpoint is logged


class HostCopy:
    """Copies nested dicts of tensors into reused host buffers, as fresh memory costs more than the copy.

    Tied weights stay tied in the copy, which is valid until the next call.
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


def _shards_on_host(on_cuda: bool) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The same for sharded tensors, by torch's own stager."""
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    options = StagingOptions(
        use_pinned_memory=on_cuda,
        use_shared_memory=False,
        use_async_staging=False,
        use_non_blocking_copy=on_cuda,
    )
    stager = DefaultStager(options)
    return lambda content: cast(dict[str, Any], stager.stage(content))


class Saver:
    """Writes the checkpoints of a run, one at a time.

    If one cannot be written, a warning is logged, earlier checkpoints stay, and training continues.
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
        """Args:
        sharded: all ranks of `group` write their shards to a folder; otherwise this rank writes a file.
        staging: a folder on a local disk, see `checkpoint_file.write`.
        keep_last, keep_every: which checkpoints stay, see `checkpoint.remove_old`; None: all.
        """
        self._folder, self._sharded, self._group = folder, sharded, group
        self._staging, self._keep = staging, (keep_last, keep_every)
        self._stage = _shards_on_host(on_cuda) if sharded else HostCopy(on_cuda)
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._job: Future | None = None

    def save(self, content: dict[str, Any], step: int, final: bool = False) -> None:
        """Start writing `content`; waits for the previous checkpoint if that is still being written."""
        started = time.perf_counter()
        self.wait()
        waited = time.perf_counter() - started
        if waited > _LONG_SECONDS:
            logger.warning(f"training waited {waited:.0f} s for the previous checkpoint to be written")
        suffix = checkpoint.FOLDER if self._sharded else checkpoint.FILE
        path = self._folder / checkpoint.name_of(None if final else step, suffix)
        self._job = self._thread.submit(self._write, path, self._stage(content))

    def wait(self, must: bool = False) -> None:
        """Wait for the checkpoint under way. If it failed: a warning, or with `must` a Failure."""
        if self._job is None:
            return
        try:
            self._job.result()
        except Failure as error:
            if must:
                raise
            logger.warning(f"{error}; training continues, and will try the next checkpoint")
        finally:
            self._job = None

    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._job is not None and not self._job.done()

    def close(self) -> None:
        """Take no more checkpoints; one under way is still completed."""
        self._thread.shutdown(wait=False)

    def _write(self, path: Path, content: dict[str, Any]) -> None:
        if not self._write_via_staging(path, content):
            self._write_to(path, content, None)
        keep_last, keep_every = self._keep
        if keep_last is not None and not checkpoint.is_final(path) and self._is_first():
            checkpoint.remove_old(path, keep_last, keep_every)

    def _write_via_staging(self, path: Path, content: dict[str, Any]) -> bool:
        """Whether it worked. If not (the local disk is full, ...), the caller writes without staging."""
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
