"""Beside the released code: `python -m bench.baseline --baseline FILE [flags of python -m bench]`.

FILE holds seconds and memory of the released code, measured at the size `baseline`: 8 layers (1 -> 6x3 -> 1;
the plain transformer 8), width 256, 8 heads, 50304 words, 4 sequences of 256 tokens, AdamW without clipping,
float32. Without the file, ours are printed alone. Ratios between machines say little: whoever has both codes
takes them again on one.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))


def difference(released: dict[str, Any], machine: dict[str, Any]) -> str | None:
    """A sentence on how the two machines differ; None where they look the same.

    released: its file. machine: ours, of `bench.machine.describe`.
    """
    theirs = released.get("cpu"), released.get("cores"), released.get("settings", {}).get("threads")
    ours = machine["gpu"] or machine["cpu"], machine["cores"], machine["threads"]
    if theirs == ours:
        return None
    return (
        "the machines differ, so the ratios say little: the released code ran on "
        f"{theirs[0]}, {theirs[1]} cores, {theirs[2]} threads; this is {ours[0]}, {ours[1]} cores, "
        f"{ours[2]} threads"
    )


if __name__ == "__main__":
    from bench.__main__ import main
    from errors import run_script

    run_script(lambda: main(["--only", "baseline", *sys.argv[1:]]))
