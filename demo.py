"""Train and compare small models on real text, in six to ten minutes: `make demo`.

First, an LN-CoTFormer and a standard transformer with equally many layers, on the same tokens; the CoTFormer
repeats its middle layers. Then an adaptive model, whose routers choose the number of repeats for each token:
its perplexity over compute (the paper's Figure 4), and a text coloured by depth. The demo calls the scripts
that a user would call, and prints each command.
"""

import json
import math
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

from config.parser import Parser
from errors import Failure, run_script
from tables import aligned_table

ROOT = Path(__file__).parent
FOLDER = Path("demo")
PROMPT = "Return the "

COMMON = """
    --dataset pydoc --vocab_size 320 --n_head 2 --n_embd 128 --sequence_length 128 --batch_size 8 --acc_steps
    1 --eval_freq 200 --log_freq 50 --save_checkpoint_freq 400 --remove_intermediary_checkpoints_at_end --seed
    0
"""
COMPARED = {
    "LN-CoTFormer": """--model ln_cotformer --n_layer 4 --n_layer_begin 1 --n_layer_end 1 --n_repeat 3
                       --depth_embedding linear_learned --iterations 1200 --lr 4e-3 --warmup_percent 0.1""",
    "Standard": "--model standard --n_layer 4 --iterations 1200 --lr 4e-3 --warmup_percent 0.1",
}
# One layer, up to five times: so small that after a thousand steps further passes still lower the loss.
ADAPTIVE = """--model adm --n_layer 2 --n_layer_end 1 --n_repeat 5 --depth_embedding linear_learned
              --iterations 1200 --lr 2e-3 --warmup_percent 0.2"""
BUDGETS = ("0.4", "0.5", "0.6", "0.8")


def run(script: str, *arguments: str) -> None:
    """Run one of the root scripts as from the shell. Raises Failure if it fails."""
    print(f"\n$ python {script} {shlex.join(arguments)}", flush=True)
    code = subprocess.run([sys.executable, script, *arguments], cwd=ROOT).returncode
    if code:
        raise Failure(f"{script} failed with exit code {code}; its output is above")


def train(model: str) -> Path:
    """Train a model, evaluate it on the full validation set, and return the run folder."""
    import config

    flags = shlex.split(f"{model} {COMMON} --results_base_folder {FOLDER}")
    run("main.py", *flags)
    folder = config.experiment_dir(config.parse_args(flags))
    run("eval.py", "--checkpoint", str(folder))
    return folder


def table(folders: dict[str, Path]) -> str:
    """A table of perplexity with its interval, parameters, depth and speed of each run."""
    rows = [("", "perplexity", "95 % over batches", "parameters", "average depth", "tokens/s in training")]
    for name, folder in folders.items():
        evaluated = json.loads((ROOT / folder / "eval_summary_ckpt.json").read_text())
        summary = json.loads((ROOT / folder / "summary.json").read_text())
        tokens = summary["final"]["tokens"]
        low, high = evaluated["perplexity_interval_95"]
        rows.append(
            (
                name,
                f"{evaluated['perplexity']:.3f}",
                f"{low:.3f} to {high:.3f}",
                f"{summary['parameters']:,}",
                f"{evaluated['average_depth']:g}",
                f"{tokens / summary['training_seconds']:,.0f}",
            )
        )
    return aligned_table(rows, "r")


def paired_difference(folders: dict[str, Path]) -> str:
    """The lead of the first run over the second, paired by batch, as text varies more than the models do."""
    losses = [
        json.loads((ROOT / folder / "eval_summary_ckpt.json").read_text())["batch_losses"]
        for folder in folders.values()
    ]
    differences = [two - one for one, two in zip(*losses, strict=True)]
    margin = 1.96 * statistics.stdev(differences) / math.sqrt(len(differences))
    first, second = folders
    return (
        f"{first} is ahead of {second} by {statistics.mean(differences):.4f} +- {margin:.4f} nats per byte "
        "(mean and 95 % interval of the difference over the same batches)"
    )


def compare() -> None:
    """Compare a looped model with a standard one."""
    folders = {name: train(model) for name, model in COMPARED.items()}
    figure = FOLDER / "curves.png"
    run("plot_curves.py", *map(str, folders.values()), "--labels", *folders, "--output", str(figure))
    best = next(iter(folders.values()))
    run("generate.py", "--checkpoint", str(best), "--prompt", PROMPT, "--max_new_tokens", "400")
    print(f"\n{table(folders)}")
    print("(perplexity per byte on the full validation set; same training tokens for both)")
    print(f"{paired_difference(folders)}\n")
    for name, folder in folders.items():
        print(f"{name}: {folder}/ contains ckpt.pt, summary.json, metrics.jsonl and eval_summary_ckpt.json")
    print(f"curves: {figure}")


def spend_by_token() -> None:
    """Train an adaptive model; draw perplexity over compute; generate a text coloured by passes."""
    folder = train(ADAPTIVE)
    sample = ("--eval_sample_size", "32000", "--batch_size", "16")
    run("get_ppl_per_mac.py", "--checkpoint", str(folder), *sample, "--budget", *BUDGETS)
    figure, page = FOLDER / "figure4.png", FOLDER / "depth.html"
    run("plot_fig4.py", str(folder), "--labels", "ADM, 1x5 -> 1", "--output", str(figure))
    write = ("--checkpoint", str(folder), "--prompt", PROMPT, "--max_new_tokens", "400", "--budget", "0.5")
    run("generate.py", *write, "--show_depth", str(page))
    if sys.stdout.isatty():  # no colours in a log file
        run("generate.py", *write, "--show_depth")
    print(f"\nADM: {folder}/")
    print("     contains ckpt.pt, ppl_per_mac_ckpt.json, router_weights_ckpt.npz and thresholds_ckpt.json")
    print(f"perplexity over compute: {figure}")
    print(f"the sample, coloured by depth: {page}")


def main() -> None:
    Parser(description=__doc__).parse(None)
    compare()
    spend_by_token()


if __name__ == "__main__":
    run_script(main)
