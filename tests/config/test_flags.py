"""Every flag of the parameter reference, and what is refused: each by its sentence."""

import subprocess
import sys

import pytest

import config
from config import checks
from data import registered_corpora
from errors import UsageError
from models import ModelConfig, registered_models
from optim.optimizers import OPTIMIZERS
from tests.conftest import ROOT

# The parameter reference; dataset and device are the two defaults that changed.
REFERENCE = {
    "batch_size": 32, "acc_steps": 4, "iterations": 25000, "seed": 2, "data_seed": None, "device": "auto",
    "opt": "adamw", "lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1, "grad_clip": 0.0,
    "scheduler": "cos", "warmup_percent": 0.05, "final_div_factor": 0.05,
    "dataset": "pydoc", "data_dir": None, "data_in_ram": False, "vocab_size": 50304,
    "add_additional_space": False, "model": "base", "n_layer": 24, "n_embd": 768, "n_head": 12,
    "sequence_length": 512, "dtype": "torch.bfloat16", "bias": False, "dropout": 0.0, "compile": "auto",
    "rmsnorm_eps": 1e-5, "multiple_of": 256, "n_repeat": 2, "n_layer_begin": 0, "n_layer_end": 0,
    "min_repeat": 1, "depth_random_method": "uniform", "depth_embedding": None, "disable_ln_mid": False,
    "mod_capacity_factor": 0.6, "halt_threshold": 0.999, "depth_predictor_loss_coef": None,
    "eval_length_factor": None, "training_length_factor": None, "positional_encoder": "rotary",
    "lm_cache": "none", "attention_window_length": None, "mem_cache_size": None, "cache_topk": 1,
    "cache_selection_method": "per_token_and_head", "cache_indexing_scheme": "by_total",
    "track_cache_attention": False, "allow_cache_during_training": False, "eval_freq": 200,
    "eval_seq_prefix": "Once upon a time", "eval_seq_length": None, "eval_sample_size": None,
    "wandb": False, "wandb_project": "my-project", "wandb_entity": None, "results_base_folder": "./exps",
    "save_checkpoint_freq": None, "remove_intermediary_checkpoints_at_end": False, "use_pretrained": "auto",
    "exp_name": None, "run_prefix": None, "distributed_backend": None, "config_format": "base",
}  # fmt: skip


def parse(text=""):
    return config.parse_args(text.split())


def test_every_flag_of_the_reference_with_its_default():
    ours = vars(parse())
    assert {name: ours[name] for name in REFERENCE} == REFERENCE
    assert ours.keys() - REFERENCE.keys() == {
        "tokenizer", "log_freq", "routing", "routing_threshold", "act_penalty", "act_loss_reduction",
        "ponder_lambda_p", "ponder_kl_div_loss_weight", "ponder_eval", "keep_last", "keep_every",
        "checkpoint_staging_dir", "max_steps_this_run", "max_time", "exit_code_unfinished",
        "extend_schedule", "distributed_timeout", "experiment", "scale", "kv_lora_rank", "q_lora_rank",
        "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "n_pause", "attention", "loss",
        "activation_checkpointing", "dry_run", "yes", "cuda_graphs", "deterministic", "tf32",
    }  # fmt: skip


def test_every_flag_has_a_meaning_and_flags_without_effect_say_so():
    actions = {action.dest: action for action in config.build_parser()._actions}
    assert all(action.help for action in actions.values())
    for name in (
        "rmsnorm_eps",
        "multiple_of",
        "add_additional_space",
        "min_repeat",
        "lm_cache",
        "cache_topk",
    ):
        assert "no effect" in actions[name].help, name


@pytest.mark.process
def test_help_shows_groups():
    text = subprocess.run(
        [sys.executable, ROOT / "main.py", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for group in (
        "Training",
        "Optimizer",
        "Dataset",
        "Model architecture",
        "CoTFormer",
        "Logging and checkpoints",
    ):
        assert f"\n{group}:\n" in text
    assert "--n_repeat" in text and "(default: 2)" in text


@pytest.mark.process
@pytest.mark.parametrize(
    "script", ["main.py --help", "main.py --n_layers 3", "eval.py --help", "generate.py --help"]
)
def test_help_and_typos_are_answered_before_torch_is_imported(script):
    """What makes them quick: neither torch nor numpy is loaded."""
    name, *flags = script.split()
    code = (
        "import runpy, sys\n"
        f"sys.argv = {[name, *flags]!r}\n"
        "try:\n"
        f"    runpy.run_path({name!r}, run_name='__main__')\n"
        "except SystemExit:\n"
        "    print(sorted({'torch', 'numpy', 'tiktoken'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_names_agree_with_what_is_registered():
    """config knows names, not implementations: the two lists must be the same."""
    from config import base, training

    assert set(base.DATASETS) == set(registered_corpora())
    assert set(training.OPTIMIZERS) == set(OPTIMIZERS)
    for name in registered_models():
        assert parse(f"--model {name}").model in ModelConfig(model=name).variant.name


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        ("--bias True", "bias", True), ("--bias False", "bias", False), ("--bias no", "bias", False),
        ("--bias 1", "bias", True), ("--bias", "bias", True), ("--bias --n_layer 2", "bias", True),
        ("--depth_embedding None", "depth_embedding", None), ("--data_dir none", "data_dir", None),
        ("--use_pretrained None", "use_pretrained", None), ("--data_seed None", "data_seed", None),
        ("--save_checkpoint_freq None", "save_checkpoint_freq", None), ("--lr=3e-4", "lr", 3e-4),
        ("--eval_length_factor None", "eval_length_factor", None),
        ("--dtype float16", "dtype", "torch.float16"),
        ("--eval_length_factor 0.5", "eval_length_factor", [0.5]), ("--device cuda:0", "device", "cuda:0"),
        ("--dtype torch.float32", "dtype", "torch.float32"), ("--model but", "model", "but_full_depth"),
        ("--n_layer 2 --n_layer 3", "n_layer", 3),
        ("--distributed_backend None", "distributed_backend", None),
    ],
)  # fmt: skip
def test_values_of_flags(flags, name, value):
    assert getattr(parse(flags), name) == value


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ("--n_layers 3", ["unknown flag --n_layers", "did you mean --n_layer?"]),
        ("--wandb_projekt=x", ["unknown flag --wandb_projekt=x", "did you mean --wandb_project?"]),
        ("--zzz", ["unknown flag --zzz", "--help` lists them"]),
        ("stray", ["'stray' belongs to no flag"]),
        ("--model cotfromer", ["'cotfromer' is unknown", "did you mean cotformer?", "ln_cotformer"]),
        ("--scheduler cosine", ["did you mean cos?", "choose from cos, linear, none"]),
        ("--dataset pydocs", ["did you mean pydoc?"]),
        ("--lr abc", ["--lr", "'abc' is not a number"]),
        ("--lr nan", ["'nan' is not a finite number"]),
        ("--lr 0", ["--lr 0.0 must be above 0"]),
        ("--batch_size 2.5", ["--batch_size", "'2.5' is not a whole number"]),
        ("--batch_size 0", ["--batch_size 0 must be at least 1"]),
        ("--seed -1", ["--seed -1 must not be negative"]),
        ("--iterations", ["--iterations", "expected one argument"]),
        ("--bias maybe", ["'maybe' is neither true nor false"]),
        ("--warmup_percent 20", ["--warmup_percent 20.0 is a fraction"]),
        ("--beta2 1", ["--beta2 1.0 must be at least 0 and below 1"]),
        ("--device tpu", ["'tpu' is no device"]),
        ("--device cpu --dtype torch.float16", ["float16 needs a GPU"]),
        ("--exp_name a/b", ["'a/b' must be a folder's name"]),
        ("--exp_name ..", ["'..' must be a folder's name"]),
        ("--run_prefix " + "x" * 200, ["has 200 characters; at most 150"]),
        ("--distributed_backend mpi", ["choose from nccl, gloo, fsdp"]),
        ("--exit_code_unfinished 300", ["--exit_code_unfinished 300 must be from 0 to 255"]),
        ("--max_time 0", ["--max_time 0.0 must be above 0"]),
        ("--keep_last 0", ["--keep_last 0 must be at least 1"]),
        ("--extend_schedule both", ["choose from rebuild, keep"]),
        ("--config_format old", ["choose from base"]),
        ("--n_embd 100", ["n_embd=100 is not divisible by n_head=12"]),
        ("--model but --n_layer_begin 12 --n_layer_end 12", ["leave no layer to repeat"]),
        ("--n_repeat 3 --eval_length_factor 0.5", ["n_repeat=3 needs 2 numbers, not 1"]),
        ("--n_repeat 3 --eval_length_factor 0.5 0.6", ["must not increase"]),
        ("--training_length_factor 1.5", ["each must be from 0 to 1"]),
    ],
)
def test_refusals(flags, parts):
    with pytest.raises(UsageError) as refusal:
        parse(flags)
    for part in parts:
        assert part in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.process
def test_a_refusal_is_one_line_and_exit_code_2():
    done = subprocess.run(
        [sys.executable, ROOT / "main.py", "--n_layers", "3"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: unknown flag --n_layers; did you mean --n_layer?")


def test_flags_the_model_does_not_read_are_noted():
    assert checks.notes(parse("--model base --n_repeat 5 --depth_embedding learned")) == [
        "note: --n_repeat has no effect on base", "note: --depth_embedding has no effect on base"
    ]  # fmt: skip
    assert checks.notes(parse("--model ln_cotformer --n_repeat 5 --depth_embedding learned --compile")) == []


def test_compile_with_and_without_a_value_and_of_earlier_versions():
    """It was a switch: --compile alone, and True or False in files of runs."""
    assert [parse(f"--compile {text}").compile for text in ("", "block", "none")] == ["step", "block", "none"]
    assert parse("--compile --n_layer 3").compile == "step"
    for saved, mode in ((True, "step"), (False, "none"), ("block", "block")):
        assert config.complete({"compile": saved}, {}).compile == mode
    with pytest.raises(UsageError, match=r"--compile.*'blocks' is unknown; did you mean block"):
        parse("--compile blocks")


def help_of(*command):
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.process
def test_help_begins_with_a_short_usage_line_and_leaves_out_flags_without_effect():
    short, full = help_of("main.py", "--help"), help_of("main.py", "--help-all")
    for text in (short, full):
        assert text.startswith("usage: python main.py [flags]\n\n")
    assert "--lm_cache" not in short and "--multiple_of" not in short
    assert "--lm_cache" in full and "no effect" in full
    assert parse("--lm_cache none --multiple_of 3").multiple_of == 3


@pytest.mark.process
def test_scripts_on_a_run_show_their_own_flags_and_the_others_when_asked():
    short, full = help_of("eval.py", "--help"), help_of("eval.py", "--help-all")
    assert short.startswith("usage: python eval.py --checkpoint CHECKPOINT [flags]\n")
    assert "--output_dir" in short and "--n_layer" not in short
    assert full.index("--output_dir") < full.index("--n_layer")


def test_the_parameter_reference_is_up_to_date(monkeypatch):
    from config.parameters import OUTPUT, page

    assert OUTPUT.read_text() == page(), "run python -m config.parameters"


def add_own(parser):
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--top", type=int, default=7)


def test_scripts_on_a_run_learn_what_was_given():
    own, given = config.parse_with_run(["--checkpoint", "c", "--batch_size", "9"], add_own, "about")
    assert vars(own) == {"checkpoint": "c", "top": 7}
    assert given == {"batch_size": 9}
    args = config.complete({"n_layer": 5, "batch_size": 3, "model": "but", "pos_jump_freq": 3}, given)
    assert (args.n_layer, args.batch_size, args.model, args.lr) == (5, 9, "but_full_depth", 1e-3)
    with pytest.raises(UsageError, match="--checkpoint"):
        config.parse_with_run([], add_own, "about")
    with pytest.raises(UsageError, match="n_embd=10 is not divisible"):
        config.complete({"n_embd": 10}, {})
