"""The tables of speeds in README.md, made from the newest results: `python -m bench.readme [--check]`.

It stands between two comments and is not to be edited by hand; a test compares it with bench/results/.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.results import newest
from bench.rows import number
from bench.timing import QUARTILES_FROM
from errors import Failure, UsageError, run_script
from files import write_atomically

README = Path(__file__).parents[1] / "README.md"
BEGIN = "<!-- speed: made by `python -m bench.readme` -->"
END = "<!-- end of speed -->"
NOT_YET = "Not measured yet: `make bench` measures, `python -m bench.readme` then fills this in."
PARTS = (
    "train", "eval", "capacities", "precision", "prefill", "decode", "budgets", "loader", "tokeniser",
    "checkpoint", "startup", "scaling", "ddp", "baseline", "paper",
)  # fmt: skip
NOTABLE = (  # of the details: those that say what the part is for
    "deviation", "float32_over_bfloat16", "recomputed_over_cached", "realised", "dataloader_over_ours",
    "tiktoken_over_ours", "speed_while_writing", "over_one_process", "released_over_ours",
    "largest_micro_batch", "model_flop_utilisation", "hours_of_40k_steps",
)  # fmt: skip


def block(results: Sequence[dict[str, Any]]) -> str:
    """The lines between the comments: a section for each kind of machine."""
    return "\n\n".join(map(_section, results)) if results else NOT_YET


def _section(result: dict[str, Any]) -> str:
    machine = result["machine"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
    commit = (machine["commit"] or "unknown")[:8]
    lines = [
        f"{where}, torch {machine['torch']}, {machine['date'][:10]}, commit {commit}: medians and quartiles "
        f"(of fewer than {QUARTILES_FROM} runs: extremes).",
        "",
        "| part | what | | from, to | plain / ours | MiB (plain) | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [_line(row) for row in result["rows"] if row["part"] in PARTS and row["value"]]
    floor = [row for row in result["rows"] if row["part"] == "floor" and "over_floor" in row["details"]]
    whole = [row for row in floor if row["name"].endswith("whole step")]
    if whole:
        lines += [
            "",
            "| training step over its floor | seconds | floor | ratio |",
            "| --- | --- | --- | --- |",
        ]
        lines += [
            f"| {row['name'].removesuffix(', whole step')} | {number(row['value']['median'])} "
            f"| {number(row['details']['floor_s'])} | {row['details']['over_floor']:.2f} |"
            for row in whole
        ]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    value, ratio = row["value"], row["ratio"]
    memory = "" if row["memory_mib"] is None else number(row["memory_mib"])
    if row["plain_memory_mib"] is not None:
        memory += f" ({number(row['plain_memory_mib'])})"
    cells = [
        row["part"],
        row["name"],
        f"{number(value['median'])} {row['unit']}",
        f"{number(value['low'])} to {number(value['high'])}",
        f"{ratio['median']:.2f}" if ratio else "",
        memory,
        ", ".join(f"{name} {number(row['details'][name])}" for name in NOTABLE if name in row["details"]),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def replaced(text: str, results: Sequence[dict[str, Any]]) -> str:
    """The README with the tables of these results. Raises Failure where its comments are missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise Failure(f"README.md lacks the lines {BEGIN} and {END}, between which the table goes")
    return f"{before}{BEGIN}\n{block(results)}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 2 if it would")
    args = parser.parse_args()
    text = README.read_text()
    made = replaced(text, newest())
    if args.check and made != text:
        raise UsageError("README.md's table is not that of the newest result: run python -m bench.readme")
    if not args.check:
        write_atomically(README, lambda file: file.write(made.encode()))


if __name__ == "__main__":
    run_script(main)
