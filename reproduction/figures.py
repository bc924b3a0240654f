"""Numbers of Figures 2, 3 and 4, and all figures of a report. `plots` draws them.

MACs are those of one sequence, in the paper's convention (`models.macs`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import config
from config.experiments import BY_NAME, EXPERIMENTS, find_experiment
from models import count_macs
from plots import figure2, figure4
from plots.inputs import paper_name
from plots.report import draw_claims, draw_perplexity
from reproduction.claims import Finding
from reproduction.plan import Run, results_by_experiment
from reproduction.report import Row
from reproduction.statistics import mean

LENGTHS = tuple(range(128, 12288 + 1, 128))  # sequence lengths of Figure 3

# Experiments of Table 2 and Section 5 whose published perplexity Figure 4 can show, all on OpenWebText2.
PUBLISHED = {
    "section5/adm-60k": "ADM, full compute, 60k steps",
    "section5/ln-cotformer-60k": "LN-CoTFormer, 60k steps",
    "table2/ln-cotformer": "LN-CoTFormer, 40k steps",
    "table1/standard-24": "Standard, 24 layers, 40k steps",
    "table1/standard-48": "Standard, 48 layers, 40k steps",
}


def figure_2_experiments() -> list[str]:
    """Names of Figure 2's experiments."""
    return [e.name for e in EXPERIMENTS if e.name.startswith(("table1/", "figure2/")) and _panel(e.name)]


def _panel(name: str) -> str | None:
    return next((panel for panel in figure2.PANELS if f"-{panel}" in name), None)


def _series(name: str) -> str:
    return next(series for series in figure2.SERIES if f"/{series}-" in name)


def figure_2(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Returns Figure 2's points, a dict for each experiment that `runs` hold.

    Keys: row, panel, series, repeats; macs, perplexity and error (its standard error over seeds) of ours and,
    with the prefix published_, of the paper's model at the published size; seeds: how many of ours. Missing
    values are None.
    """
    found = results_by_experiment(runs)
    args = {name: run.args for run in runs for name in run.experiments}
    points = []
    for name in figure_2_experiments():
        if name not in found:
            continue
        results = [result["perplexity"] for result in found[name].values()]
        ours = mean(results) if results else None
        published = config.parse_args(["--experiment", name])
        points.append({
            "row": name,
            "panel": _panel(name),
            "series": _series(name),
            "repeats": 1 if _series(name) == "standard" else args[name].n_repeat,
            "macs": int(count_macs(args[name], args[name].sequence_length)),
            "perplexity": ours and ours.value,
            "error": ours and ours.standard_error,
            "seeds": len(results),
            "published_macs": int(count_macs(published, published.sequence_length)),
            "published_perplexity": BY_NAME[name].perplexity,
            "published_error": BY_NAME[name].error,
        })  # fmt: skip
    return points


def figure_3() -> dict[str, Any]:
    """Returns {"lengths": sequence lengths, <experiment>: MACs of a sequence of each length}."""
    content: dict[str, Any] = {"lengths": list(LENGTHS)}
    for experiment in EXPERIMENTS:
        if experiment.name.startswith("figure3/"):
            args = config.parse_args(["--experiment", experiment.name])
            content[experiment.name] = [int(count_macs(args, length)) for length in LENGTHS]
    return content


def published_anchors() -> list[tuple[str, float, float]]:
    """Returns (label, MACs of a sequence, perplexity) of the paper's models in Figure 4."""
    anchors = []
    for name, label in PUBLISHED.items():
        args = config.parse_args(["--experiment", name])
        perplexity = find_experiment(name).perplexity
        if perplexity is not None:
            anchors.append((label, float(count_macs(args, args.sequence_length)), perplexity))
    return anchors


def draw_report(
    runs: Sequence[Run], rows: Sequence[Row], findings: Sequence[Finding], folder: Path
) -> list[Path]:
    """Draw the figures of a report, each with its numbers, as far as there are results for them.

    Args:
        runs: of the plan.
        rows: one for each experiment.
        findings: one for each claim of the paper.
        folder: receives the files.

    Returns:
        Paths of the .png files.

    Raises:
        Failure: a file cannot be written.
    """
    drawn = [folder / "perplexity.png"]
    draw_perplexity(rows, drawn[-1])
    if findings:
        drawn.append(folder / "claims.png")
        draw_claims(findings, drawn[-1])
    points = figure_2(runs)
    if any(point["perplexity"] is not None for point in points):
        drawn.append(folder / "figure2.png")
        figure2.draw(points, drawn[-1], published=True, same_size=all(run.as_published for run in runs))
    swept = [(run, sweep) for run in runs if run.sweep and run.swept and (sweep := run.sweep_result())]
    several = len({run.experiments[0] for run, _ in swept}) > 1
    sweeps = {}
    for run, sweep in swept:
        experiment = f", {run.experiments[0]}" if several else ""
        sweeps[f"{paper_name(run.args.model)}{experiment}, seed {run.seed}"] = sweep
    if sweeps:
        drawn.append(folder / "figure4.png")
        figure4.draw(sweeps, drawn[-1])
    return drawn
