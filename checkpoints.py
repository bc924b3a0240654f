"""Lists, verifies and converts the checkpoints of runs: `python checkpoints.py list|verify|convert ...`."""

from pathlib import Path

from config.parser import Parser
from errors import Failure, UsageError, run_script, stdout_is_result
from optim import checkpoint


def main() -> None:
    parser = Parser(description=__doc__)
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
    command.add_argument("target", type=Path, help="the checkpoint to write; its suffix sets the format")
    args = parser.parse(None)
    if args.command == "list":
        stdout_is_result()
        list_checkpoints(args.paths)
    elif args.command == "verify":
        verify(args.paths)
    else:
        convert(args.source, args.target)
        print(f"written: {args.target}")


def list_checkpoints(paths: list[Path]) -> None:
    """Print size and step of each checkpoint."""
    for path in _checkpoints(paths):
        size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))
        print(f"{path}  {size / 1e6:,.1f} MB  {_describe(path)}")


def verify(paths: list[Path]) -> None:
    """Print whether each checkpoint can be read. Raises Failure if one cannot."""
    damaged = 0
    for path in _checkpoints(paths):
        described = _describe(path)
        damaged += not described.startswith("step")
        print(f"{path}  {described}")
    if damaged:
        raise Failure(f"{damaged} of the checkpoints cannot be read; they were left in place")


def convert(source: Path, target: Path) -> None:
    """Write a training checkpoint in the format of `target`'s suffix.

    Raises UsageError for a checkpoint that is not this project's, and where `target` exists or has another
    suffix.
    """
    source = checkpoint.find(source)
    if target.exists():
        raise UsageError(f"{target} exists; give another name, or move it away")
    formats = (checkpoint.FILE, checkpoint.FOLDER)
    if target.suffix not in formats:
        raise UsageError(f"{target}: the name must end in {' or '.join(formats)}, which sets the format")
    content = checkpoint.load(source)
    if not {"format", "model", "optimizer"} <= content.keys():
        raise UsageError(f"{source} is no training checkpoint of this project, and is not converted")
    target.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write(target, content)


def _describe(path: Path) -> str:
    try:
        content = checkpoint.load(path)
    except Failure as error:
        return f"damaged: {error}"
    return f"step {content.get('step', content.get('itr'))}, intact"


def _checkpoints(paths: list[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        one = checkpoint.find(path)
        found += [one] if one == path else checkpoint.in_folder(path)
    return found


if __name__ == "__main__":
    run_script(main)
