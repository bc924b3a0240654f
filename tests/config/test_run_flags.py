"""Flags that come back from a run's file, and command lines that argparse alone misreads."""

import argparse

import pytest

import config
from config.parser import Parser
from config.run_name import identity
from errors import UsageError

# What the released code wrote beside its checkpoints, as far as it is peculiar.
RELEASED = {
    "model": "cotformer_full_depth",
    "exp_name": "cotformer_full_depth_lr0.001_bs8x16_seqlen256/n_repeat=5_seed=2",
    "distributed_backend": "nccl",
    "dtype": None,
    "n_layer": 12,
    "n_repeat": 5,
    "lr": 0.002,
    "bias": False,
    "depth_predictor_loss_coef": 1.0,
    "pos_jump_freq": None,
}


def add_own(parser):
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--top", type=int)
    parser.add_argument("--heat", type=float)


def test_a_run_of_the_released_code_is_taken():
    args = config.complete(RELEASED, {"batch_size": 9})
    assert (args.n_layer, args.n_repeat, args.lr, args.bias) == (12, 5, 0.002, False)
    assert (args.dtype, args.distributed_backend, args.exp_name) == ("torch.bfloat16", None, None)
    assert args.batch_size == 9 and not hasattr(args, "pos_jump_freq")


def test_flags_of_a_run_are_restored_unchanged():
    flags = "--model ln_cotformer --n_repeat 3 --lr 3e-4 --dtype float32 --bias --depth_embedding learned"
    args = config.parse_args([*flags.split(), "--eval_length_factor", "0.7", "0.1", "--wandb"])
    assert config.complete(vars(args), {}) == args


def test_a_runs_file_in_old_or_short_forms():
    args = config.complete({"model": "but", "dtype": "float32", "n_layer": "24"}, {})
    assert (args.model, args.dtype, args.n_layer) == ("but_full_depth", "torch.float32", 24)


@pytest.mark.parametrize(
    ("run", "part"),
    [
        ({"lr": "abc"}, "the run has --lr 'abc' is not a number; give --lr to replace it"),
        ({"n_layer": 2.5}, "--n_layer '2.5' is not a whole number"),
        ({"wandb": "perhaps"}, "--wandb 'perhaps' is neither true nor false"),
        ({"model": "mamba"}, "mamba"),
        ({"dataset": "c4"}, "give --dataset to replace it"),
        ({"batch_size": 0}, "--batch_size 0 must be at least 1"),
    ],
)
def test_a_damaged_runs_file_is_answered_with_a_sentence(run, part):
    with pytest.raises(UsageError) as refusal:
        config.complete(run, {})
    assert part in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_given_flag_replaces_what_a_run_has_wrong():
    args = config.complete({"dataset": "c4", "lr": "abc"}, {"dataset": "owt2", "lr": 0.1})
    assert (args.dataset, args.lr) == ("owt2", 0.1)


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--lr", "-1e-3"], "--lr -0.001 must be above 0"),
        (["--lr", "-inf"], "'-inf' is not a finite number"),
        (["--eval_length_factor", "-1e-3"], "each must be from 0 to 1"),
        (["--seed", str(2**64)], "--seed: '18446744073709551616' is too large"),
    ],
)
def test_negative_and_huge_numbers(flags, part):
    with pytest.raises(UsageError) as refusal:
        config.parse_args(flags)
    assert part in str(refusal.value)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("--checkpont x", "unknown flag --checkpont; did you mean --checkpoint?"),
        ("--checkpoint x --top many", "--top: 'many' is not a whole number"),
        ("--checkpoint x --heat nan", "--heat: 'nan' is not a finite number"),
    ],
)
def test_a_scripts_own_flags_are_answered_like_the_others(words, part):
    with pytest.raises(UsageError) as refusal:
        config.parse_with_run(words.split(), add_own, None)
    assert part in str(refusal.value)


def test_a_default_is_said_once():
    parser = Parser()
    parser.add_argument("--bins", type=int, default=200, help="how many (default: 200)")
    parser.add_argument("--types", type=int, default=15, help="how many")
    text = parser.format_help()
    assert text.count("default: 200") == text.count("default: 15") == 1


def commanded() -> Parser:
    parser = Parser(prog="tool.py")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in ("list", "convert"):
        command = commands.add_parser(name)
        command.add_argument("paths", nargs="+")
        command.add_argument("--format", choices=("text", "latex"), default="text")
    return parser


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("", "required: COMMAND"),
        ("lst a", "COMMAND: 'lst' is unknown; did you mean list? choose from list, convert"),
        ("list", "required: paths"),
        (
            "list a --fromat text",
            "unknown flag --fromat; did you mean --format? `python tool.py list --help`",
        ),
        ("list a --format latx", "--format: 'latx' is unknown; did you mean latex? choose from text, latex"),
    ],
)
def test_commands_of_a_script_are_answered_like_flags(words, part):
    with pytest.raises(UsageError) as refusal:
        commanded().parse(words.split())
    assert part in str(refusal.value)


def test_a_command_with_its_flags():
    args = commanded().parse("convert a --format latex b".split())
    assert vars(args) == {"command": "convert", "paths": ["a", "b"], "format": "latex"}


def test_a_value_may_begin_with_a_dash_and_hold_spaces():
    def add(parser: argparse.ArgumentParser):
        parser.add_argument("--prompt")

    own, _ = config.parse_with_run(["--prompt", "-- a list of things"], add, None)
    assert own.prompt == "-- a list of things"


def test_the_identities_of_all_models_have_the_same_names():
    """Comparing a checkpoint of one model with the flags of another must find the difference, not fail."""
    one, two = (identity(config.parse_args(["--model", model])) for model in ("base", "ln_cotformer"))
    assert one.keys() == two.keys()
    assert one["n_repeat"] is None and two["n_repeat"] == 2
