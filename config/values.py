"""How the text of a flag becomes a value, or a sentence that says what was expected."""

import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from typing import Any

from errors import unknown

Reader = Callable[[str], Any]


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

    def read_or_none(text: str) -> Any:
        return None if text.lower() == "none" else read(text)

    return read_or_none


def choice(allowed: Sequence[str]) -> Reader:
    """One of `allowed`; for anything else the nearest is suggested."""

    def read(text: str) -> str:
        if text in allowed:
            return text
        raise ArgumentTypeError(unknown(f"{text!r} is unknown", text, allowed))

    return read


def choice_or(allowed: Sequence[str], other: Callable[[str], bool], what: str) -> Reader:
    """One of `allowed`, or a text for which `other` holds; what: how such a text is called."""

    def read(text: str) -> str:
        return text if other(text) else choice((*allowed, what))(text)

    return read


def dtype(text: str) -> str:
    """torch.bfloat16, torch.float16 or torch.float32, with or without "torch."."""
    return "torch." + choice(("bfloat16", "float16", "float32"))(text.removeprefix("torch."))


def device(text: str) -> str:
    """auto, cpu, cuda or cuda:N."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise ArgumentTypeError(f"{text!r} is no device; choose from auto, cpu, cuda, cuda:N")
    return text
