"""The tables of speeds in README.md, made from the newest results: `python -m bench.readme [--check]`.

It stands between two comments and is not to be edited by hand; a test compares it with bench/results/.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.plan import DTYPES, Row
from bench.results import newest
from bench.rows import number
from errors import Failure, UsageError, run_script
from files import write_atomically

README = Path(__file__).parents[1] / "README.md"
BEGIN = "<!-- speed: made by `python -m bench.readme` -->"
END = "<!-- end of speed -->"
NOT_YET = "Not measured yet: `make bench` measures, `python -m bench.readme` then fills this in."
FOLDED = "<details><summary>Tables of all models and parts</summary>"  # they are long
PHASES = {"train": "a training step", "eval": "a batch of evaluation"}
# Of each other part: which details of its rows say what the part is for.
TOLD = {
    "precision": ["plain_float32_over_bfloat16"], "budgets": ["realised"], "loader": ["dataloader_over_ours"],
    "tokeniser": ["tiktoken_over_ours"], "checkpoint": ["speed_while_writing"], "startup": [],
    "ddp": ["over_one_process"], "baseline": ["released_over_ours"],
    "paper": ["largest_micro_batch", "model_flop_utilisation", "hours_of_40k_steps"],
}  # fmt: skip


def block(results: Sequence[dict[str, Any]]) -> str:
    """The lines between the comments: a section for each kind of machine."""
    return "\n\n".join(map(_section, results)) if results else NOT_YET


def _section(result: dict[str, Any]) -> str:
    machine, rows = result["machine"], [row for row in result["rows"] if row["value"]]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
    title = (
        f"{where}, torch {machine['torch']}, {machine['date'][:10]}, commit "
        f"{(machine['commit'] or 'unknown')[:8]}: medians."
    )
    tables = [_phase_table(phase, rows) for phase in PHASES]
    tables += [_floor_table(rows), _writing_table(rows), _capacities_table(rows), _other_table(rows)]
    return "\n\n".join([title, FOLDED, *filter(None, tables), "</details>"])


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown; empty where there are no lines."""
    if not lines:
        return ""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def _by_format(rows: Sequence[Row], part: str, ending: str = "") -> dict[str, dict[str, Row]]:
    """Rows of a part by what stands before the number format in their names, and by that."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        for dtype in DTYPES:
            before, between, _ = row["name"].partition(f", {dtype}{ending}")
            if row["part"] == part and between:
                found.setdefault(before, {})[dtype] = row
    return found


def _phase_table(phase: str, rows: Sequence[Row]) -> str:
    head = [PHASES[phase]]
    head += [f"{dtype}: {what}" for dtype in DTYPES for what in ("s", "plain / ours", "MiB (plain)")]
    lines = []
    for name, by_format in _by_format(rows, phase).items():
        cells = [name]
        for dtype in DTYPES:
            row = by_format.get(dtype)
            if row is None:
                cells += ["", "", ""]
                continue
            memory = f"{number(row['memory_mib'])} ({number(row['plain_memory_mib'])})"
            cells += [number(row["value"]["median"]), f"{row['ratio']['median']:.2f}", memory]
        lines.append(cells)
    return _table(head, lines)


def _floor_table(rows: Sequence[Row]) -> str:
    """over_kernels: see `bench.kernels`. A number is missing where a floor is 0, and in older results."""
    details = ("over_floor", "kernels_over_floor", "over_kernels")
    said = ("over its floor", "plain path's kernels alone over it", "step over these kernels")
    lines = []
    for name, by_format in _by_format(rows, "floor", ", whole step").items():
        found = [by_format.get(dtype, {}).get("details", {}).get(key) for dtype in DTYPES for key in details]
        lines.append([name, *("" if value is None else f"{value:.2f}" for value in found)])
    return _table(["a training step", *(f"{dtype}: {one}" for dtype in DTYPES for one in said)], lines)


def _writing_table(rows: Sequence[Row]) -> str:
    head = ["writing", "tokens/s", "plain / ours", "without the cache / ours"]
    lines = []
    for row in rows:
        if row["part"] in ("prefill", "decode"):
            cached = row["details"].get("recomputed_over_cached")
            name = f"{row['part']}, {row['name']}"
            cells = [name, number(row["value"]["median"]), f"{row['ratio']['median']:.2f}"]
            lines.append([*cells, "" if cached is None else f"{cached:.1f}"])
    return _table(head, lines)


def _capacities_table(rows: Sequence[Row]) -> str:
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["part"] == "capacities":
            name, _, factor = row["name"].rpartition(", factor ")
            found.setdefault(name, []).append(f"{100 * row['details']['deviation']:+.0f} % at {factor}")
    return _table(
        ["time against MACs", "by capacity"], [[name, ", ".join(all_)] for name, all_ in found.items()]
    )


def _other_table(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        if row["part"] not in TOLD or not _shown(row):
            continue
        told = [name for name in TOLD[row["part"]] if row["details"].get(name) is not None]
        said = ", ".join(f"{name.replace('_', ' ')} {number(row['details'][name])}" for name in told)
        memory = "" if row["memory_mib"] is None else number(row["memory_mib"])
        cells = [row["part"], row["name"], f"{number(row['value']['median'])} {row['unit']}", memory, said]
        lines.append(cells)
    return _table(["part", "what", "", "MiB", ""], lines)


def _shown(row: Row) -> bool:
    """Of all scripts' --help that of main.py alone, and of number formats their comparison."""
    if row["part"] == "precision":
        return "plain_float32_over_bfloat16" in row["details"]
    return row["part"] != "startup" or row["name"].startswith("main.py")


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
