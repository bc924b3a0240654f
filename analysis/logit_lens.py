"""What is predicted at each depth: `python -m analysis.logit_lens --checkpoint <run>`.

The end blocks, the last LayerNorm and the head are applied after each repeat, as if all tokens stopped there:
loss, accuracy, agreement with the whole model, divergence from it. `analysis.lens` has the definitions.
"""

import argparse

from analysis import command
from errors import UsageError, run_script


def add_flags(parser: argparse.ArgumentParser) -> None:
    command.add_flags(parser, "logit_lens")
    parser.add_argument("--layers", action="store_true", help="after each block too, without the end blocks")
    parser.add_argument(
        "--no_end_blocks", action="store_true", help="LayerNorm and head right after the repeats"
    )


def main() -> None:
    own, given = command.parse(add_flags, __doc__)
    from analysis.lens import MEASURES, look
    from evaluation.routing import RouteFinder
    from files import write_json
    from plots import logit_lens

    analysis = command.begin(own, given, "logit_lens", attentions=("mha", "mla"))
    run = analysis.run
    if run.model.config.rows_per_token > 1:
        raise UsageError(
            f"{run.path} is a {run.model.config.variant.paper_name}: it predicts from its pauses only"
        )
    route = RouteFinder(run).from_flags()
    if route.about:
        print(route)
    depths = look(
        run.model,
        command.watched(analysis.batches, "depths"),
        run.precision,
        layers=own.layers,
        through_end_blocks=not own.no_end_blocks,
        **route.settings,
    )
    content = analysis.about(**route.about, through_end_blocks=not own.no_end_blocks, depths=depths)
    write_json(analysis.path(".json"), content)
    drawn = logit_lens.draw(content, analysis.path(""))
    width = max(len(name) for name in depths)
    print("  ".join([" " * width, *(f"{name:>10}" for name in MEASURES)]))
    for name, measured in depths.items():
        print("  ".join([name.ljust(width), *(f"{measured[measure]:10.4f}" for measure in MEASURES)]))
    print(f"written: {analysis.path('.json')}, {', '.join(drawn)}")


if __name__ == "__main__":
    run_script(main)
