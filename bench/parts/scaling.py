"""Scaling curves: step time and memory over length, repeats and batch; of one model for all ways of
recomputing.

Every point is a process of its own. A point that does not fit into memory is recorded as one that does not.
Over length the batch is one sequence.
"""

from functools import partial
from pathlib import Path
from typing import Any

from bench.builds import TrainingStep, build, precision_of, waiter
from bench.isolated import DoesNotFit, apart
from bench.plan import Case, Plan, Row, Size
from bench.rows import missing, row
from bench.timing import in_turn, spread
from errors import Failure

MODELS = ("standard", "but", "cotformer")
RECOMPUTING = ("none", "repeat", "block")  # --activation_checkpointing
RECOMPUTED = "cotformer"  # the model that is measured with all of them


def axes(plan: Plan) -> dict[str, tuple[int, ...]]:
    return {
        "sequence_length": plan.pick((256, 512, 1024, 2048, 4096), (64, 128), (8, 16)),
        "n_repeat": plan.pick((1, 2, 3, 4, 6, 8), (1, 4), (1, 2)),
        "batch": plan.pick((1, 2, 4, 8, 16), (4, 16), (1, 2)),
    }


def time_steps(model: str, size: Size, device: str, dtype: str, options: dict[str, Any], repeats: int):
    """Seconds of each step, the first one not counted."""
    precision = precision_of(device, dtype)
    step = TrainingStep(build(model, size, precision, **options), size, precision)
    return in_turn([step], repeats, 1, waiter(precision))[0]


def measure(model: str, axis: str, points: tuple[int, ...], plan: Plan) -> list[Row]:
    rows, dtype = [], plan.run_dtype
    for way in RECOMPUTING if model == RECOMPUTED else RECOMPUTING[:1]:
        for point in points:
            size = plan.main_size
            if axis == "batch":
                size = size._replace(batch=point)
            else:
                size = size._replace(flags={**size.flags, axis: point})
            if axis == "sequence_length":
                size = size._replace(batch=1)
            name = f"{model}, {plan.main_size_name}, {dtype}, {axis} {point}, recompute {way}"
            at = {"model": model, "axis": axis, "point": point, "recompute": way}
            options = {"activation_checkpointing": way}
            arguments = (model, size, plan.device, dtype, options, plan.pick(3, 2, 1))
            try:
                found = apart(time_steps, *arguments, threads=plan.threads)
            except DoesNotFit as error:
                rows.append(missing("scaling", name, str(error)))
                break  # larger ones will not fit either
            seconds = spread(found.result)
            rows.append(
                row("scaling", name, "s", seconds, memory_mib=found.memory_mib, at=at,
                    tokens_per_s=size.batch * size.flags["sequence_length"] / seconds.median)
            )  # fmt: skip
    return rows


def cases(plan: Plan) -> list[Case]:
    return [
        Case(f"{model} over {axis}", partial(measure, model, axis, points, plan))
        for model in plan.chosen(MODELS)
        for axis, points in axes(plan).items()
        if not (axis == "n_repeat" and model == "standard")  # it has none
    ]


def draw(rows: list[Row], path: Path) -> None:
    """Step time and memory over each axis; a line for each model and way of recomputing.

    path: its suffix (.png, .pdf, .svg) decides the format. Raises Failure where there is nothing to draw.
    """
    from plots.style import COLOURS, new_figure, save

    points = [one for one in rows if one["part"] == "scaling" and one["value"]]
    if not points:
        raise Failure("there are no points of the part `scaling` to draw")
    names = list(dict.fromkeys(one["details"]["at"]["axis"] for one in points))
    figure, panels = new_figure(2, len(names), figsize=(4.2 * len(names), 7), squeeze=False, sharex="col")
    lines = list(dict.fromkeys(map(_line_of, points)))
    models = list(dict.fromkeys(model for model, _ in lines))
    styles = dict(zip(RECOMPUTING, ("-", "--", ":"), strict=True))
    for column, axis in enumerate(names):
        for model, way in lines:
            one = [p for p in points if _line_of(p) == (model, way) and p["details"]["at"]["axis"] == axis]
            x = [p["details"]["at"]["point"] for p in one]
            style = {"color": COLOURS[models.index(model)], "linestyle": styles[way], "marker": "."}
            label = f"{model}, recompute {way}"
            panels[0][column].plot(x, [p["value"]["median"] for p in one], label=label, **style)
            panels[1][column].plot(x, [p["memory_mib"] for p in one], **style)
        panels[1][column].set_xlabel(axis)
        for panel in (panels[0][column], panels[1][column]):
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("seconds a training step")
    panels[1][0].set_ylabel("peak memory, MiB")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)
    save(figure, path)


def _line_of(of: Row) -> tuple[str, str]:
    return of["details"]["at"]["model"], of["details"]["at"]["recompute"]
