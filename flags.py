"""Flags of the command line as dataclass fields: one field with its metadata is the only home of a flag.

A field made by `flag` gives its argparse argument, the check of its value, its part in a run's name, the note
that a model does not read it, and its line in docs/parameters.md. Nothing here imports torch.
"""

import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from types import NoneType
from typing import Any, NamedTuple, get_args, get_origin

from errors import UsageError, unknown

Reader = Callable[[str], Any]
UNUSED = "accepted for old commands; no effect"


class Identity(Enum):
    """When a flag is part of what makes an experiment another one, and so of the name of its run.

    New flags are WHEN_CHANGED, so that a flag at its default renames no run. The others keep the names of
    runs that are older than that rule.
    """

    NEVER = "it does not change what is computed, or only for how long"
    WHEN_CHANGED = "if the model reads it and its value is not the default"
    WHEN_READ = "if the model reads it"
    ALWAYS = "always; None if the model does not read it"


class Bound(NamedTuple):
    """Which values are allowed, and the end of the sentence that refuses the others."""

    holds: Callable[[Any], bool]
    rule: str


def at_least(least: int) -> Bound:
    return Bound(lambda value: value >= least, f"must be at least {least}")


NOT_NEGATIVE = Bound(lambda value: value >= 0, "must not be negative")
POSITIVE = Bound(lambda value: value > 0, "must be above 0")
FRACTION = Bound(lambda value: 0 <= value <= 1, "is a fraction, from 0 to 1")
RATE = Bound(lambda value: 0 <= value < 1, "must be at least 0 and below 1")
PROBABILITY = Bound(lambda value: 0 < value < 1, "is a probability, above 0 and below 1")


@dataclass(frozen=True)
class Flag:
    """A flag. `flag` describes the arguments; name and annotation are those of the dataclass field."""

    name: str
    annotation: Any
    default: Any
    help: str
    group: str
    choices: tuple[str, ...] | None = None
    read: Reader | None = None
    bound: Bound | None = None
    identity: Identity = Identity.WHEN_CHANGED
    read_by: str | None = None
    implied: Any = None
    from_run: bool = True
    hidden: bool = False

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value: given or not."""
        return self.annotation is bool and self.implied is None

    @property
    def is_list(self) -> bool:
        return any(get_origin(kind) is Sequence for kind in self._kinds)

    @property
    def reader(self) -> Reader:
        """Text -> value; for a list, of one of its values. Raises ArgumentTypeError with a sentence."""
        kind = next(kind for kind in self._kinds if kind is not NoneType)
        kind = get_args(kind)[0] if get_origin(kind) is Sequence else kind
        of_type: dict[Any, Reader] = {int: integer, float: number, bool: truth, str: str}
        read = self.read or (choice(self.choices) if self.choices else of_type[kind])
        return nullable(read) if NoneType in self._kinds else read

    @property
    def _kinds(self) -> tuple[Any, ...]:
        """The alternatives of the annotation, lists without their brackets."""
        if self.annotation in (int, float, bool, str):
            return (self.annotation,)
        return get_args(self.annotation)

    def refusal(self, value: Any) -> str | None:
        """Why a value is not allowed: the end of a sentence about it. None if it is allowed."""
        if value is None or self.is_list:
            return None
        if self.choices and value not in self.choices:
            return f"is unknown; choose from {', '.join(self.choices)}"
        if self.bound and not self.bound.holds(value):
            return self.bound.rule
        return None

    def add_to(self, add_argument: Callable[..., Any]) -> None:
        """Add the argument to an argparse parser or group."""
        arguments: dict[str, Any] = {"default": self.default, "help": self.help}
        if self.is_switch:
            arguments["action"] = "store_true"
        elif self.implied is not None:
            arguments |= {"type": self.reader, "nargs": "?", "const": self.implied}
        else:
            arguments |= {"type": self.reader, "nargs": "+"} if self.is_list else {"type": self.reader}
        add_argument(f"--{self.name}", **arguments)


def flag(default: Any, help: str, **about: Any) -> Any:
    """A dataclass field that is a flag.

    The type is read from the annotation: int, float, bool, str, `X | None` (the text None means None),
    `Sequence[float] | None` (several values).

    Args:
        help: what it means, in a few words; `--help` adds the default.
        group: its heading in `--help`.
        choices: the only values allowed.
        read: reads the value's text, instead of the reader of its type.
        bound: which values are allowed.
        identity: when it is part of a run's name; default `Identity.WHEN_CHANGED`.
        read_by: the feature that a model has if it reads the flag (`models.variants.Variant.features`);
            None: every model, or no model reads it.
        implied: the value of the flag if it is given without one.
        from_run: whether a command on a trained run takes it over from that run.
        hidden: shown by `--help-all` only.
    """
    return field(default=default, metadata={"help": help, **about})


def unused_flag(default: Any, **about: Any) -> Any:
    """A flag that old commands give and nothing reads."""
    return flag(default, UNUSED, identity=Identity.NEVER, hidden=True, **about)


def flags_of(*classes: type) -> list[Flag]:
    """The flags among the fields of dataclasses, in their order."""
    return [
        Flag(found.name, found.type, found.default, **found.metadata)
        for one in classes
        for found in fields(one)
        if "help" in found.metadata
    ]


def check(flags: Iterable[Flag], values: Mapping[str, Any], form: str = "--{} {}") -> None:
    """Check each value by itself. Raises UsageError for the first that is not allowed.

    form: how the sentence begins, with places for the name and the value.
    """
    for one in flags:
        refusal = one.refusal(values[one.name])
        if refusal is not None:
            raise UsageError(f"{form.format(one.name, values[one.name])} {refusal}")


def integer(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a whole number") from None
    if abs(value) >= 2**63:
        raise ArgumentTypeError(f"{text!r} is too large a number")
    return value


def number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a number") from None
    if value != value or value in (float("inf"), float("-inf")):
        raise ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def truth(text: str) -> bool:
    """true/false, yes/no, 1/0: bool("False") would be True."""
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in known:
        raise ArgumentTypeError(f"{text!r} is neither true nor false")
    return known[text.lower()]


def nullable(read: Reader) -> Reader:
    """`read`, but the text None means None."""
    return lambda text: None if text.lower() == "none" else read(text)


def choice(allowed: Sequence[str]) -> Reader:
    """One of `allowed`; the refusal of anything else suggests the nearest."""

    def read(text: str) -> str:
        if text in allowed:
            return text
        raise ArgumentTypeError(unknown(f"{text!r} is unknown", text, allowed))

    return read


def choice_or(allowed: Sequence[str], other: Callable[[str], bool], what: str) -> Reader:
    """One of `allowed`, or a text for which `other` holds; what: how the refusal calls such a text."""
    return lambda text: text if other(text) else choice((*allowed, what))(text)


def dtype(text: str) -> str:
    """torch.bfloat16, torch.float16 or torch.float32, with or without "torch."."""
    return "torch." + choice(("bfloat16", "float16", "float32"))(text.removeprefix("torch."))


def device(text: str) -> str:
    """auto, cpu, cuda or cuda:N."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise ArgumentTypeError(f"{text!r} is no device; choose from auto, cpu, cuda, cuda:N")
    return text
