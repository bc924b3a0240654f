"""What every script has in common: errors that print one sentence and no traceback, and log lines on stdout.

Modules log with `logger = logging.getLogger(__name__)`; `log_to_stdout` prints their messages.
"""

import difflib
import logging
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path


class Failure(Exception):
    """An error outside the program (a damaged file, a diverged run): exit code 1."""

    exit_code = 1


class UsageError(Failure, ValueError):
    """An impossible request (a wrong value, a missing input): exit code 2."""

    exit_code = 2


def unknown(what: str, name: str, allowed: Iterable[str]) -> str:
    """An error message: `what`, the allowed name closest to `name`, and all allowed names."""
    allowed = list(allowed)
    near = difflib.get_close_matches(name, allowed, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{what}; {hint}choose from {', '.join(allowed)}"


def duration(seconds: float) -> str:
    """Like 2h05m, or 3m07s."""
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main() with log lines on stdout; a `Failure` prints its sentence and sets the exit code.

    Exit codes: 1 `Failure`, 2 `UsageError`, 130 Ctrl-C, 0 where the reader of stdout has gone (`... | head`).
    """
    log_to_stdout()
    try:
        main()
    except Failure as error:
        sys.exit(_print_error(f"error: {error}", error.exit_code))
    except KeyboardInterrupt as stop:
        code = _print_error(f"interrupted{': ' + str(stop) if str(stop) else ''}", 130)
        sys.stdout.flush()
        os._exit(code)  # at once: a thread may be in the middle of a long write, which is atomic
    except BrokenPipeError:
        sys.stdout = None
        sys.exit(0)


def log_to_stdout() -> None:
    """Print the log messages of this project's modules, from INFO on. Calling it again changes nothing.

    A line is the message alone, after "warning: " for warnings, and stands above a progress bar that is open.
    Only rank 0 prints messages below ERROR. Loggers of libraries stay as they are.
    """
    here = Path(__file__).parent
    packages = {path.parent.name for path in here.glob("*/*.py")}
    for name in ("__main__", *packages, *(path.stem for path in here.glob("*.py"))):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.addHandler(_HANDLER)


class _StdoutHandler(logging.Handler):
    """Prints to the sys.stdout of the moment; errors of writing, a closed pipe above all, are raised."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or os.environ.get("RANK", "0") == "0"

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno == logging.WARNING:
            text = f"warning: {text}"
        if "tqdm" in sys.modules:  # otherwise no bar can be open
            from tqdm import tqdm

            with tqdm.external_write_mode(sys.stdout):
                print(text, flush=True)
        else:
            print(text, flush=True)


_HANDLER = _StdoutHandler()


def _print_error(sentence: str, exit_code: int) -> int:
    # All the processes that torchrun starts read the same flags: one reports what is wrong with them.
    if os.environ.get("RANK", "0") == "0":
        print(sentence, file=sys.stderr, flush=True)
    return exit_code
