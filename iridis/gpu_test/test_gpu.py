"""Check a machine: `torchrun --standalone --nproc_per_node <GPUs> iridis/gpu_test/test_gpu.py`.

Driver, memory, speed and correctness of a bf16 matrix product and of an all-reduce over all GPUs (NCCL), and
the speed of disks. Exit code 1 with the failed part if something is wrong. `--device cpu` runs the same tests
on CPUs (gloo). In a container, on one GPU: `python3 iridis/gpu_test/test_gpu.py`.
"""

import argparse
import datetime
import json
import os
import platform
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import torch.distributed as dist

from errors import Failure, UsageError, run_script
from files import write_json

MIB, GIB = 2**20, 2**30
SIZES = {"cuda": 8192, "cpu": 1024}  # of the matrices
REDUCED = {"cuda": 256 * MIB, "cpu": 16 * MIB}  # bytes that are summed over all processes
REPETITIONS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--disk", type=Path, action="append", default=[], help="a folder on the disk to test")
    parser.add_argument("--disk_mib", type=int, default=1024, help="MiB to write and read (default: 1024)")
    parser.add_argument("--output", type=Path, help="a .json file for the results")
    args = parser.parse_args()
    if args.disk_mib < 1:
        raise UsageError(f"--disk_mib {args.disk_mib} must be at least 1")
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = _device(args.device)
    found = {"host": platform.node(), "torch": str(torch.__version__), "processes": size}
    found |= _about(device)
    _say(rank, f"{found['host']}: {size} x {found['device']}, torch {found['torch']}")
    found["bf16_teraflops"] = round(product(device) / 1e12, 3)
    _say(rank, f"bf16 product: {found['bf16_teraflops']} TFLOP/s, correct")
    if size > 1:
        found["all_reduce_gib_per_second"] = round(all_reduce(device, rank, size) / GIB, 3)
        _say(rank, f"all-reduce over {size}: {found['all_reduce_gib_per_second']} GiB/s, correct")
    if rank == 0:
        found["disks"] = {}
        for folder in args.disk:
            write, read = disk(folder, args.disk_mib)
            found["disks"][str(folder)] = {"write_mib_per_second": write, "read_mib_per_second": read}
            print(f"{folder}: writes {write:,} MiB/s, reads {read:,} MiB/s", flush=True)
        if args.output:
            write_json(args.output, found)
        print(json.dumps(found) if not args.output else f"written: {args.output}", flush=True)
    _say(rank, "all is well")


def _device(kind: str) -> torch.device:
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise Failure(
            "torch sees no GPU here: look at nvidia-smi and at --gres; --device cpu tests without one"
        )
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise Failure(f"torch sees {torch.cuda.device_count()} GPUs, and this is process {local}, from 0 on")
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


def _about(device: torch.device) -> dict[str, object]:
    if device.type == "cpu":
        return {"device": f"CPU ({torch.get_num_threads()} threads)"}
    free, total = torch.cuda.mem_get_info(device)
    return {
        "device": torch.cuda.get_device_name(device),
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "memory_gib": round(total / GIB, 2),
        "memory_free_gib": round(free / GIB, 2),
    }


def product(device: torch.device) -> float:
    """FLOP/s of a bf16 matrix product. Raises Failure if its result differs from float64's."""
    size = SIZES[device.type]
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(size, size, generator=generator).to(device, torch.bfloat16) for _ in range(2))
    result = one @ other
    exact = one[:64].double() @ other[:, :64].double()
    error = ((result[:64, :64].double() - exact).norm() / exact.norm()).item()
    if not error < 2e-2:  # 8 bits of mantissa; `not <` also catches NaN
        raise Failure(f"the bf16 product is off by {error:.2g} of its size on {platform.node()}: a bad GPU?")
    _wait(device)
    began = time.perf_counter()
    for _ in range(REPETITIONS):
        one @ other
    _wait(device)
    return 2 * size**3 * REPETITIONS / (time.perf_counter() - began)


def all_reduce(device: torch.device, rank: int, size: int) -> float:
    """Bytes per second of an all-reduce over all processes. Raises Failure if the sum is wrong."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(minutes=2))
    tensor = torch.full((REDUCED[device.type] // 4,), float(rank + 1), device=device)
    dist.all_reduce(tensor)
    if not bool((tensor == size * (size + 1) / 2).all()):
        raise Failure(f"the sum over {size} processes is wrong on {platform.node()} ({backend})")
    _wait(device)
    began = time.perf_counter()
    for _ in range(REPETITIONS):
        dist.all_reduce(tensor)
    _wait(device)
    seconds = time.perf_counter() - began
    dist.destroy_process_group()  # now, so that a slow disk does not look like a broken network
    return REDUCED[device.type] * REPETITIONS / seconds


def disk(folder: Path, size_mib: int) -> tuple[int, int]:
    """MiB/s of writing a file with fsync, and of reading it (perhaps from memory)."""
    path = folder / f"gpu_test.{platform.node()}.{os.getpid()}"
    block = os.urandom(MIB)
    try:
        began = time.perf_counter()
        with open(path, "wb") as file:
            for _ in range(size_mib):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            # Drop the page cache, to read from the disk.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        written = time.perf_counter()
        with open(path, "rb", buffering=0) as file:
            while file.read(MIB):
                pass
        done = time.perf_counter()
    except OSError as error:
        raise Failure(f"cannot write {size_mib} MiB to {folder}: {error.strerror}") from error
    finally:
        path.unlink(missing_ok=True)
    return round(size_mib / (written - began)), round(size_mib / (done - written))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _say(rank: int, text: str) -> None:
    if rank == 0:
        print(text, flush=True)


if __name__ == "__main__":
    run_script(main)
