"""Asynchronous checkpointing: a thread writes, and training only waits for a copy in host memory."""

import logging
import time
from collections.abc import Callable, Sequence
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
_SLAB, _ALIGNMENT = 2**28, 512  # bytes


class HostCopy:
    """Copies nested dicts of tensors into reused host memory, as fresh memory costs more than the copy.

    Tied weights stay tied in the copy, which is valid until the next call.
    """

    def __init__(self, on_cuda: bool) -> None:
        self._on_cuda = on_cuda
        self._slabs: list[Tensor] = []

    def __call__(self, content: dict[str, Any]) -> dict[str, Any]:
        tensors: dict[tuple, Tensor] = {}
        _map_tensors(content, lambda tensor: tensors.setdefault(_identity(tensor), tensor))
        slabs, places = layout([tensor.nbytes for tensor in tensors.values()])
        if [len(slab) for slab in self._slabs] != slabs:
            self._slabs.clear()  # before others are allocated
            self._slabs += [torch.empty(n, dtype=torch.uint8, pin_memory=self._on_cuda) for n in slabs]
        copies = {
            key: _view(self._slabs[slab], offset, tensor).copy_(tensor, non_blocking=self._on_cuda)
            for (key, tensor), (slab, offset) in zip(tensors.items(), places, strict=True)
        }
        if self._on_cuda:
            torch.cuda.synchronize()
        return _map_tensors(content, lambda tensor: copies[_identity(tensor)])


def layout(sizes: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """Where tensors lie in a few slabs of memory: the slabs' sizes, and (slab, offset) of each tensor.

    torch rounds pinned memory up to powers of two, so slabs have such sizes; a buffer for each tensor, or one
    for all, would take up to twice the memory.

    sizes: of the tensors; all in bytes.
    """
    padded = [-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes]
    slabs: list[int] = []
    used: list[int] = []
    places: dict[int, tuple[int, int]] = {}
    left = sum(padded)
    for index in sorted(range(len(sizes)), key=padded.__getitem__, reverse=True):
        size = padded[index]
        slab = next((n for n, most in enumerate(slabs) if used[n] + size <= most), len(slabs))
        if slab == len(slabs):
            slabs.append(max(_power_of_two(size), min(_power_of_two(left), _SLAB)))
            used.append(0)
        places[index] = slab, used[slab]
        used[slab] += size
        left -= size
    return slabs, [places[index] for index in range(len(sizes))]


def _power_of_two(size: int) -> int:
    """The smallest that is no less than `size`."""
    return 1 << max(size - 1, 0).bit_length()


def _identity(tensor: Tensor) -> tuple:
    """Equal for tensors that are the same values in the same memory."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _view(slab: Tensor, offset: int, like: Tensor) -> Tensor:
    """A tensor in a slab, with the shape and strides of a clone of `like`. It has a storage of its own, as
    torch.save writes whole storages."""
    if not like.nbytes:
        return torch.empty_like(like, device="cpu")
    flat = torch.frombuffer(slab.numpy(), dtype=like.dtype, count=like.numel(), offset=offset)
    return flat.as_strided(like.shape, torch.empty_like(like, device="meta").stride())


def _map_tensors(content: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Nested dicts with their tensors changed."""
    if isinstance(content, dict):
        return {key: _map_tensors(part, change) for key, part in content.items()}
    return change(content) if isinstance(content, Tensor) else content


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
