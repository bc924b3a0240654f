"""Add a model variant from outside the package: `python -m examples.add_variant`.

A looped transformer with input injection: the input of the repeated middle is added again before every
further pass (Yang et al., 2024, https://arxiv.org/abs/2311.12424). A variant is a row of the table in
`models.variants` and a repeater, the class that runs the middle blocks. Everything else, from flags to
checkpoints and `eval.py`, comes with it.

Trains it and a Block Universal Transformer of the same size on the same batches, and prints the validation
loss of both. About a minute on a laptop. Flags of main.py change models and training.
"""

import json
import sys

import config
from errors import run_script
from models import register_variant
from models.variants import Variant

FLAGS = """
    --n_layer 3 --n_layer_begin 1 --n_repeat 4 --n_embd 128 --n_head 2 --dataset pydoc --vocab_size 320
    --sequence_length 128 --batch_size 8 --acc_steps 1 --iterations 200 --lr 4e-3 --warmup_percent 0.1
    --eval_freq 100 --log_freq 50 --seed 0 --results_base_folder exps/examples
"""


class InputInjection:
    """BUT, but the input of pass r > 1 is the output of pass r - 1 plus the input of pass 1."""

    def __call__(self, x, tokens, middle, cache):
        from models.repeaters import RepeaterOutput

        first = x  # (*tokens.shape, C)
        for repeat in range(1, middle.n_repeat + 1):
            x = x if repeat == 1 else x + first
            x = middle.run_pass(x, tokens, middle.keys(cache, repeat, all_passes=False))
            x = middle.after_pass(x, tokens, repeat)
        return RepeaterOutput([x], [tokens] * middle.n_repeat, [])


def main() -> None:
    register_variant(
        Variant("input_injection", "injected", "Looped transformer with input injection", "input_injection"),
        InputInjection,
    )
    from optim.run import run_training

    losses = {}
    for model in ("but", "injected"):
        args = config.parse_args(["--model", model, *FLAGS.split(), *sys.argv[1:]])
        run_training(args)
        summary = json.loads((config.experiment_dir(args) / "summary.json").read_text())
        losses[model] = summary["val_loss"][-1]
    for model, loss in losses.items():
        print(f"{model}: validation loss {loss:.3f} nats per token")


if __name__ == "__main__":
    run_script(main)
