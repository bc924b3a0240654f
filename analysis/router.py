"""Router analysis: `python -m analysis.router --checkpoint <run of adm or adaptive_but>`.

Passes taken and router scores by the token's frequency, position and loss, and the token types that take the
most and the fewest passes. `analysis.depth` has the definitions.
"""

import argparse
from argparse import Namespace
from typing import Any

from analysis import command
from errors import UsageError, run_script
from tables import aligned_table

MILLION = 10**6


def add_flags(parser: argparse.ArgumentParser) -> None:
    command.add_flags(parser, "router")
    add = parser.add_argument
    add(
        "--budget",
        type=float,
        nargs="+",
        help="a fraction of full compute, whose thresholds are looked up or calibrated on training text; or "
        "R - 1 thresholds. Default: --routing and --eval_length_factor, else full depth",
    )
    add("--bins", type=int, default=10, help="bins of frequency, position and loss (default: 10)")
    add(
        "--count_millions",
        type=float,
        default=10.0,
        help="millions of tokens, spread over the training split, to count types in (default: 10)",
    )
    add(
        "--loss_sample",
        type=int,
        default=2**16,
        help="the number of tokens whose quantiles are the edges of the loss bins (default: 65536)",
    )
    add("--types", type=int, default=15, help="types to list as deepest and as least deep (default: 15)")
    add("--min_count", type=int, default=20, help="occurrences that a listed type must have (default: 20)")


def check(own: Namespace) -> None:
    """Raises UsageError for values out of range."""
    least = {"bins": 2, "loss_sample": 1, "types": 1, "min_count": 1}
    for name, lowest in least.items():
        if getattr(own, name) < lowest:
            raise UsageError(f"--{name} {getattr(own, name)} must be at least {lowest}")
    if own.count_millions <= 0:
        raise UsageError(f"--count_millions {own.count_millions:g} must be above 0")


def main() -> None:
    own, given = command.parse(add_flags, __doc__)
    check(own)
    from analysis import depth
    from data.batches import spread_batches
    from evaluation.routing import RouteFinder
    from files import write_json
    from plots import router

    analysis = command.begin(own, given, "router", command.is_routed, ("mha", "mla"))
    run, config = analysis.run, analysis.run.model.config
    tokenizer = analysis.corpus.load_tokenizer()
    finder = RouteFinder(run)
    route = finder.from_flags() if own.budget is None else finder.from_budget(own.budget)
    print(route)
    windows = analysis.corpus.windows("train", run.sequence_length, config.vocab_size)
    training = spread_batches(windows, run.args.batch_size, int(own.count_millions * MILLION))

    def bytes_of(token: int) -> bytes:
        # After itself: within a text, where a word's first token has its space.
        return b"<end of text>" if token == tokenizer.end_of_text else tokenizer.token_bytes(token, [token])

    counts = depth.unigram_counts(command.progress(training, "counting types"), config.vocab_size)
    found = depth.measure(
        run.model,
        command.progress(analysis.batches, "depths"),
        run.precision,
        run.sequence_length,
        own.bins,
        own.loss_sample,
        **route.settings,
    )

    content = analysis.about(
        **route.about,
        n_repeat=config.n_repeat,
        training_tokens_counted=int(counts.sum()),
        loss_sample=min(own.loss_sample, found.tokens),
        min_count=own.min_count,
        **depth.summarise(found, counts, own.bins, own.types, own.min_count, bytes_of),
    )
    write_json(analysis.path(".json"), content)
    drawn = router.draw(content, analysis.path(""))
    print(table(content))
    print(f"written: {analysis.path('.json')}, {', '.join(drawn)}")


def table(content: dict[str, Any]) -> str:
    """The .json's content for the terminal."""
    taken = content["tokens_by_passes"]
    shares = ", ".join(f"{count}: {100 * n / sum(taken):.1f} %" for count, n in enumerate(taken, 1) if n)
    lines = [f"passes taken: {shares}"]
    if content["alike_in_depth"]:
        lines.append(
            "every token takes equally many passes, so only scores differ; --budget F or "
            "--eval_length_factor lets the routers decide"
        )
    ranking = f"by mean {content['types_ranked_by'].replace('_', ' ')}"
    sections = {
        "by_frequency": "count in training text",
        "by_position": "position",
        "by_loss": "loss of the token",
        "deepest": f"deepest types, {ranking}",
        "least_deep": f"least deep types, {ranking}",
    }
    names = [name for name in content["mean"] if name != "tokens"]
    headings = [name.replace("lowest_score", "lowest").replace("_", " ") for name in names]
    rows = [("", "tokens", *headings), _row("all", content["mean"], names)]
    for section, title in sections.items():
        rows += [_blank(names), _blank(names, title)]
        rows += [_row(entry["label"], entry, names) for entry in content[section]]
    lines.append(aligned_table(rows, "lr"))
    if not content["deepest"]:
        lines.append(f"fewer than two types occur {content['min_count']} times; try a lower --min_count")
    return "\n".join(lines)


def _row(label: str, entry: dict[str, Any], names: list[str]) -> tuple[str, ...]:
    numbers = ["" if entry[name] is None else f"{entry[name]:.4f}" for name in names]
    return label, f"{entry['tokens']:,}", *numbers


def _blank(names: list[str], title: str = "") -> tuple[str, ...]:
    return title, *[""] * (1 + len(names))


if __name__ == "__main__":
    run_script(main)
