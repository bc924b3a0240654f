"""The two kinds of mistake that are answered with one sentence instead of a traceback."""

import difflib
import os
import sys
from collections.abc import Callable, Iterable


class Failure(Exception):
    """Something outside the program went wrong (a damaged file, a diverged run): exit code 1."""

    exit_code = 1


class UsageError(Failure, ValueError):
    """What was asked for is impossible (a wrong value, a missing input): exit code 2."""

    exit_code = 2


def unknown(what: str, name: str, allowed: Iterable[str]) -> str:
    """The sentence for a name that is none of `allowed`: with the nearest one, and all of them."""
    allowed = list(allowed)
    near = difflib.get_close_matches(name, allowed, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{what}; {hint}choose from {', '.join(allowed)}"


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main(); a `Failure` becomes its sentence on stderr and its exit code."""
    try:
        main()
    except Failure as error:
        sys.exit(_say(f"error: {error}", error.exit_code))
    except KeyboardInterrupt as stop:
        code = _say(f"interrupted{': ' + str(stop) if str(stop) else ''}", 130)
        sys.stdout.flush()
        os._exit(code)  # at once: a thread may be in the middle of a long write, which is atomic
    except BrokenPipeError:
        # The reader of our output has gone (`... | head`): not a failure of ours.
        sys.stdout = None
        sys.exit(0)


def _say(sentence: str, exit_code: int) -> int:
    # Of several processes that torchrun starts, all read the same flags: one says what is wrong with them.
    if os.environ.get("RANK", "0") != "0":
        return exit_code
    print(sentence, file=sys.stderr, flush=True)
    return exit_code
