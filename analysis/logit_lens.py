"""The logit lens at each depth: `python -m analysis.logit_lens --checkpoint <run>`.

Applies the end blocks, the final LayerNorm and the head after each repeat, as if all tokens stopped there:
loss, accuracy, agreement with the full model, divergence from it. `analysis.lens` has the definitions.
"""

import argparse

from analysis import command
from errors import UsageError, run_script
from tables import aligned_table


def add_flags(parser: argparse.ArgumentParser) -> None:
    command.add_flags(parser, "logit_lens")
    parser.add_argument("--layers", action="store_true", help="also after each block, without the end blocks")
    parser.add_argument(
        "--no_end_blocks", action="store_true", help="apply LayerNorm and head right after the repeats"
    )


def main() -> None:
    own, given = command.parse(add_flags, __doc__)
    from analysis.lens import MEASURES, logit_lens
    from evaluation.routing import RouteFinder
    from files import write_json
    from plots import logit_lens as figure

    analysis = command.begin(own, given, "logit_lens", attentions=("mha", "mla"))
    run = analysis.run
    if run.model.config.positions_per_token > 1:
        raise UsageError(
            f"{run.path} is a {run.model.config.variant.paper_name}: it predicts from its pauses only"
        )
    route = RouteFinder(run).from_flags()
    if route.about:
        print(route)
    depths = logit_lens(
        run.model,
        command.progress(analysis.batches, "depths"),
        run.precision,
        layers=own.layers,
        through_end_blocks=not own.no_end_blocks,
        **route.settings,
    )
    content = analysis.about(**route.about, through_end_blocks=not own.no_end_blocks, depths=depths)
    write_json(analysis.path(".json"), content)
    drawn = figure.draw(content, analysis.path(""))
    rows = [(name, *(f"{means[measure]:.4f}" for measure in MEASURES)) for name, means in depths.items()]
    print(aligned_table([("", *MEASURES), *rows], "lr"))
    print(f"written: {analysis.path('.json')}, {', '.join(drawn)}")


if __name__ == "__main__":
    run_script(main)
