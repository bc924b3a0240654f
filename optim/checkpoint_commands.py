"""`python -m optim.checkpoint list|verify|convert`: a run's checkpoints, from outside."""

import argparse
from pathlib import Path

from errors import Failure, UsageError
from optim import checkpoint, run_folder


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m optim.checkpoint", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, about in (
        ("list", "the checkpoints of a run's folder, with their steps and sizes"),
        ("verify", "compare checksums, and read everything"),
    ):
        command = commands.add_parser(name, help=about, description=about)
        command.add_argument("paths", nargs="+", type=Path, help="checkpoints, or folders of runs")
    about = "write a checkpoint in the other format: .pt (one file) or .dcp (a folder)"
    command = commands.add_parser("convert", help=about, description=about)
    command.add_argument("source", type=Path, help="a checkpoint, or a run's folder: its most advanced one")
    command.add_argument("target", type=Path, help="what to write; its ending says in which format")
    args = parser.parse_args()
    if args.command == "list":
        _list(args.paths)
    elif args.command == "verify":
        _verify(args.paths)
    else:
        convert(args.source, args.target)
        print(f"written: {args.target}")


def convert(source: Path, target: Path) -> None:
    """Write the content of one checkpoint as another. Raises UsageError for what is no training checkpoint of
    this project, and where `target` exists or names no format."""
    source = checkpoint.find(source)
    if target.exists():
        raise UsageError(f"{target} exists; give another name, or move it away")
    formats = (run_folder.FILE, run_folder.FOLDER)
    if target.suffix not in formats:
        raise UsageError(f"{target}: the name must end in {' or '.join(formats)}, which says the format")
    content = checkpoint.load(source)
    if not {"format", "model", "optimizer"} <= content.keys():
        raise UsageError(f"{source} is no training checkpoint of this project, and is not converted")
    target.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write(target, content)


def _list(paths: list[Path]) -> None:
    for path in _checkpoints(paths):
        size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))
        print(f"{path}  {size / 1e6:,.1f} MB  {_described(path)}")


def _verify(paths: list[Path]) -> None:
    damaged = 0
    for path in _checkpoints(paths):
        said = _described(path)
        damaged += not said.startswith("step")
        print(f"{path}  {said}")
    if damaged:
        raise Failure(f"{damaged} of the checkpoints cannot be read; they were left in place")


def _described(path: Path) -> str:
    try:
        content = checkpoint.load(path)
    except Failure as error:
        return f"damaged: {error}"
    return f"step {content.get('step', content.get('itr'))}, whole"


def _checkpoints(paths: list[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        one = checkpoint.find(path)
        found += [one] if one == path else run_folder.in_folder(path)
    return found
