"""Generate text at two compute budgets with an adaptive model: `python -m examples.route_by_budget`.

Trains a small adm (or loads it, if the run is complete), finds router thresholds for 40 % and 80 % of full
compute on training text, and prints, for each budget, the thresholds, the mean number of passes that the new
tokens took, and the text. About a minute on a laptop. Flags of main.py change the model and its training.
"""

import sys

import config
from errors import run_script
from evaluation.restore import restore
from evaluation.routing import RouteFinder
from evaluation.text import TextCost, stream_texts
from optim.run import run_training

FLAGS = """
    --model adm --n_layer 2 --n_layer_end 1 --n_repeat 5 --depth_embedding linear_learned --n_embd 128
    --n_head 2 --dataset pydoc --vocab_size 320 --sequence_length 128 --batch_size 8 --acc_steps 1
    --iterations 400 --lr 2e-3 --warmup_percent 0.2 --eval_freq 200 --log_freq 50 --seed 0
    --results_base_folder exps/examples
"""
BUDGETS = (0.4, 0.8)
PROMPT = "the "


def main() -> None:
    args = config.parse_args([*FLAGS.split(), *sys.argv[1:]])
    run_training(args)
    run = restore(config.experiment_dir(args), {})
    tokenizer = run.make_tokenizer()
    for budget in BUDGETS:
        route = RouteFinder(run).from_budget([budget])
        print(f"\nbudget {budget:.0%}: {route}")
        cost = TextCost()
        settings = {"costs": [cost], "temperature": 0.8, **route.settings}
        steps = stream_texts(run.model, tokenizer, [PROMPT], 100, run.precision, seed=0, **settings)
        text = "".join(piece for ((piece, _),) in steps)
        print(
            f"{sum(cost.passes) / len(cost.passes):.2f} of {args.n_repeat} passes on average\n{PROMPT}{text}"
        )


if __name__ == "__main__":
    run_script(main)
