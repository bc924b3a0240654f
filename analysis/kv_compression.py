"""How well keys and values compress: `python -m analysis.kv_compression --checkpoint <run>`.

Spectra and effective ranks of W_K and W_V, and of keys (before rotary), values and both on text, by layer and
repeat and over the repeats; the energy that MLA latents of given ranks would keep and the bytes they would
save; the entropy of attention. `analysis.statistics` defines energy and effective rank.
"""

import argparse
from typing import Any

from analysis import command
from errors import UsageError, run_script
from flags import choice
from tables import aligned_table


def add_flags(parser: argparse.ArgumentParser) -> None:
    command.add_flags(parser, "kv_compression")
    parser.add_argument(
        "--ranks",
        type=int,
        nargs="+",
        help="sizes of an MLA latent to try (default: 1/16, 1/8, 1/4, 1/2 and 3/4 of n_embd)",
    )
    parser.add_argument(
        "--stacked",
        type=choice(("auto", "true", "false")),
        default="auto",
        help="also treat a token's keys and values of all repeats as one vector, which takes "
        "8 * (2 * n_embd * n_repeat)^2 bytes a middle layer (default: auto: if all take less than 4 GiB)",
    )


def main() -> None:
    own, given = command.parse(add_flags, __doc__)
    if own.ranks is not None and min(own.ranks) < 1:
        raise UsageError(f"--ranks {min(own.ranks)}: a latent has at least one number")
    import numpy as np

    from analysis import kv_statistics
    from evaluation.routing import RouteFinder
    from files import write_atomically, write_json
    from plots import kv_compression

    analysis = command.begin(own, given, "kv_compression")
    run = analysis.run
    width = run.model.config.n_embd
    ranks = kv_statistics.check_ranks(own.ranks or kv_statistics.default_ranks(width), width)
    route = RouteFinder(run).from_flags()
    if route.about:
        print(route)
    stacked = _stacked(own.stacked, run.model.config, route)
    batches = command.progress(analysis.batches, "keys and values")
    found = kv_statistics.measure(run.model, batches, run.precision, stacked, **route.settings)

    weights, weight_spectra = kv_statistics.weight_spectra(run.model)
    data, data_spectra = kv_statistics.data_spectra(
        found, lambda places: command.progress(places, "spectra", "layer")
    )
    latents = kv_statistics.latents(
        found,
        ranks,
        run.precision.dtype.itemsize,
        lambda layers: command.progress(layers, "latents", "layer"),
    )
    spectra = weight_spectra | data_spectra
    content = analysis.about(
        **route.about,
        n_embd=width,
        n_repeat=run.model.config.repeats,
        weights=weights,
        data=data,
        attention=kv_statistics.attention_entropies(found),
        latents=latents,
        spectra=analysis.path(".npz").name,
    )
    arrays = {name: np.array(values) for name, values in spectra.items()}
    write_atomically(analysis.path(".npz"), lambda file: np.savez_compressed(file, **arrays))
    write_json(analysis.path(".json"), content)
    drawn = kv_compression.draw(content, spectra, analysis.path(""))
    print(_table(latents))
    print(f"written: {analysis.path('.json')}, {analysis.path('.npz').name}, {', '.join(drawn)}")


def _stacked(asked: str, config: Any, route: Any) -> bool:
    """Whether to stack the repeats. Raises UsageError if it is asked for and impossible."""
    from analysis.kv_statistics import STACKED_LIMIT, stacked_bytes

    if asked == "false" or config.repeats == 1:
        return False
    if not route.full and config.variant.routed and config.variant.sees_all_passes:
        if asked == "true":
            raise UsageError(
                "--stacked true: with these capacities not every token has keys and values of all repeats; "
                "leave --eval_length_factor and --routing_threshold out"
            )
        return False
    needed = stacked_bytes(config)
    if asked == "auto" and needed > STACKED_LIMIT:
        print(f"repeats are not stacked: --stacked true would take {needed / 2**30:.1f} GiB")
        return False
    return True


def _table(latents: dict[str, Any]) -> str:
    """Energy that shared latents keep, over layers."""
    rows = [("rank", "bytes a token", "energy kept: lowest of a layer", "mean")]
    for entry in latents["ranks"]:
        kept = [by_layer["shared"] for by_layer in entry["energy_kept"].values()]
        rows.append((
            str(entry["rank"]), f"{entry['bytes_per_token']:,.0f}", f"{min(kept):.4f}",
            f"{sum(kept) / len(kept):.4f}",
        ))  # fmt: skip
    full = latents["full_cache_bytes_per_token"]
    return f"full cache: {full:,.0f} bytes a token\n{aligned_table(rows, 'r')}"


if __name__ == "__main__":
    run_script(main)
