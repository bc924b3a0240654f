"""Continue prompts with a trained model: `python generate.py --checkpoint <run> --prompt "Once upon"`.

Texts go to stdout, everything else to stderr.
"""

import argparse
import contextlib
import sys
from functools import partial
from pathlib import Path

import config
from errors import UsageError, run_script, stdout_is_result


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--checkpoint", required=True, help="a checkpoint file, or a run's folder")
    add("--prompt", nargs="+", help="texts to continue; default: the start of a document")
    add("--max_new_tokens", type=int, default=200, help="how many tokens to generate")
    add("--temperature", type=float, default=0.8, help="0 takes the likeliest token")
    add("--top_k", type=int, help="sample from the k likeliest tokens only")
    add("--top_p", type=float, help="sample from the fewest tokens whose probabilities sum to p")
    add(
        "--budget",
        type=float,
        nargs="+",
        help="adm, adaptive_but: a fraction of full compute, for which thresholds are looked up or found on "
        "training text; or R - 1 thresholds. Default: full depth, unless --routing_threshold says otherwise",
    )
    add(
        "--keep_context",
        type=int,
        help="a context that outgrows sequence_length is cut to this many tokens and recomputed "
        "(default: half of sequence_length)",
    )
    add(
        "--no_cache",
        action="store_true",
        help="recompute the full context for each token: slow, with the same text",
    )
    add(
        "--cuda_graphs",
        action="store_true",
        help="on a GPU, replay each token's kernels as a CUDA graph, where prompts have equal lengths and no "
        "token halts; on a CPU without effect. Experimental: no GPU has run it yet",
    )
    add(
        "--show_depth",
        nargs="?",
        const="terminal",
        metavar="FILE.html",
        help="colour each token by the passes it took: in the terminal, or in a page",
    )


def check(own: argparse.Namespace) -> None:
    """Raises UsageError for values without meaning."""
    if own.max_new_tokens < 1:
        raise UsageError(f"--max_new_tokens {own.max_new_tokens} must be at least 1")
    if own.temperature < 0:
        raise UsageError(f"--temperature {own.temperature} must be 0 or more")
    if own.top_k is not None and own.top_k < 1:
        raise UsageError(f"--top_k {own.top_k} must be at least 1")
    if own.top_p is not None and not 0.0 < own.top_p <= 1.0:
        raise UsageError(f"--top_p {own.top_p} must be above 0 and at most 1")
    if own.keep_context is not None and own.keep_context < 1:
        raise UsageError(f"--keep_context {own.keep_context} must be at least 1")
    if own.cuda_graphs and own.no_cache:
        raise UsageError("--cuda_graphs needs the cache: leave out --no_cache")
    if own.show_depth not in (None, "terminal") and Path(own.show_depth).suffix != ".html":
        raise UsageError(f"--show_depth {own.show_depth}: give the name of an .html file, or nothing")


def main() -> None:
    own, given = config.parse_with_run(None, add_flags, __doc__)
    check(own)
    if own.show_depth in (None, "terminal"):
        stdout_is_result()
    from evaluation.restore import restore
    from evaluation.routing import RouteFinder
    from evaluation.text import TextCost, ansi, ansi_legend, html_page, stream_texts, takes_colours
    from files import write_atomically

    prompts = own.prompt or [""]
    note = partial(print, file=sys.stderr, flush=True)
    with contextlib.redirect_stdout(sys.stderr):  # log messages go there too
        run = restore(Path(own.checkpoint), given)
        model, limit = run.model, run.args.sequence_length
        if own.keep_context is not None and own.keep_context > limit:
            raise UsageError(f"--keep_context {own.keep_context} exceeds sequence_length={limit}")
        route = RouteFinder(run).for_generation(own.budget)
        tokenizer = run.make_tokenizer()
    costs = [TextCost() for _ in prompts]
    steps = stream_texts(
        model,
        tokenizer,
        prompts,
        own.max_new_tokens,
        run.precision,
        seed=run.args.seed,
        costs=costs,
        temperature=own.temperature,
        top_k=own.top_k,
        top_p=own.top_p,
        cached=not own.no_cache,
        keep=own.keep_context,
        graphed=own.cuda_graphs and run.precision.device.type == "cuda",
        **route.settings,
    )
    n_repeat, in_terminal = model.config.repeats, own.show_depth == "terminal"
    if in_terminal and not takes_colours(sys.stdout):
        own.show_depth, in_terminal = None, False
        note(
            "note: no colours, as stdout is no terminal or NO_COLOR is set; FORCE_COLOR=1 writes them, and "
            "--show_depth FILE.html a page"
        )
    texts: list[list[tuple[str, int]]] = [[] for _ in prompts]
    if in_terminal:
        print(ansi_legend(n_repeat))
    sys.stdout.write(prompts[0])
    for pieces in steps:
        for text, piece in zip(texts, pieces, strict=True):
            text.append(piece)
        # The first text is streamed; the others, generated in the same batch, are printed at the end.
        sys.stdout.write(ansi(*pieces[0], n_repeat) if in_terminal else pieces[0][0])
        sys.stdout.flush()
    sys.stdout.write("\n")
    for prompt, text in zip(prompts[1:], texts[1:], strict=True):
        shown = "".join(ansi(*piece, n_repeat) if in_terminal else piece[0] for piece in text)
        sys.stdout.write(f"\n{prompt}{shown}\n")
    if own.show_depth and not in_terminal:
        title = f"{run.path.parent.name}: depth"
        page = html_page(list(zip(prompts, texts, strict=True)), n_repeat, title)
        write_atomically(
            Path(own.show_depth), lambda file: file.write(page.encode(errors="backslashreplace"))
        )
        note(f"written: {own.show_depth}")
    if route.about:
        note(route)
    longest = max(len(tokenizer.encode(prompt)) for prompt in prompts) + own.max_new_tokens
    if longest > limit:
        keep = own.keep_context or max(1, limit // 2)
        note(f"the text outgrew sequence_length={limit}: from then on, the last {keep} tokens were kept")
    for number, cost in enumerate(costs, start=1):
        note(f"{f'text {number}: ' if len(costs) > 1 else ''}{cost.describe(model)}")


if __name__ == "__main__":
    run_script(main)
