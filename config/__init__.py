"""Flags, defaults, checks and run names. Nothing here imports torch: a typo is answered at once."""

from config.checks import notes
from config.parser import build_parser, complete, parse_args, parse_with_run
from config.run_name import experiment_dir, experiment_name, identity

__all__ = [
    "build_parser",
    "complete",
    "experiment_dir",
    "experiment_name",
    "identity",
    "notes",
    "parse_args",
    "parse_with_run",
]
