"""The experiment table: every row is a command that main.py takes, and what is given beside it wins."""

import pytest

import config
from config.experiments import BY_NAME, EXPERIMENTS, PROTOCOL
from config.scales import SCALES
from errors import UsageError


def test_names_are_unique():
    assert len(BY_NAME) == len(EXPERIMENTS)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_every_row_is_what_main_takes(experiment):
    args = config.parse_args(["--experiment", experiment.name])
    for flag, value in (experiment.flags | {"model": args.model}).items():
        assert getattr(args, flag) == value, flag
    assert args.batch_size * args.acc_steps == 128
    assert config.notes(args) == []  # no flag of a row is one that its model does not read


def test_flags_override_the_experiment_wherever_they_stand():
    row = ["--experiment", "table2/ln-cotformer"]
    assert config.parse_args(row).lr == PROTOCOL["lr"]
    assert config.parse_args([*row, "--lr", "3e-4"]).lr == 3e-4
    assert config.parse_args(["--lr", "3e-4", *row]).lr == 3e-4
    assert config.parse_args(["--experiment", "None"]).dataset == "pydoc"


def test_the_published_architectures():
    """2 -> 21x5 -> 1 is 24 layers, of which 21 are repeated; all of CoTFormer's are."""
    names = {name: config.experiment_name(config.parse_args(["--experiment", name])) for name in BY_NAME}
    assert names["table2/ln-cotformer"].startswith("2-21x5-1_c768_t256_lr0.001_bs64x2_")
    assert names["table1/cotformer-12x5"].startswith("12x5_c768_t256_")
    assert names["table1/standard-48"].startswith("48_c768_")
    assert names["table7/cotformer-1024-256"].startswith("12x5_c1024_t256_")
    assert names["table2/cotformer-24x5"] == names["table1/cotformer-24x5"]  # one run for both


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_every_row_at_every_scale(experiment, scale):
    args = config.parse_args(["--experiment", experiment.name, "--scale", scale])
    published = experiment.flags
    assert args.n_repeat == published.get("n_repeat", args.n_repeat)
    exact = (
        not experiment.name.startswith("table7/") or scale != "nano"
    )  # whose 16 heads become one, and a bit
    assert args.n_embd / args.n_head == pytest.approx(64, rel=0 if exact else 0.5)
    assert args.n_embd / published["n_embd"] == pytest.approx(float(SCALES[scale].width), rel=0.04)
    for reserved in ("n_layer_begin", "n_layer_end"):
        assert bool(getattr(args, reserved)) == bool(published.get(reserved))
    if scale == "paper":
        assert all(getattr(args, name) == value for name, value in published.items() if name != "model")


def test_ratios_of_layers_are_kept():
    def layers(row, scale):
        args = config.parse_args(["--experiment", row, "--scale", scale])
        return args.n_layer_begin, args.n_layer, args.n_layer_end

    for scale, shrunk in (("nano", 6), ("small", 2)):
        for count in (12, 24, 48):
            assert layers(f"table1/standard-{count}", scale) == (0, count // shrunk, 0)
    assert layers("table2/ln-cotformer", "small") == (1, 12, 1)
    assert layers("table2/ln-cotformer", "nano") == (1, 4, 1)


def test_a_scale_is_of_an_experiment():
    with pytest.raises(UsageError, match="name one"):
        config.parse_args(["--scale", "nano"])


def test_a_table_is_not_one_experiment():
    with pytest.raises(
        UsageError, match=r"table2 has 4 experiments; choose one: table2/standard-48, .*/ln-co"
    ):
        config.parse_args(["--experiment", "table2"])


def test_an_unknown_row():
    with pytest.raises(UsageError, match="did you mean table2/ln-cotformer"):
        config.parse_args(["--experiment", "table2/lncotformer"])
