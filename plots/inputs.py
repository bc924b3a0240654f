"""What a figure is drawn from: files of results, labels of runs, and checks of both."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import config
from errors import UsageError
from files import read_json
from models.variants import VARIANTS

FORMATS = (".png", ".pdf", ".svg")
FIGURE_HELP = "a .png, .pdf or .svg file; .png, .pdf and the numbers as .json are written next to it"


def paper_name(model: str, otherwise: str | None = None) -> str:
    """What the paper calls a model, by name or alias; `otherwise`, or the name itself, for an unknown one."""
    known = (variant.paper_name for variant in VARIANTS if model in (variant.name, variant.alias))
    return next(known, otherwise or model)


def check_labels(runs: Sequence[Path], labels: Sequence[str] | None, output: Path) -> list[str]:
    """Returns one label for each run; by default its model and what sets it apart.

    Raises:
        UsageError: labels that are too few, too many or equal, or an output file of another format.
    """
    if output.suffix not in FORMATS:
        raise UsageError(f"--output {output}: the suffix must be one of {', '.join(FORMATS)}")
    if labels is None:
        labels = _default_labels([run.resolve() for run in runs])
    if len(labels) != len(runs) or len(set(labels)) != len(labels):
        raise UsageError(f"{len(runs)} runs need as many different labels; given: {', '.join(labels)}")
    return list(labels)


def _default_labels(paths: Sequence[Path]) -> list[str]:
    """Each model's name in the paper, with the settings in which it differs from others of that name.

    Args:
        paths: folders of runs, or files of results in them.
    """
    folders = [path if path.is_dir() or not path.suffix else path.parent for path in paths]
    flags = [_flags(folder) for folder in folders]
    if not all(flags):  # a run in progress has no summary.json: what differs is in its folder's name
        flags = [dict(enumerate(folder.name.split("_"))) for folder in folders]
    about = [_about(path) for path in paths]
    names = []
    for folder, of_run, of_result in zip(folders, flags, about, strict=True):
        model = of_result.get("model", of_run.get("model", folder.parent.name))
        names.append(paper_name(model, folder.name))
    settings = [
        of_run | {name: f"{name} {value}" for name, value in of_result.items() if name != "model"}
        for of_run, of_result in zip(flags, about, strict=True)
    ]
    labels = []
    for name, own in zip(names, settings, strict=True):
        others = [other for its, other in zip(names, settings, strict=True) if its == name]
        differing = {key: text for key, text in own.items() if any(o.get(key) != text for o in others)}
        readable = [text for text in differing.values() if not re.fullmatch("[0-9a-f]{8}", text)]  # no hash
        labels.append(", ".join([name, *(readable or differing.values())]))
    if len(set(labels)) < len(labels):
        return [f"{label}, {folder.name}" for label, folder in zip(labels, folders, strict=True)]
    return labels


def _flags(folder: Path) -> dict[Any, str]:
    """The model of a finished run, and each flag that makes it another experiment, as `seed 0`.

    {} without a readable summary.json.
    """
    try:
        args = read_json(folder / "summary.json")["args"]
        values = config.identity(config.complete(args, {}))
        if args.get("data_seed") is None:
            del values["data_seed"]  # it is the seed
        return {name: f"{name} {value}" for name, value in values.items()} | {"model": args["model"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _about(path: Path) -> dict[str, Any]:
    """What a file of results is of; {} for a folder."""
    try:
        content = read_json(path.with_suffix(".json"))
        about = content.get("about", content)
        return {name: about[name] for name in ("model", "step", "dataset", "split") if name in about}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


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

    Those of full evaluations, if there are any: the names of others hold flags (`reports.result_path`).

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
    return [file for file in found if "=" not in file.name] or found


def find_result(path: Path, pattern: str, script: str) -> Path:
    """Like `find_results`, where a folder may hold a single one. Raises UsageError for more or none."""
    found = find_results(path, pattern, script)
    if len(found) > 1:
        raise UsageError(f"{path} holds {len(found)} files {pattern}; name one of them")
    return found[0]
