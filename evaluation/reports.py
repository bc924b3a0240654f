"""Reports of evaluations: eval_summary_<checkpoint>.json, and lines for the terminal."""

from pathlib import Path
from typing import Any

from optim.validation import Evaluation


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


def summary_path(checkpoint: Path, output_dir: Path | None) -> Path:
    """Returns eval_summary_<checkpoint>.json, next to the checkpoint or in output_dir."""
    return (output_dir or checkpoint.parent) / f"eval_summary_{checkpoint.stem}.json"


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
