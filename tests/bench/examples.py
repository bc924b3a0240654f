"""Made-up results of the suite."""

from bench.results import result, spread

MACHINE = {
    "cpu": "Example CPU", "gpu": None, "cores": 2, "threads": 2, "device": "cpu", "torch": "2.13.0",
    "python": "3.11.7", "commit": "a" * 40, "date": "2026-01-02T03:04:05+00:00", "effort": "full",
    "command": "python -m bench",
}  # fmt: skip


def result_file(step, rate, memory, **machine):
    """A training step (seconds), a tokeniser (MB per second), and a result that only this commit has."""
    machine = {**MACHINE, **machine}
    return {
        "machine": machine,
        "complete": True,
        "results": [
            result("train", "adm, nano, float32", "s", spread(step), spread([2.0]), memory, plain_mib=99.0),
            result("tokeniser", "1 worker", "MB/s", spread(rate), tiktoken_over_ours=0.9),
            result("paper", f"only at {machine['commit']}", "s", spread([1.0])),
        ],
    }
