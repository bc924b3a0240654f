"""Made-up results of the suite."""

from bench.rows import row
from bench.timing import spread

MACHINE = {
    "cpu": "Example CPU", "gpu": None, "cores": 2, "threads": 2, "device": "cpu", "torch": "2.13.0",
    "commit": "0123456789abcdef", "date": "2026-01-02T03:04:05+00:00",
}  # fmt: skip


def result(step, rate, memory, commit="0123456789abcdef", **machine):
    """A training step (seconds), a loader (batches per second), and a row that only this one has."""
    return {
        "machine": {**MACHINE, "commit": commit, **machine},
        "rows": [
            row("train", "adm, nano, float32", "s", spread(step), memory_mib=memory,
                plain=spread(step), ratio=spread([2.0]), plain_memory_mib=2 * memory),
            row("loader", "batches", "batches/s", spread(rate), dataloader_over_ours=29.0),
            row("startup", f"only at {commit}", "s", spread([1.0])),
            row("floor", "adm, nano, float32, whole step", "s", spread(step), floor_s=0.5, over_floor=4.0,
                kernels_over_floor=1.6, over_kernels=2.5),
        ],
    }  # fmt: skip


# Of parts that the README shows in tables of their own, or leaves out of them.
OTHERS = [
    row("prefill", "adm, nano, bfloat16, 256 tokens", "tokens/s", spread([900.0]),
        ratio=spread([1.1])),
    row("decode", "adm, nano, bfloat16, 64 tokens", "tokens/s", spread([90.0]), ratio=spread([0.9]),
        recomputed_over_cached=7.0),
    row("capacities", "adm, eval, nano, float32, factor 1", "s", spread([1.0]), deviation=0.0),
    row("capacities", "adm, eval, nano, float32, factor 0", "s", spread([0.5]), deviation=-0.126),
    row("precision", "matrix product, bfloat16", "s", spread([1.0]), float32_over_bfloat16=4.0),
    row("precision", "train, adm, nano, bfloat16", "s", spread([1.0]),
        plain_float32_over_bfloat16=3.0),
    row("startup", "main.py --help", "s", spread([0.1])),
]  # fmt: skip
