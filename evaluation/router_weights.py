"""Router scores of every token at full depth (Figure 5), streamed to a compressed file.

Shapes: B batch, T tokens of a sequence, R = n_repeat, N tokens in all.
"""

import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from tqdm import tqdm

from errors import Failure, UsageError
from evaluation.calibration import cascade, router_scores, routers_digest
from evaluation.reports import check_place, result_path
from evaluation.restore import Restored
from files import read_json, write_atomically, write_json
from tables import aligned_table

# Arrays of the file; their descriptions are written to the .json.
KINDS = {
    "raw": "the score that each router gives a token",
    "cascade": "the lowest score of a token so far, token by token: a common threshold selects by it",
    "position_cascade": "the lowest score so far in a row of the batch, where unsorted top-k reorders the "
    "rows: what the released script computed; it mixes tokens, and is for comparison only",
}
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
LOW = 0.01  # the reproduction of the paper counts scores below it


def position_cascade(scores: np.ndarray) -> np.ndarray:
    """Returns the released script's running minimum, (B, T, R - 1), by row of its batch.

    At full capacity every top-k keeps all tokens but permutes them; that script took the minimum over rows,
    so over different tokens.

    Args:
        scores: (B, T, R - 1) in token order.
    """
    by_token = torch.from_numpy(scores)
    length = by_token.shape[1]
    order = torch.arange(length).expand(by_token.shape[:2])
    rows = [by_token[..., 0]]
    for router in range(1, by_token.shape[-1]):
        before = by_token[..., router - 1].gather(1, order)
        order = order.gather(1, before.topk(length, dim=1, sorted=False).indices)
        rows.append(torch.minimum(rows[-1], by_token[..., router].gather(1, order)))
    return torch.stack(rows, -1).numpy()


def weights_path(run: Restored, output_dir: Path | None, split: str = "val") -> Path:
    """Returns router_weights_<checkpoint>.npz, see `reports.result_path`."""
    return result_path("router_weights", run, output_dir, ".npz", split=None if split == "val" else split)


def require_routers(run: Restored) -> None:
    """Raises UsageError for a model without routers."""
    config = run.model.config
    if not config.variant.routed or config.n_repeat == 1:
        raise UsageError(
            f"{run.path} is a {config.variant.paper_name} of {config.repeats} passes and has no routers; "
            "give a run of adm or adaptive_but"
        )


def identity(run: Restored, split: str) -> dict[str, Any]:
    """Returns everything that the scores depend on."""
    return {
        "model": run.args.model,
        "step": run.step,
        "routers_sha256": routers_digest(run.model),
        "dataset": run.args.dataset,
        "split": split,
        "sequence_length": run.sequence_length,
        "sample_size": run.args.eval_sample_size,
        "arithmetic": run.precision.reason,
    }


def extract(run: Restored, split: str, output_dir: Path | None) -> tuple[Path, dict[str, Any]]:
    """Score every token of a split at full depth and write the scores.

    The .npz holds an array (N, R - 1), float32, for each of KINDS. Memory holds one batch, as scores are
    written to disk batch by batch.

    Returns:
        The path of the .npz, and the content of the .json next to it.

    Raises:
        UsageError: the model has no routers, or the folder cannot be written.
        Failure: writing fails.
    """
    require_routers(run)
    batches = run.batches(split)
    n_tokens, count = batches.windows * run.sequence_length, run.model.config.n_repeat - 1
    path = weights_path(run, output_dir, split)
    check_place(path, output_dir)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="router_weights_") as folder:
            arrays = {
                name: np.lib.format.open_memmap(
                    Path(folder) / f"{name}.npy", mode="w+", dtype=np.float32, shape=(n_tokens, count)
                )
                for name in KINDS
            }
            start = 0
            bar = tqdm(batches, desc="router scores", unit="batch", disable=None)
            for scores in router_scores(run.model, bar, run.precision, thresholds=[0.0] * count):
                part = slice(start, start + len(scores))
                arrays["raw"][part], arrays["cascade"][part] = scores, cascade(scores)
                by_row = position_cascade(scores.reshape(-1, run.sequence_length, count))
                arrays["position_cascade"][part] = by_row.reshape(-1, count)
                start += len(scores)
            summary = {
                "checkpoint": str(run.path),
                **identity(run, split),
                "n_repeat": run.model.config.n_repeat,
                "tokens": n_tokens,
                "kinds": KINDS,
                "statistics": {
                    name: [_statistics(array[:, router]) for router in range(count)]
                    for name, array in arrays.items()
                },
            }
            for array in arrays.values():
                array.flush()
            write_atomically(path, lambda file: _zip(Path(folder), file))
    except OSError as error:
        raise Failure(f"cannot write {path}: {error.strerror or error}") from error
    write_json(path.with_suffix(".json"), summary)
    return path, summary


def _statistics(scores: np.ndarray) -> dict[str, Any]:
    """Statistics of one router's scores (N,)."""
    quantiles = np.quantile(scores, QUANTILES)
    return {
        "mean": float(scores.mean(dtype=np.float64)),
        "quantiles": {str(q): float(value) for q, value in zip(QUANTILES, quantiles, strict=True)},
        "fraction_under_0.01": float((scores < LOW).mean()),
    }


def _zip(folder: Path, file: BinaryIO) -> None:
    """Write the folder's arrays as an .npz, copied in pieces."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in (f"{kind}.npy" for kind in KINDS):
            with archive.open(name, "w", force_zip64=True) as target, open(folder / name, "rb") as source:
                shutil.copyfileobj(source, target)


def read_weights(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the arrays of the .npz, by kind, and the content of its .json.

    Raises:
        UsageError: one of the files is missing.
        Failure: one of them is damaged.
    """
    about = path.with_suffix(".json")
    for part in (path, about):
        if not part.is_file():
            raise UsageError(f"{part} is missing; python get_router_weights.py --checkpoint ... writes it")
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in KINDS}
        return arrays, read_json(about)
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise Failure(
            f"{path} is damaged or not a file of router weights; delete it and extract again"
        ) from error


def describe(summary: dict[str, Any]) -> str:
    """Returns a table of the statistics."""
    rows: list[tuple[str, ...]] = [("", "router", "mean", "median", "95 %", "under 0.01")]
    for kind, routers in summary["statistics"].items():
        for number, entry in enumerate(routers, start=1):
            numbers = (entry["mean"], entry["quantiles"]["0.5"], entry["quantiles"]["0.95"])
            rows.append((
                kind if number == 1 else "",
                str(number),
                *(f"{value:.4f}" for value in numbers),
                f"{100 * entry['fraction_under_0.01']:.1f} %",
            ))  # fmt: skip
    return aligned_table(rows, "lr")
