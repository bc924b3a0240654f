"""From the command line to checked values; mistakes become one sentence (UsageError). No torch here."""

import argparse
import difflib
import re
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from config.base import add_flags
from config.checks import check_architecture, check_values
from config.experiments import find_experiment
from config.scales import SCALES, scaled
from config.values import choice, integer, nullable, number, truth
from errors import UsageError
from models.variants import find_variant


class Parser(ArgumentParser):
    """An argparse parser that answers with a sentence, and suggests the flag that was meant."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Help, **settings)
        # A script's own flags of type int and float answer in the words of ours.
        self.register("type", int, integer)
        self.register("type", float, number)
        # argparse's pattern takes -1e-3 and -inf for flags, and then calls the value missing.
        self._negative_number_matcher = re.compile(r"-(\d|\.\d|inf|nan)", re.IGNORECASE)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))

    def parse(self, argv: Sequence[str] | None) -> Namespace:
        """Like parse_args, but a misspelt flag is answered with the nearest one."""
        words = list(sys.argv[1:] if argv is None else argv)
        for word in words:
            # Before argparse looks: to it, a required flag that is misspelt is one that is missing.
            if word.startswith("-") and " " not in word and not self._is_known(word):
                self._refuse(word)
        args, unknown = self.parse_known_intermixed_args(words)  # positional ones may stand anywhere
        if unknown:
            self._refuse(unknown[0])
        return args

    def _is_known(self, word: str) -> bool:
        name = word.split("=")[0]
        return name in self._option_string_actions or bool(self._negative_number_matcher.match(word))

    def _refuse(self, text: str) -> NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings]
        near = difflib.get_close_matches(text.split("=")[0], flags, n=1)
        if not text.startswith("-"):
            raise UsageError(f"{text!r} belongs to no flag; `python {self.prog} --help` lists them")
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"unknown flag {text}; {hint}`python {self.prog} --help` lists them")


class _Help(argparse.HelpFormatter):
    """Shows each default behind its explanation."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=110)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if not action.option_strings or action.default is argparse.SUPPRESS or action.dest == "help":
            return action.help
        return f"{action.help} (default: %(default)s)"

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        return super()._format_args(action, action.metavar or "X")


def build_parser(description: str | None = None, **settings: Any) -> Parser:
    """The parser with all flags of config.base."""
    parser = Parser(description=description, **settings)
    add_flags(parser)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """All flags, defaults filled in, checked. Raises UsageError with one sentence.

    With --experiment, the flags of that row stand in place of the defaults: what is given beside it wins.
    """
    parser = build_parser("Train a model. README.md shows how to begin.")
    parser.add_argument(
        "--experiment",
        type=nullable(str),
        default=None,
        help="a row of config/experiments.py, for example table2/ln-cotformer; flags beside it win",
    )
    parser.add_argument(
        "--scale",
        type=choice(tuple(SCALES)),
        default="paper",
        help="--experiment: in the published size (paper), for an hour on a GPU (small), two cores (nano)",
    )
    args = parser.parse(argv)
    if args.experiment is not None:
        parser.set_defaults(**scaled(find_experiment(args.experiment).flags, args.scale))
        args = parser.parse(argv)
    elif args.scale != "paper":
        raise UsageError(f"--scale {args.scale} is a size of an --experiment; name one")
    return finished(args)


def parse_with_run(
    argv: Sequence[str] | None, add_own_flags: Callable[[ArgumentParser], None], description: str | None
) -> tuple[Namespace, dict[str, Any]]:
    """For scripts that work on a run: their own flags, and the base flags that were given explicitly.

    The base flags are for `complete`, once the run's own are known; each is checked by itself here already.
    """
    parser = build_parser(description, argument_default=None)
    base = {action.dest: action for action in parser._actions}
    for action in base.values():
        if action.dest != "help":
            action.default = argparse.SUPPRESS
    add_own_flags(parser)
    values = vars(parser.parse(argv))
    given = {name: value for name, value in values.items() if name in base}
    check_values(Namespace(**{**vars(build_parser().parse([])), **given}))
    return Namespace(**{name: value for name, value in values.items() if name not in base}), given


def complete(run_args: Mapping[str, Any], given: Mapping[str, Any]) -> Namespace:
    """All flags: defaults, over them those of a run, over them those given now. Raises UsageError.

    run_args may come from an older version or from the released code: names that are no flags are left out,
    and so are those of LAUNCH.
    """
    parser = build_parser()
    args = parser.parse([])
    for action in parser._actions:
        name = action.dest
        if name in run_args and name not in given and name not in LAUNCH:
            setattr(args, name, _read_back(action, run_args[name]))
    vars(args).update(given)
    args.experiment, args.scale = run_args.get("experiment"), run_args.get("scale", "paper")
    return finished(args)


# How and where a run was started, and where it was put: this process may be on another machine, and the names
# that the released code made hold slashes.
LAUNCH = ("device", "distributed_backend", "config_format", "exp_name", "run_prefix", "use_pretrained")


def _read_back(action: argparse.Action, value: Any) -> Any:
    """A value that stands in a run's file, checked as if it had been given; the default for a None.

    Files are edited by hand, and the released code's hold None where it did not know (dtype).
    """
    if value is None:
        return action.default
    read = action.type or truth  # on/off flags have no type
    try:
        return [read(str(item)) for item in value] if isinstance(value, list) else read(str(value))
    except ArgumentTypeError as error:
        raise UsageError(
            f"the run has --{action.dest} {error}; give --{action.dest} to replace it"
        ) from error


def finished(args: Namespace) -> Namespace:
    """The full name of the model in place of its alias, and everything checked."""
    args.model = find_variant(args.model).name
    for name in ("eval_length_factor", "training_length_factor", "routing_threshold"):
        if getattr(args, name) == [None]:
            setattr(args, name, None)
    check_values(args)
    check_architecture(args)
    return args
