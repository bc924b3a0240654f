"""Items about what runs on the GPU: the machine, kernels of attention, waits, times that must not vary."""

import os
import platform
import statistics
import subprocess
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.floor import array_copy, matrix_product
from bench.gpu_gate.rows import Row, Skipped, row
from bench.gpu_gate.training import Training, size_of
from bench.plan import Plan
from bench.results import ROOT
from bench.works import seconds_of
from distributed import choose_device
from distributed.device import ALLOCATOR_SETTINGS
from hardware import peak_bf16_flops

ATTENTION = "scaled_dot_product"  # in the names of operations; and in those of kernels:
ATTENTION_KERNELS = ("flash", "fmha", "attention", "sdpa", "attn")
LAUNCHES = (
    "cudaLaunchKernel",
    "cudaLaunchKernelExC",
    "cuLaunchKernel",
    "cuLaunchKernelEx",
    "cudaGraphLaunch",
)
WAITING = ("stick_breaking",)  # models that ask the GPU which tokens are left
MEANT = {  # by `distributed.device`, with the flags' defaults
    "float32_products": "high", "deterministic": True, "only_warns": False, "cudnn_attention": False,
    "allocator": "expandable_segments:True",
}  # fmt: skip
COPIED = 2**27  # elements of 4 bytes
WARM_UP, TIMED = 4, 16  # steps


def machine(plan: Plan) -> Iterator[Row]:
    """Card, versions, the settings of a training, and rates; a product is compared with float64's."""
    device = choose_device(plan.device)
    name = None
    if plan.cuda:
        name, properties = torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device)
        yield row(
            "card", gpu=name, memory_gib=properties.total_memory / 2**30, number=torch.cuda.device_count(),
            capability=".".join(map(str, torch.cuda.get_device_capability(device))), driver=_driver(),
        )  # fmt: skip
    yield row(
        "versions", python=platform.python_version(), torch=str(torch.__version__), cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(), nccl=_nccl(plan), triton=_version("triton"),
    )  # fmt: skip
    settings = {
        "float32_products": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "only_warns": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn_attention": torch.backends.cuda.cudnn_sdp_enabled(),
        "allocator": os.environ.get(ALLOCATOR_SETTINGS[0]),
    }
    yield row("settings", settings == MEANT if plan.cuda else None, **settings)
    side, elements = plan.pick(8192, 4096, 64), plan.pick(COPIED, COPIED, 2**12)
    product: Any = matrix_product((side, side, side), str(device), "bfloat16")
    a, b = product.args
    exact = a[:64].double() @ b[:, :64].double()
    error = ((product()[:64, :64].double() - exact).norm() / exact.norm()).item()
    rate = 2 * side**3 / seconds_of(product, plan.pick(0.5, 0.3, 0.001))
    peak = peak_bf16_flops(name) if name else None
    of_peak = {"of_peak": rate / peak} if peak else {}
    yield row("bfloat16 product", error < 2e-2, tflops=rate / 1e12, **of_peak, error=error)
    copied = 8 * elements / seconds_of(array_copy(elements, str(device)), plan.pick(0.5, 0.3, 0.001))
    yield row("copies of memory", gb_per_s=copied / 1e9)


def profiled(work: Callable[[], object], cuda: bool) -> list[Any]:
    """The profiler's events of a work: operations and calls of the host, and kernels of the GPU."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as found:
        work()
        if cuda:
            torch.cuda.synchronize()
    return list(found.events())


def count_launches(events: list[Any]) -> dict[str, int]:
    """Kernels (with copies) that the GPU ran, and calls of the host that launched them or a graph of them."""
    kernels = sum(event.device_type == DeviceType.CUDA for event in events)
    return {"kernels": kernels, "launches": sum(event.name in LAUNCHES for event in events)}


def kernels(plan: Plan) -> Iterator[Row]:
    """The operations of attention that a micro-batch of each model calls, and their kernels.

    On a GPU each model must use a fused kernel, and none of cuDNN's: it plans anew for each shape.
    """
    size = size_of(plan)
    for model in plan.models:
        training = Training(model, size, plan.device)
        training.micro_batch()
        events = profiled(training.micro_batch, plan.cuda)
        host = Counter(event.name for event in events if event.device_type == DeviceType.CPU)
        device = Counter(event.name for event in events if event.device_type == DeviceType.CUDA)
        called = {name.removeprefix("aten::"): n for name, n in host.items() if ATTENTION in name}
        used = sorted(
            {name[:60] for name in device if any(part in name.lower() for part in ATTENTION_KERNELS)}
        )
        by_cudnn = [name for name in (*device, *called) if "cudnn" in name.lower() and "sdpa" in name.lower()]
        by_cudnn += [name for name in called if "cudnn" in name]
        slow = [name for name in called if name.endswith("attention_math")]
        # FlexAttention and our own kernels are no operations of torch's, but their kernels have names.
        ok = bool(used) and not by_cudnn and not slow if plan.cuda and device else None
        counts = count_launches(events)
        yield row(
            model, ok, operations=", ".join(f"{n} x{c}" for n, c in called.items()), attention=used, **counts
        )


def waits(plan: Plan) -> Iterator[Row]:
    """A micro-batch in torch's mode in which whatever waits for the GPU raises."""
    cuda = plan.cuda and hasattr(torch._C, "_cuda_set_sync_debug_mode")
    compiling = ("ln_cotformer", "adm") if cuda and _version("triton") else ()
    for model, mode in [*((one, "none") for one in plan.models), *((one, "block") for one in compiling)]:
        training = Training(model, size_of(plan), plan.device, compile=mode)
        training.steps(1)
        training.micro_batch()
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        where = None
        try:
            training.micro_batch()
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            where = _place(error)
        finally:
            if cuda:
                torch.cuda.set_sync_debug_mode("default")
        allowed = model in WAITING or not cuda
        name = model if mode == "none" else f"{model}, compiled"
        yield row(name, None if allowed else where is None, waits_at=where or "nowhere")
    if not cuda:
        raise Skipped("only CUDA knows when the host waits")


def stable(plan: Plan) -> Iterator[Row]:
    """Steps of adm, whose shapes change with its capacities: all but one within twice the median.

    Small enough that launching takes longer than computing; a kernel that is planned for each shape shows.
    """
    size = size_of(plan)
    size = size.but(n_repeat=plan.pick(5, 5, 2))
    training = Training("adm", size, plan.device)
    training.steps(WARM_UP + TIMED)
    times = sorted(training.seconds[WARM_UP:])
    median = statistics.median(times)
    ok = times[-2] <= 2 * median if plan.cuda else None
    yield row("adm", ok, median_ms=1e3 * median, last_but_one_ms=1e3 * times[-2], slowest_ms=1e3 * times[-1])
    if plan.cuda:
        memory = torch.cuda.memory_stats()
        counts = {name: memory.get(f"num_{name}") for name in ("device_alloc", "alloc_retries")}
        yield row("adm, allocator", **counts)


def _place(error: BaseException) -> str:
    """The last line of ours that an error passed through."""
    ours = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(str(ROOT))
    ]
    if not ours:
        return "outside this code"
    return f"{ours[-1].filename.removeprefix(str(ROOT))[1:]}:{ours[-1].lineno}"


def _driver() -> str | None:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.partition("\n")[0].strip() or None


def _nccl(plan: Plan) -> str | None:
    if not (plan.cuda and torch.distributed.is_nccl_available()):
        return None
    from torch.cuda import nccl

    return ".".join(map(str, nccl.version()))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
