"""Style of the figures: colours, axes without a window, checks of flags, and the files written for each."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from errors import UsageError
from files import write_atomically, write_json
from models.variants import VARIANTS

FORMATS = (".png", ".pdf", ".svg")
FIGURE_HELP = "a .png, .pdf or .svg file; .png, .pdf and the numbers as .json are written next to it"

# Okabe and Ito's palette, which colour-blind readers can tell apart: one colour for each run or series.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")


def colours(count: int) -> list[str]:
    """`count` colours of the palette, from its start again when there are more."""
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def shades(count: int) -> list[Any]:
    """`count` RGBA colours from dark to light, for ordered series such as passes or layers."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.9 * index / max(1, count - 1)) for index in range(count)]


def check_labels(runs: Sequence[Path], labels: Sequence[str] | None, output: Path) -> list[str]:
    """Returns one label for each run; by default model and folder.

    Raises:
        UsageError: labels that are too few, too many or equal, or an output file of another format.
    """
    if output.suffix not in FORMATS:
        raise UsageError(f"--output {output}: the suffix must be one of {', '.join(FORMATS)}")
    if labels is None:
        aliases = {variant.name: variant.alias for variant in VARIANTS}
        labels = ["/".join(aliases.get(part, part) for part in run.resolve().parts[-2:]) for run in runs]
    if len(labels) != len(runs) or len(set(labels)) != len(labels):
        raise UsageError(f"{len(runs)} runs need as many different labels; given: {', '.join(labels)}")
    return list(labels)


def check_numbers(output: Path, inputs: Sequence[Path]) -> None:
    """Raises UsageError if the figure's .json would replace the .json of one of its inputs."""
    for path in inputs:
        if path.with_suffix(".json").resolve() == output.with_suffix(".json").resolve():
            raise UsageError(
                f"--output {output}: the figure's numbers would replace {output.with_suffix('.json').name}, "
                "which it is drawn from; give another name"
            )


def find_results(path: Path, pattern: str, script: str) -> list[Path]:
    """Returns the file itself, or all results of that name in a run's folder.

    Args:
        pattern: of the names, for example ppl_per_mac_*.json.
        script: writes such files.

    Raises:
        UsageError: the folder holds none.
    """
    if not path.is_dir():
        return [path]
    found = sorted(path.glob(pattern))
    if not found:
        raise UsageError(f"{path} holds no {pattern}; python {script} --checkpoint {path} writes one")
    return found


def find_result(path: Path, pattern: str, script: str) -> Path:
    """Like `find_results`, where a folder may hold a single one. Raises UsageError for more or none."""
    found = find_results(path, pattern, script)
    if len(found) > 1:
        raise UsageError(f"{path} holds {len(found)} files {pattern}; name one of them")
    return found[0]


def new_figure(rows: int, columns: int, **settings: Any) -> tuple[Any, Any]:
    """Returns matplotlib's figure and axes; needs no screen. settings: arguments of `pyplot.subplots`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, layout="constrained", **settings)


def save(figure: Any, *paths: Path) -> None:
    """Write the figure to each path, in the format of its suffix, and free its memory.

    Raises:
        Failure: a file cannot be written.
    """
    from matplotlib import pyplot

    for path in paths:
        write_atomically(path, partial(figure.savefig, format=path.suffix[1:], dpi=150))
    pyplot.close(figure)


def save_both_formats(figure: Any, stem: Path) -> list[str]:
    """Write <stem>.png and <stem>.pdf; returns their names. Raises Failure if one cannot be written."""
    paths = [stem.with_name(stem.name + suffix) for suffix in (".png", ".pdf")]
    save(figure, *paths)
    return [path.name for path in paths]


def save_with_numbers(figure: Any, path: Path, numbers: Any) -> str:
    """Write the figure as .png, .pdf and in the format of `path`, and its numbers as .json.

    Returns a line for the terminal that names the files. Raises Failure if one cannot be written.
    """
    suffixes = tuple(dict.fromkeys((path.suffix, ".png", ".pdf")))
    save(figure, *map(path.with_suffix, suffixes))
    write_json(path.with_suffix(".json"), numbers)
    return f"written: {path}, and {', '.join((*suffixes[1:], '.json'))} next to it"
