"""Is bfloat16 worth it on this CPU? `python bench/precision.py [--repeats 7]`

Matrix products and one training step of each model, in float32 and bfloat16 in turn, in one run: the ratios
are what counts, for the machine may be busy. `distributed.precision` decides by the processor's features;
this shows whether it decides well.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.timing import compare
from distributed.precision import cpu_multiplies_bfloat16
from models import ModelConfig
from models.language_model import LanguageModel
from models.variants import VARIANTS

DTYPES = (torch.float32, torch.bfloat16)


def matrix_product(dtype: torch.dtype) -> Callable[[], object]:
    a, b = (torch.randn(2048, 2048, dtype=dtype) for _ in range(2))
    return lambda: a @ b


def training_step(name: str, dtype: torch.dtype) -> Callable[[], object]:
    """Forward and backward of a small model on 8 sequences of 256 tokens."""
    config = ModelConfig(
        model=name, vocab_size=512, sequence_length=256, n_layer=6, n_head=4, n_embd=256, n_repeat=3,
        n_layer_begin=1, n_layer_end=1, depth_embedding="linear_learned",
    )  # fmt: skip
    model, ids = LanguageModel(config), torch.randint(0, 512, (8, 256))

    def step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model(ids, ids)["loss"]
        loss.backward()
        model.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    print(f"{torch.get_num_threads()} threads; bfloat16 multiplied natively: {cpu_multiplies_bfloat16()}")
    print(f"{'':40}{'float32':>10}{'bfloat16':>10}{'ratio':>8}")
    works = {"matrix product, 2048 x 2048": matrix_product}
    for variant in VARIANTS:
        works[f"step, {variant.name}"] = lambda dtype, name=variant.name: training_step(name, dtype)
    for label, make in works.items():
        slow, fast = compare([make(dtype) for dtype in DTYPES], repeats)
        print(f"{label:40}{1e3 * slow:8.1f}ms{1e3 * fast:8.1f}ms{slow / fast:8.2f}")


if __name__ == "__main__":
    main()
