"""From the command line to checked values; a mistake becomes one sentence (UsageError). No torch here."""

import argparse
import difflib
import re
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from config.base import all_flags
from config.checks import check_values
from config.experiments import find_experiment
from config.scales import SCALES, scaled
from errors import UsageError, stdout_is_result, unknown
from flags import Flag, choice, integer, nullable, number
from models.config import ModelConfig
from models.variants import find_variant


class Parser(ArgumentParser):
    """An argparse parser that answers a mistake with a sentence, and suggests the flag that was meant.

    `--help` leaves out the arguments in `hidden`; `--help-all` shows them too.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Help, **settings)
        self.hidden: set[str] = set()
        # A script's own flags of type int and float give the same sentences as those of main.py.
        self.register("type", int, integer)
        self.register("type", float, number)
        # argparse's pattern takes -1e-3 and -inf for flags, and then calls the value missing.
        self._negative_number_matcher = re.compile(r"-(\d|\.\d|inf|nan)", re.IGNORECASE)

    def add_flags(self, flags: Sequence[Flag], hidden: bool = False) -> None:
        """Add the flags, in groups. hidden: show them with --help-all only."""
        groups = {name: self.add_argument_group(name) for name in dict.fromkeys(one.group for one in flags)}
        for one in flags:
            one.add_to(groups[one.group].add_argument)
        self.hidden |= {one.name for one in flags if hidden or one.hidden}
        self.add_argument("--help-all", action=_HelpAll, help="show all flags, those without effect too")

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))

    def print_help(self, file: Any = None) -> None:
        stdout_is_result()
        super().print_help(file)

    def format_help(self) -> str:
        with self._as_shown(self.hidden):
            return super().format_help()

    @contextmanager
    def _as_shown(self, hidden: set[str]) -> Iterator[None]:
        """A usage line of required arguments only, and no help of hidden ones."""
        needed = [action for action in self._actions if action.required or not action.option_strings]
        words = [" ".join((*action.option_strings[:1], _metavar(action))) for action in needed]
        flags = [] if len(self._actions) - len(needed) < 2 else ["[flags]"]
        left_out = [action for action in self._actions if action.dest in hidden]
        texts = [action.help for action in left_out]
        self.usage = " ".join(("python", self.prog, *words, *flags)).replace("%", "%%")
        for action in left_out:
            action.help = argparse.SUPPRESS
        try:
            yield
        finally:
            self.usage = None  # argparse makes the names of subcommands from it
            for action, text in zip(left_out, texts, strict=True):
                action.help = text

    def parse(self, argv: Sequence[str] | None) -> Namespace:
        """Like parse_args, but a misspelt flag is answered with the nearest one."""
        words = list(sys.argv[1:] if argv is None else argv)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                if not words or words[0].startswith("-"):
                    return self.parse_args(words)
                try:
                    self._check_value(action, words[0])
                except argparse.ArgumentError as error:
                    self.error(str(error))
                args = action.choices[words[0]].parse(words[1:])
                setattr(args, action.dest, words[0])
                return args
        for word in words:
            # Before argparse looks: to it, a required flag that is misspelt is one that is missing.
            if word.startswith("-") and " " not in word and not self._is_known(word):
                self._refuse(word)
        args, unknown = self.parse_known_intermixed_args(words)  # positional ones may stand anywhere
        if unknown:
            self._refuse(unknown[0])
        return args

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """argparse's check of `choices`, with the nearest one."""
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(action, unknown(f"{value!r} is unknown", str(value), names))

    def _is_known(self, word: str) -> bool:
        name = word.split("=")[0]
        return name in self._option_string_actions or bool(self._negative_number_matcher.match(word))

    def _refuse(self, text: str) -> NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings]
        near = difflib.get_close_matches(text.split("=")[0], flags, n=1, cutoff=0.7)
        if not text.startswith("-"):
            raise UsageError(f"{text!r} belongs to no flag; `python {self.prog} --help` lists them")
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"unknown flag {text}; {hint}`python {self.prog} --help` lists them")


class _Help(argparse.HelpFormatter):
    """Shows each default after its explanation."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=110)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        without = action.default is None or action.default is False or action.default is argparse.SUPPRESS
        if not action.option_strings or without or "default:" in (action.help or ""):
            return action.help
        return f"{action.help} (default: %(default)s)"

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        return super()._format_args(action, action.metavar or "X")


class _HelpAll(argparse.Action):
    """`--help-all`: the help of all arguments."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: Any, *_: Any) -> None:
        parser.hidden = set()
        parser.print_help()
        parser.exit()


def _metavar(action: argparse.Action) -> str:
    if isinstance(action.metavar, str):
        return action.metavar
    return action.dest.upper() if action.option_strings else action.dest


def build_parser(description: str | None = None, **settings: Any) -> Parser:
    """The parser with all flags of main.py (`config.base.all_flags`)."""
    parser = Parser(description=description, **settings)
    parser.add_flags(all_flags())
    return parser


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """All flags of main.py, defaults filled in, checked. Raises UsageError with one sentence.

    With --experiment, the flags of that experiment replace the defaults; flags given next to it win.
    """
    example = (
        "Train a model: `python main.py --model ln_cotformer --n_repeat 3`. The same command resumes it."
    )
    parser = build_parser(example)
    parser.add_argument(
        "--experiment",
        type=nullable(str),
        default=None,
        help="an experiment of config/experiments.py, such as table2/ln-cotformer; explicit flags override "
        "it",
    )
    parser.add_argument(
        "--scale",
        type=choice(tuple(SCALES)),
        default="paper",
        help="--experiment: the published size (paper), an hour on a GPU (small) or two CPU cores (nano)",
    )
    args = parser.parse(argv)
    if args.experiment is not None:
        parser.set_defaults(**scaled(find_experiment(args.experiment).flags, args.scale))
        args = parser.parse(argv)
    elif args.scale != "paper":
        raise UsageError(f"--scale {args.scale} is a size of an --experiment; name one")
    return validated(args)


def parse_with_run(
    argv: Sequence[str] | None,
    add_own_flags: Callable[[ArgumentParser], None],
    description: str | None,
    hidden: bool = True,
) -> tuple[Namespace, dict[str, Any]]:
    """Parse the flags of a script that works on a trained run.

    A flag of its own takes the place of one of main.py with the same name.

    Args:
        hidden: whether --help leaves out the flags of main.py.

    Returns:
        The script's own flags, and those flags of main.py that were given, to replace the run's: for
        `complete`, once the run's own are known. Each is checked by itself here already.
    """
    parser = Parser(
        description=description,
        epilog="Flags of main.py may be given too and replace those of the run"
        f"{'; --help-all lists them' if hidden else ''}.",
    )
    add_own_flags(parser)
    own = {action.dest for action in parser._actions}
    base = all_flags()
    parser.add_flags([one for one in base if one.name not in own], hidden)
    names = {one.name for one in base} - own
    for action in parser._actions:
        if action.dest in names:
            action.default = argparse.SUPPRESS
    values = vars(parser.parse(argv))
    given = {name: value for name, value in values.items() if name in names}
    check_values({one.name: one.default for one in base} | given)
    return Namespace(**{name: value for name, value in values.items() if name not in names}), given


def complete(run_args: Mapping[str, Any], given: Mapping[str, Any]) -> Namespace:
    """All flags: defaults, replaced by those of a run, replaced by those given now. Raises UsageError.

    run_args may come from an older version or from the released code: names that are no flags are left out,
    and so are flags that only concern how the run was started.
    """
    flags = all_flags()
    args = Namespace(**{one.name: one.default for one in flags})
    for one in flags:
        if one.from_run and one.name in run_args and one.name not in given:
            setattr(args, one.name, _read_back(one, run_args[one.name]))
    vars(args).update(given)
    args.experiment, args.scale = run_args.get("experiment"), run_args.get("scale", "paper")
    return validated(args)


def _read_back(one: Flag, value: Any) -> Any:
    """A value from a run's file, checked as if it had been given; the default for a None.

    Files are edited by hand, and the released code's hold None where it did not know (dtype).
    """
    if value is None:
        return one.default
    try:
        if isinstance(value, list):
            return [one.reader(str(item)) for item in value]
        return one.reader(str(value))
    except ArgumentTypeError as error:
        raise UsageError(f"the run has --{one.name} {error}; give --{one.name} to replace it") from error


def validated(args: Namespace) -> Namespace:
    """The same flags, checked, with the full name of the model in place of its alias. Raises UsageError."""
    args.model = find_variant(args.model).name
    for one in all_flags():
        if one.is_list and getattr(args, one.name) == [None]:
            setattr(args, one.name, None)
    check_values(vars(args))
    ModelConfig.from_args(args)
    return args
