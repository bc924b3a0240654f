"""Attention map of the last token (Figure 6): `python get_attention.py --checkpoint <run>`."""

import argparse

from analysis import command
from errors import UsageError, run_script

NAME = "attention"


def add_flags(parser: argparse.ArgumentParser) -> None:
    command.add_flags(parser, NAME)
    parser.prog = "get_attention.py"
    parser.add_argument("--layer", type=int, help="index of a repeated layer, from 0 (default: the last)")
    parser.add_argument("--heads", type=int, nargs="+", help="indices from 0 (default: all)")


def main() -> None:
    own, given = command.parse(add_flags, __doc__)
    from analysis import attention_maps
    from evaluation.routing import RouteFinder

    analysis = command.begin(own, given, NAME, command.sees_all_passes, command="get_attention.py")
    run, config = analysis.run, analysis.run.model.config
    layer = attention_maps.choose_layer(config, own.layer)
    heads = attention_maps.choose_heads(range(config.n_head), own.heads)
    route = RouteFinder(run).from_flags()
    if not route.full:
        raise UsageError(
            f"{route}: with these not every token has keys of all repeats; leave --eval_length_factor and "
            "--routing_threshold out"
        )
    batches = command.progress(analysis.batches, "attention")
    found = attention_maps.measure_last_token(run.model, batches, run.precision, layer, **route.settings)
    about = analysis.about(
        **route.about,
        n_repeat=config.repeats,
        layer=layer,
        heads=heads,
        windows=found.windows,
    )
    path = analysis.path(".npz")
    content = attention_maps.write_attention(path, about, found.mean[heads].numpy())
    print(attention_maps.describe_attention(content))
    print(f"written: {path} and {path.with_suffix('.json').name}")


if __name__ == "__main__":
    run_script(main)
