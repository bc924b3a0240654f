"""A run's folder: the same for the same experiment, another for every other."""

import hashlib
import re
from dataclasses import dataclass

import pytest

import config
from config import base
from config.base import all_flags
from config.run_name import identity
from flags import Identity, flag


def name(flags=""):
    return config.experiment_name(config.parse_args(f"--model ln_cotformer {flags}".split()))


OTHER = [
    "--batch_size 31", "--acc_steps 3", "--seed 3", "--data_seed 5", "--opt sgd", "--lr 2e-3", "--beta1 0.8",
    "--beta2 0.9", "--weight_decay 0.2", "--grad_clip 1", "--scheduler linear", "--warmup_percent 0.1",
    "--final_div_factor 0.1", "--tokenizer bytes", "--vocab_size 512", "--n_layer 20", "--n_embd 24",
    "--n_head 6", "--sequence_length 64", "--dtype float32", "--bias true", "--dropout 0.1", "--n_repeat 3",
    "--n_layer_begin 2", "--n_layer_end 1", "--depth_embedding learned", "--disable_ln_mid",
    "--positional_encoder none", "--attention_window_length 9",
]  # fmt: skip
SAME = [
    "--iterations 99", "--device cpu", "--data_dir x", "--data_in_ram", "--eval_freq 7", "--log_freq 7",
    "--save_checkpoint_freq 9", "--use_pretrained None", "--wandb", "--compile", "--results_base_folder y",
    "--data_seed 2", "--lr 0.001", "--rmsnorm_eps 1", "--eval_seq_prefix Hello",
    "--attention plain", "--loss plain", "--activation_checkpointing block",
]  # fmt: skip


def test_each_flag_of_the_experiment_gives_another_name():
    names = [name(flags) for flags in ["", *OTHER]]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("flags", SAME)
def test_other_flags_give_the_same_name(flags):
    assert name(flags) == name()


def test_every_flag_is_one_or_the_other():
    args = config.parse_args(["--model", "ln_cotformer"])
    tested = {flags.split()[0].removeprefix("--") for flags in OTHER}
    assert identity(args).keys() - {"model"} == tested
    younger = {flags.split()[0].removeprefix("--") for part in YOUNGER.values() for flags in part}
    never = {one.name for one in all_flags() if one.identity is Identity.NEVER}
    assert vars(args).keys() == identity(args).keys() | never | younger | {"experiment", "scale"}


YOUNGER = {
    "adm": ["--depth_random_method exponential_decay", "--training_length_factor 0.5"],
    "stick_breaking": [
        "--halt_threshold 0.9", "--depth_predictor_loss_coef 0.1", "--act_penalty 0.1",
        "--act_loss_reduction sum",
    ],
    "pondernet": ["--ponder_lambda_p 0.2", "--ponder_kl_div_loss_weight 0.2"],
    "mla": [
        "--kv_lora_rank 100", "--q_lora_rank 100", "--qk_rope_head_dim 16", "--qk_nope_head_dim 16",
        "--v_head_dim 16",
    ],
    "pause": ["--n_pause 2"],
}  # fmt: skip


@pytest.mark.parametrize("model", YOUNGER)
def test_flags_of_some_models_name_their_runs_and_no_others(model):
    changes = ["", *(flags for all_flags in YOUNGER.values() for flags in all_flags)]
    names = {flags: name(f"--model {model} {flags}") for flags in changes}
    for flags in changes[1:]:
        assert (names[flags] != names[""]) == (flags in YOUNGER[model]), flags
    assert name(f"--model {model} --routing threshold --ponder_eval sample") == names[""]
    read = {flags.split()[0].removeprefix("--") for flags in YOUNGER[model]}
    common = identity(config.parse_args(["--model", "ln_cotformer"])).keys()
    ours = identity(config.parse_args(["--model", model])).keys()
    assert ours - common == read


def test_runs_of_fixed_depth_keep_the_names_they_had_before_there_were_adaptive_models():
    assert name("--n_repeat 3").endswith("_16a767d4")


@pytest.mark.parametrize(
    ("model", "digest"),
    [
        ("base", "83747e28"), ("but", "e9c4377f"), ("cotformer", "78a0d528"), ("ln_cotformer", "3f1cbbc0"),
        ("adm", "53ace40c"), ("adaptive_but", "6ae77446"), ("adaptive_but_macs", "d50c3a33"),
        ("stick_breaking", "d9e10b4c"), ("pondernet", "8dacc58c"),
    ],
)  # fmt: skip
def test_runs_keep_the_names_they_had_before_there_were_mla_and_pause(model, digest):
    flags = f"--model {model} --n_repeat 3 --depth_embedding learned"
    assert name(flags).endswith(digest)
    assert name(f"{flags} --kv_lora_rank 100 --n_pause 2").endswith(digest)


def test_flags_that_the_model_does_not_read_do_not_split_runs():
    one, two = (
        config.experiment_name(config.parse_args(["--model", "base", "--n_repeat", n])) for n in ("2", "5")
    )
    assert one == two


def test_names_are_short_readable_and_safe():
    full = name("--n_layer_begin 2 --n_layer_end 1 --n_repeat 5 --sequence_length 256 --run_prefix mine")
    assert full.startswith("mine_2-21x5-1_c768_t256_lr0.001_bs32x4_seed2_")
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,100}", full)
    assert name("--exp_name chosen") == "chosen"


def test_folder_of_a_run():
    args = config.parse_args("--model but --dataset owt2 --results_base_folder out --exp_name e".split())
    assert config.experiment_dir(args).as_posix() == "out/owt2/but_full_depth/e"


# Made by the code before flags became dataclass fields.
PINNED = {
    "--model base": "24_c768_t512_lr0.001_bs32x4_seed2_83747e28",
    "--model base --n_layer 12 --lr 3e-4 --seed 7": "12_c768_t512_lr0.0003_bs32x4_seed7_e8dd8553",
    "--model but --n_repeat 5 --dropout 0.1": "24x5_c768_t512_lr0.001_bs32x4_seed2_182ee658",
    "--model cotformer --n_repeat 3 --n_layer_begin 2 --n_layer_end 1 --data_seed 5":
        "2-21x3-1_c768_t512_lr0.001_bs32x4_seed2_43344dbb",
    "--model ln_cotformer --depth_embedding linear_learned --n_repeat 5 --dtype float32":
        "24x5_c768_t512_lr0.001_bs32x4_seed2_7a29385c",
    "--model ln_cotformer --disable_ln_mid --bias --tokenizer bytes --vocab_size 320":
        "24x2_c768_t512_lr0.001_bs32x4_seed2_551ecab8",
    "--model adm --n_repeat 5 --depth_random_method uniform_random_range --run_prefix 60k":
        "60k_24x5_c768_t512_lr0.001_bs32x4_seed2_45a7af51",
    "--model adm --n_repeat 3 --training_length_factor 0.5 0.25":
        "24x3_c768_t512_lr0.001_bs32x4_seed2_c643be04",
    "--model adaptive_but --n_repeat 3 --opt sgd --grad_clip 1":
        "24x3_c768_t512_lr0.001_bs32x4_seed2_5c0b3017",
    "--model stick_breaking --n_repeat 4 --halt_threshold 0.9 --act_penalty 0.1":
        "24x4_c768_t512_lr0.001_bs32x4_seed2_a3ed5f00",
    "--model pondernet --n_repeat 4 --ponder_lambda_p 0.2 --scheduler linear":
        "24x4_c768_t512_lr0.001_bs32x4_seed2_ad9d9465",
    "--model mla --n_repeat 2 --kv_lora_rank 96 --attention_window_length 64":
        "24x2_c768_t512_lr0.001_bs32x4_seed2_0da431f9",
    "--model pause --n_pause 2 --positional_encoder none --warmup_percent 0.2":
        "24_c768_t512_lr0.001_bs32x4_seed2_ca7b9585",
}  # fmt: skip


@pytest.mark.parametrize("flags", PINNED)
def test_names_of_earlier_runs_stay(flags):
    assert config.experiment_name(config.parse_args(flags.split())) == PINNED[flags]


def test_names_of_all_experiments_of_the_paper_stay():
    from config.experiments import EXPERIMENTS

    names = [
        config.experiment_name(config.parse_args(["--experiment", experiment.name, "--scale", scale]))
        for experiment in EXPERIMENTS
        for scale in ("paper", "nano")
    ]
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    assert (len(names), digest[:16]) == (104, "fe03d0a44e793e1b")


def test_a_new_flag_at_its_default_renames_no_run(monkeypatch):
    @dataclass(frozen=True)
    class Newer:
        bottleneck: int = flag(7, "a flag of the future", group="Model architecture")
        brain: str = flag("left", "one that few models read", group="Model architecture", read_by="pauses")

    before = name()
    monkeypatch.setattr(base, "CLASSES", (*base.CLASSES, Newer))
    assert name() == name("--bottleneck 7") == name("--brain right --bottleneck 7") == before
    assert name("--bottleneck 8") != before
    assert identity(config.parse_args(["--bottleneck", "8"]))["bottleneck"] == 8
