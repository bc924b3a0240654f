"""What every script has in common: errors that print one sentence and no traceback, and log lines on stdout.

Modules log with `logger = logging.getLogger(__name__)`; `log_to_stdout` prints their messages. A script goes
on when its output is lost: the reader of a pipe has gone, the log's disk is full, the terminal was cut.
"""

import difflib
import errno
import io
import logging
import os
import select
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO


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


# Parts of torch's errors, on a GPU and on the CPU.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory")


def explained(error: BaseException) -> Failure | None:
    """An error of torch that flags avoid, as a sentence about them; None for any other."""
    text = str(error)
    if isinstance(error, RuntimeError) and "does not have a deterministic implementation" in text:
        return Failure(
            f"{text.split()[0]} is an operation without a deterministic form on this device: give "
            "--deterministic false, with which a run resumes up to rounding instead of bit for bit"
        )
    if isinstance(error, RuntimeError) and any(part in text for part in _OUT_OF_MEMORY):
        return Failure(
            f"{'. '.join(text.split('. ')[:3])}: give a smaller --batch_size, in training with more "
            "--acc_steps for the same step, or --activation_checkpointing block"
        )
    return None


def duration(seconds: float) -> str:
    """Like 2h05m, or 3m07s."""
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main() with log lines on stdout; a `Failure` prints its sentence and sets the exit code.

    Characters that the terminal's encoding lacks are printed as \\uXXXX. Output that cannot be written is
    lost, with a warning on stderr, and the script goes on; unless it called `stdout_is_result`.

    Exit codes: 1 `Failure`, 2 `UsageError`, 130 Ctrl-C.
    """
    _keep_output_open()
    log_to_stdout()
    code: int | str | None = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    except Failure as error:
        code = _print_error(f"error: {error}", error.exit_code)
    except RuntimeError as error:
        failure = explained(error)
        if failure is None:
            raise
        code = _print_error(f"error: {failure}", failure.exit_code)
    except KeyboardInterrupt as stop:
        code = _print_error(f"interrupted{': ' + str(stop) if str(stop) else ''}", 130)
        sys.stdout.flush()
        os._exit(code)  # at once: a thread may be in the middle of a long write, which is atomic
    if code and _stdout is not None:
        _stdout.is_result = False  # this error comes first
    sys.stdout.flush()
    sys.exit(code)


def stdout_is_result() -> None:
    """Declare that a script has no result but what it prints: it ends as soon as stdout is lost.

    With exit code 0 where the reader has gone, as in `... | head`, else with 1 and a sentence.

    Raises Failure if stdout was closed from the start.
    """
    if _stdout is not None:
        if _stdout.closed_from_start:
            raise Failure("stdout is closed, and the result is printed there")
        _stdout.is_result = True


def stdout_lost() -> bool:
    """Whether some of the output could not be written so far."""
    sys.stdout.flush()
    return _stdout is not None and _stdout.lost


class _Output(io.FileIO):
    """stdout or stderr; writes that fail do not raise."""

    def __init__(self, stream: TextIO | None, name: str) -> None:
        """stream: the one to replace; None: it was closed when the script started, and nothing is written."""
        self.closed_from_start = self.lost = stream is None
        self.is_result = False
        self._name = name
        super().__init__(os.devnull if stream is None else stream.fileno(), "wb", closefd=stream is None)

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest:
                written = super().write(rest)
                if written is None:  # a full pipe that another process has made non-blocking
                    select.select([], [self], [])
                rest = rest[written or 0 :]
        except OSError as error:
            first, self.lost = not self.lost, True
            if first and self._name == "stdout":
                self._on_loss(error)
        return size

    def _on_loss(self, error: OSError) -> None:
        if self.is_result and error.errno == errno.EPIPE:
            raise SystemExit(0)
        what = f"cannot write to stdout: {error.strerror}"
        if self.is_result:
            raise SystemExit(_print_error(f"error: {what}", 1))
        _print_error(f"warning: {what}; the work goes on without it", 0)


_stdout: _Output | None = None  # that of this process, once run_script has put it in place


def _keep_output_open() -> None:
    """Replace sys.stdout and sys.stderr by streams whose writes cannot fail; those of tests stay."""
    global _stdout
    while True:  # files opened later must not get the numbers of closed streams: libraries write to them
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            break
        os.set_inheritable(descriptor, True)
    if sys.stdout is sys.__stdout__:
        _stdout = _Output(sys.stdout, "stdout")
        sys.stdout = _text_stream(_stdout, sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text_stream(_Output(sys.stderr, "stderr"), sys.stderr)


def _text_stream(raw: _Output, old: TextIO | None) -> io.TextIOWrapper:
    """A text stream to `raw` with the encoding and buffering of the one it replaces."""
    if old is None:
        return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace")
    chosen = old.errors not in ("strict", "surrogateescape")  # by PYTHONIOENCODING
    return io.TextIOWrapper(
        raw if old.write_through else io.BufferedWriter(raw),
        old.encoding,
        old.errors if chosen else "backslashreplace",
        line_buffering=old.line_buffering,
        write_through=old.write_through,
    )


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
    """Prints to the sys.stdout of the moment."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or _is_main_rank()

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


def _is_main_rank() -> bool:
    return (os.environ.get("RANK") or "0") == "0"


def _print_error(sentence: str, exit_code: int) -> int:
    # All the processes that torchrun starts read the same flags: one reports what is wrong with them.
    if _is_main_rank():
        print(sentence, file=sys.stderr, flush=True)
    return exit_code
