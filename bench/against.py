"""Two commits side by side: the files here against a commit checked out into a temporary folder.

Each side is a process that executes this checkout's works.py on its own models; both take turns, in the order
before, after, after, before, ..., so that neither is always first. The losses of both are compared too, for
only equal work is worth a comparison.
"""

import json
import subprocess
import sys
import tempfile
from argparse import Namespace
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

from bench.plan import SIZES, model_flags
from bench.results import QUARTILES_FROM, ROOT, ratio, spread, spread_text
from bench.works import PROMPT
from errors import Failure, UsageError
from tables import aligned_table

TURN_S = 0.3  # the least time of a turn: shorter works are called several times in it
DECODED = 64  # tokens
MARGIN = 0.03  # slower by more than this is marked
COLUMNS = ("work", "before, s", "after, s", "after / before", "loss differs by", "")


def ask(side: subprocess.Popen, **what: Any) -> dict[str, Any]:
    """The answer of a side to one request (`works.serve`). Raises Failure if it has ended."""
    try:
        side.stdin.write(json.dumps(what) + "\n")
        side.stdin.flush()
        return json.loads(side.stdout.readline())
    except (OSError, ValueError):
        raise Failure("one side ended; its error is above") from None


def compare_work(sides: tuple[subprocess.Popen, ...], rounds: int, **work: Any) -> list[str]:
    """A line of the table of COLUMNS: seconds of a call on each side, and their ratio round by round."""
    for side in sides:
        ask(side, **work)  # makes it and warms up
    slowest = max(ask(side, calls=1)["seconds"] for side in sides)
    calls = max(1, round(TURN_S / slowest))
    seconds: list[list[float]] = [[], []]
    losses: list[Any] = [None, None]
    for round_ in range(rounds):
        for which in (0, 1) if round_ % 2 == 0 else (1, 0):
            answer = ask(sides[which], calls=calls)
            seconds[which].append(answer["seconds"])
            losses[which] = answer["loss"]
    before, after = losses
    differs = "" if before is None else f"{abs(after / before - 1):.0e}" if after != before else "0"
    over = ratio(*seconds)
    slower = over.repeats >= QUARTILES_FROM and over.low > 1 and over.median > 1 + MARGIN
    texts = [spread_text(value._asdict()) for value in (*map(spread, seconds), over)]
    return [*texts, differs, "slower" if slower else ""]


def measure_against(args: Namespace) -> None:
    """Measure and print a table. args: the flags of bench.compare. Raises UsageError for no such commit."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()), "before")
        git = ["git", "-C", str(ROOT), "worktree"]
        added = subprocess.run(
            [*git, "add", "--detach", str(folder), args.against], capture_output=True, text=True
        )
        if added.returncode:
            raise UsageError(f"--against {args.against}: {added.stderr.strip().splitlines()[-1]}")
        stack.callback(subprocess.run, [*git, "remove", "--force", str(folder)], check=True)
        command = [sys.executable, str(ROOT / "bench" / "works.py")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        sides = tuple(subprocess.Popen(command, cwd=cwd, **pipes) for cwd in (folder, ROOT))
        for side in sides:
            stack.enter_context(side)
            stack.callback(side.kill)
        lines = []
        for names in product(args.sizes, args.only, args.models, args.dtypes):
            size_name, kind, model, dtype = names
            size = SIZES[size_name]
            size = size.but(sequence_length=DECODED + PROMPT) if kind == "decode" else size
            work = {"kind": kind, "flags": model_flags(model, size), "batch": size.batch}
            line = compare_work(sides, args.rounds, **work, device=args.device, dtype=dtype)
            lines.append([f"{kind}, {model}, {size_name}, {dtype}", *line])
            print("  ".join(lines[-1]), file=sys.stderr, flush=True)
    print(aligned_table([COLUMNS, *lines]))
