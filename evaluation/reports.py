"""Reports of evaluations: names and places of their files, eval_summary_<checkpoint>.json, lines to print."""

import hashlib
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errors import UsageError, stdout_is_result
from files import folder_name, why_unwritable
from optim.validation import Evaluation

if TYPE_CHECKING:
    from evaluation.restore import Restored

logger = logging.getLogger(__name__)

_LONGEST = 120  # characters about an evaluation in a file's name


def summarise(result: Evaluation, **about: Any) -> dict[str, Any]:
    """Returns the content of the .json; losses in nats per token.

    Args:
        result: of one split.
        about: model, data and settings of the evaluation, which come first in the file.
    """
    return {
        **about,
        "loss": result.loss,
        "loss_standard_error": result.loss_standard_error,
        "loss_interval_95": result.loss_interval,
        "perplexity": result.perplexity,
        "perplexity_interval_95": result.perplexity_interval,
        "interval_is": "1.96 standard errors over batches of one model; it says nothing about other seeds",
        "accuracy": result.accuracy,
        "sequence_accuracy": result.sequence_accuracy,
        "average_depth": result.average_depth,
        "tokens_per_pass": result.tokens_per_pass,
        "seconds_per_token": result.seconds_per_token,
        "tokens": result.tokens,
        "batches": len(result.batch_losses),
        "batch_losses": result.batch_losses,
    }


def result_path(
    kind: str, run: "Restored", output_dir: Path | None, ending: str = ".json", **own: Any
) -> Path:
    """Returns the path of a result, next to the checkpoint or in output_dir.

    It is <kind>_<checkpoint><ending> for a full evaluation of the run as it was trained. Others never replace
    that, as their flags are in their names: eval_summary_ckpt_eval_sample_size=10.json.

    Args:
        own: flags of the script that change the result; None: not given.
    """
    given = {**run.replaced, **{name: value for name, value in own.items() if value is not None}}
    parts = [f"_{name}={_in_name(name, value)}" for name, value in given.items()]
    about = re.sub(r"[^\w.,=+-]+", "-", "".join(parts), flags=re.ASCII)
    if len(about) > _LONGEST:
        about = f"{about[:_LONGEST]}-{hashlib.sha256(about.encode()).hexdigest()[:8]}"
    return (output_dir or run.path.parent) / f"{kind}_{run.path.stem}{about}{ending}"


def _in_name(name: str, value: Any) -> str:
    if name == "dataset":
        return folder_name(value)
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def check_place(path: Path, output_dir: Path | None, printed: bool = False) -> bool:
    """Check, before an evaluation, that its result can be written. Returns whether it will be.

    Args:
        output_dir: the flag that was given.
        printed: the script also prints the result: without an output_dir that is enough, and it is said.

    Raises UsageError otherwise.
    """
    reason = why_unwritable(path.parent)
    if reason is None:
        return True
    if output_dir is not None or not printed:
        raise UsageError(f"{path} cannot be written ({reason}); give another --output_dir")
    logger.warning(f"{path} cannot be written ({reason}): the result is only printed; --output_dir keeps it")
    stdout_is_result()
    return False


def describe(result: Evaluation) -> str:
    """Returns one line with perplexity, loss, accuracy and depth."""
    low_high = result.perplexity_interval
    interval = f" (95 % over batches: {low_high[0]:.3f} to {low_high[1]:.3f})" if low_high else ""
    return (
        f"perplexity {result.perplexity:.3f}{interval}, loss {result.loss:.4f}, "
        f"accuracy {100 * result.accuracy:.2f} %, average depth {result.average_depth:g}, "
        f"{result.tokens:,} tokens in {len(result.batch_losses)} batches"
    )


def describe_task(split: str, result: Evaluation) -> str:
    """Returns one line about a split of an algorithmic task, whose answers are either right or wrong."""
    return (
        f"{split}: accuracy {100 * result.accuracy:.2f} % of {result.tokens:,} answers, all right in "
        f"{100 * result.sequence_accuracy:.2f} % of {sum(result.batch_sequences):,} sequences, "
        f"loss {result.loss:.4f}"
    )
