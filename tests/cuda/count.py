"""`python -m tests.cuda.count ln_cotformer adm`: kernels and bytes of a micro-batch at the paper's size.

Needs no GPU: see `tests.cuda.launches` for what is counted, and what is not.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from tests.cuda import hooks

if TYPE_CHECKING:
    from tests.cuda.launches import Count

DEFAULT = ("ln_cotformer", "adm", "standard", "but")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.cuda.count", description=__doc__)
    parser.add_argument("models", nargs="*", default=DEFAULT, help="as --model of main.py takes them")
    parser.add_argument("--compile", choices=("none", "block"), nargs="+", default=("none", "block"))
    parser.add_argument("--batch", type=int, default=8, help="sequences of the micro-batch")
    parser.add_argument("--rows", type=int, default=20, help="operations and places that are listed")
    parser.add_argument("--flag", action="append", default=[], help="a model's flag, as attention=plain")
    args = parser.parse_args()
    try:
        hooks.load()
    except hooks.Unavailable as reason:
        sys.exit(str(reason))
    from tests.cuda.microbatch import count_micro_batch

    flags = dict(flag.split("=", 1) for flag in args.flag)
    for model in args.models:
        for compiled in args.compile:
            count = count_micro_batch(model, compiled, args.batch, **flags)
            print(f"{model} --compile {compiled}, {args.batch} sequences: {summary(count)}")
            for by in ("name", "place"):
                print(table(count, by, args.rows), flush=True)


def summary(count: "Count") -> str:
    from tests.cuda.launches import CARDS

    times = ", ".join(f"{name} {1e3 * count.seconds(card):.0f} ms" for name, card in CARDS.items())
    size = f"{count.bytes / 1e9:.1f} GB, {count.flops / 1e12:.2f} TFLOP"
    return f"{count.launches:,} launches, {size}; {times}; the host {1e3 * count.host_seconds:.0f} ms"


def table(count: "Count", by: str, rows: int) -> str:
    lines = [f"  {'launches':>8}  {'GB':>6}  {'TFLOP':>6}  {by}"]
    for name, launches, size, flops, _ in count.sums(by)[:rows]:
        lines.append(f"  {launches:>8,}  {size / 1e9:>6.2f}  {flops / 1e12:>6.2f}  {name}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
