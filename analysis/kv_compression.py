"""How far keys and values could be compressed: `python -m analysis.kv_compression --checkpoint <run>`.

Spectra and effective ranks of W_K and W_V, and of keys (before rotary), values and both together on text, by
layer and repeat and over the repeats; what an MLA latent of given ranks would keep of them and how many bytes
it would save; the entropy of attention. `analysis.spectra` defines energy and effective rank.
"""

import argparse
from typing import Any

from analysis import command
from errors import UsageError, run_script
from flags import choice


def add_flags(parser: argparse.ArgumentParser) -> None:
    command.add_flags(parser, "kv_compression")
    parser.add_argument(
        "--ranks",
        type=int,
        nargs="+",
        help="numbers of an MLA latent to try (default: 1/16, 1/8, 1/4, 1/2 and 3/4 of n_embd)",
    )
    parser.add_argument(
        "--stacked",
        type=choice(("auto", "true", "false")),
        default="auto",
        help="also treat a token's keys and values of all repeats as one vector, which takes "
        "8 * (2 * n_embd * n_repeat)^2 bytes a middle layer (default: auto: where all take less than 4 GiB)",
    )


def main() -> None:
    own, given = command.parse(add_flags, __doc__)
    if own.ranks is not None and min(own.ranks) < 1:
        raise UsageError(f"--ranks {min(own.ranks)}: a latent has at least one number")
    import numpy as np

    from analysis import compression
    from analysis.cache_statistics import gather
    from evaluation.routing import RouteFinder
    from files import write_atomically, write_json
    from plots import kv_compression

    analysis = command.begin(own, given, "kv_compression")
    run = analysis.run
    width = run.model.config.n_embd
    ranks = compression.check_ranks(own.ranks or compression.default_ranks(width), width)
    route = RouteFinder(run).from_flags()
    if route.about:
        print(route)
    stacked = _stacked(own.stacked, run.model.config, route)
    batches = command.watched(analysis.batches, "keys and values")
    statistics = gather(run.model, batches, run.precision, stacked, **route.settings)

    weights, spectra_of_weights = compression.weight_spectra(run.model)
    data, spectra_of_data = compression.data_spectra(
        statistics, lambda places: command.watched(places, "spectra", "layer")
    )
    latents = compression.latents(
        statistics,
        ranks,
        run.precision.dtype.itemsize,
        lambda layers: command.watched(layers, "latents", "layer"),
    )
    spectra = spectra_of_weights | spectra_of_data
    content = analysis.about(
        **route.about,
        n_embd=width,
        n_repeat=run.model.config.repeats,
        weights=weights,
        data=data,
        attention=compression.attention_entropies(statistics),
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
    """Whether to stack the repeats. Raises UsageError where it is asked for and cannot be."""
    from analysis.cache_statistics import STACKED_LIMIT, stacked_bytes

    if asked == "false" or config.repeats == 1:
        return False
    if not route.full and config.variant.repeater == "mixture_of_repeats":
        if asked == "true":
            raise UsageError(
                "--stacked true: with these capacities not every token has entries of all repeats; leave "
                "--eval_length_factor and --routing_threshold out"
            )
        return False
    needed = stacked_bytes(config)
    if asked == "auto" and needed > STACKED_LIMIT:
        print(f"repeats are not stacked: --stacked true would take {needed / 2**30:.1f} GiB")
        return False
    return True


def _table(latents: dict[str, Any]) -> str:
    """For the terminal: what latents keep, over layers."""
    full = latents["full_cache_bytes_per_token"]
    lines = [
        f"full cache: {full:,.0f} bytes a token",
        "  rank  bytes a token  energy kept: least of a layer   mean",
    ]
    for entry in latents["ranks"]:
        kept = [of_layer["shared"] for of_layer in entry["energy_kept"].values()]
        mean = sum(kept) / len(kept)
        lines.append(f"{entry['rank']:6} {entry['bytes_per_token']:14,.0f} {min(kept):29.4f} {mean:6.4f}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
