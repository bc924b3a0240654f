"""Every flag of the command line, with its type, default and meaning: the parameter reference.

`None` as a value means "not set" wherever the default or the meaning allows it. Each group below is one of
`--help`. Which values are possible together is a matter for `config.checks`.
"""

import os
from argparse import ArgumentParser

from config.values import choice, choice_or, device, dtype, integer, nullable, number, truth
from files import FILES_PREFIX
from models.capacities import DRAWS
from models.config import CHOICES, DEPTH_EMBEDDINGS, POSITIONAL_ENCODERS
from models.variants import accepted_names

# fmt: off
DATASETS = (
    "pydoc", "slimpajama", "wikitext", "pg19", "shakespeare-char", "arxivmath", "owt2", "openwebtext2",
    "arxiv2000", "arxiv+wiki", "fineweb", "fineweb_100bt", "fineweb_edu", "counting", "phop",
)
# fmt: on
TOKENIZERS = ("bytes", "gpt2", "cl100k_base")
OPTIMIZERS = ("adamw", "sgd", "adafactor")
SCHEDULERS = ("cos", "linear", "none")
BACKENDS = ("nccl", "gloo", "fsdp")
EXTENSIONS = ("rebuild", "keep")

NO_EFFECT = "accepted for old commands; no effect"


def is_pattern(dataset: str) -> bool:
    """Whether it names files instead of a registered corpus."""
    return dataset.startswith(FILES_PREFIX) and len(dataset) > len(FILES_PREFIX)


def add_flags(parser: ArgumentParser) -> None:
    """Add all groups of flags to `parser`."""
    _training(parser.add_argument_group("Training").add_argument)
    _optimizer(parser.add_argument_group("Optimizer").add_argument)
    _dataset(parser.add_argument_group("Dataset").add_argument)
    _architecture(parser.add_argument_group("Model architecture").add_argument)
    _cotformer(parser.add_argument_group("CoTFormer").add_argument)
    _adaptive(parser.add_argument_group("Adaptive depth").add_argument)
    _latent(parser.add_argument_group("Latent attention").add_argument)
    _pause(parser.add_argument_group("Pause tokens").add_argument)
    _cache(parser.add_argument_group("Positional encoding and cache").add_argument)
    _evaluation(parser.add_argument_group("Evaluation").add_argument)
    _logging(parser.add_argument_group("Logging and checkpoints").add_argument)
    _distributed(parser.add_argument_group("Distributed training").add_argument)


def _training(add) -> None:
    add("--batch_size", type=integer, default=32, help="sequences in a micro-batch")
    add(
        "--acc_steps",
        type=integer,
        default=4,
        help="micro-batches added up for one step, which sees batch_size x acc_steps sequences",
    )
    add(
        "--iterations",
        type=integer,
        default=25000,
        help="optimizer steps; the paper: 40k, adaptive models 60k",
    )
    add("--seed", type=integer, default=2, help="of the initial weights and all random draws of training")
    add(
        "--data_seed",
        type=nullable(integer),
        default=None,
        help="of the order of the data; None: that of --seed",
    )
    add(
        "--device",
        type=device,
        default="auto",
        help="auto (CUDA if there is one, else the CPU), cpu, cuda or cuda:N",
    )


def _optimizer(add) -> None:
    add("--opt", type=choice(OPTIMIZERS), default="adamw", help="adamw, sgd (momentum 0.9) or adafactor")
    add("--lr", type=number, default=1e-3, help="peak learning rate")
    add("--beta1", type=number, default=0.9, help="AdamW: decay of the first moment")
    add("--beta2", type=number, default=0.95, help="AdamW: decay of the second moment")
    add(
        "--weight_decay",
        type=number,
        default=0.1,
        help="on the weights of Linear layers; nothing else decays",
    )
    add(
        "--grad_clip",
        type=number,
        default=0.0,
        help="largest L2 norm of the gradient; 0: no clipping (the paper)",
    )
    add(
        "--scheduler",
        type=choice(SCHEDULERS),
        default="cos",
        help="up and down in cosines (cos) or straight lines (linear), or a constant rate (none)",
    )
    add(
        "--warmup_percent",
        type=number,
        default=0.05,
        help="fraction of the iterations until the peak, from lr/100 in the shape of --scheduler; paper: 0.2",
    )
    add(
        "--final_div_factor",
        type=number,
        default=0.05,
        help="the last learning rate is (lr/100) / final_div_factor: 0.2 lr at the default. The published "
        "numbers were made with that, though a table beside them says lr x final_div_factor",
    )


def _dataset(add) -> None:
    add(
        "--dataset",
        type=choice_or(DATASETS, is_pattern, "files:<pattern>"),
        default="pydoc",
        help=f"{', '.join(DATASETS)}, or files:<pattern>,... for text of your own (.jsonl, .jsonl.zst, "
        ".parquet, .txt) or .bin shards; pydoc comes with Python and needs no network",
    )
    add(
        "--tokenizer",
        type=nullable(choice_or(TOKENIZERS, lambda text: text.endswith(".json"), "a tokenizer.json")),
        default=None,
        help=f"{', '.join(TOKENIZERS)}, or the path of a Hugging Face tokenizer.json; None: the corpus' own "
        "(pydoc: bytes)",
    )
    add("--data_dir", type=nullable(str), default=None, help="where token files lie; None: data/datasets")
    add("--data_in_ram", action="store_true", help="read the token files into memory first")
    add(
        "--vocab_size",
        type=integer,
        default=50304,
        help="rows of the embedding: the tokeniser's vocabulary, best rounded up to a multiple of 64",
    )
    add("--add_additional_space", action="store_true", help=NO_EFFECT)


def _architecture(add) -> None:
    add("--model", type=choice(accepted_names()), default="base", help=", ".join(accepted_names()))
    add("--n_layer", type=integer, default=24, help="blocks, each counted once however often it runs")
    add("--n_embd", type=integer, default=768, help="width C")
    add("--n_head", type=integer, default=12, help="attention heads; a head is n_embd / n_head wide")
    add(
        "--sequence_length", type=integer, default=512, help="tokens T of a training sequence; the paper: 256"
    )
    add(
        "--dtype",
        type=dtype,
        default="torch.bfloat16",
        help="format of the matrix products: torch.bfloat16, torch.float16 (GPU only) or torch.float32. "
        "A CPU that does not multiply bfloat16 natively takes float32 instead, and says so at the start",
    )
    add(
        "--bias",
        type=truth,
        nargs="?",
        const=True,
        default=False,
        help="true or false: whether Linear and LayerNorm layers have biases",
    )
    add(
        "--dropout",
        type=number,
        default=0.0,
        help="rate after embedding, attention and MLP; off in evaluation",
    )
    add(
        "--compile",
        action="store_true",
        help="torch.compile the training step: minutes to start, and "
        "again when capacities are drawn that leave a pass 0 or 1 tokens; then faster",
    )
    add(
        "--attention",
        type=choice(CHOICES["attention"]),
        default="fast",
        help="fast: on CPUs, for a run of queries at a time, to the keys that one of them sees (in bfloat16 "
        "by matrix products); plain: to all keys at once, with a mask. The same result, up to rounding",
    )
    add(
        "--loss",
        type=choice(CHOICES["loss"]),
        default="chunked",
        help="chunked: the logits of a few hundred tokens at a time, with their gradients; plain: those of "
        "all tokens at once. The same loss, up to rounding",
    )
    add(
        "--activation_checkpointing",
        type=choice(CHOICES["activation_checkpointing"]),
        default="none",
        help="what training computes a second time in the backward pass instead of keeping it: nothing "
        "(none), the passes of the middle one by one (repeat), or every block (block). The same gradients",
    )
    add("--rmsnorm_eps", type=number, default=1e-5, help=NO_EFFECT)
    add("--multiple_of", type=integer, default=256, help=NO_EFFECT)


def _cotformer(add) -> None:
    add("--n_repeat", type=integer, default=2, help="how often the middle blocks run (R)")
    add("--n_layer_begin", type=integer, default=0, help="blocks before the middle, run once; the paper: 2")
    add("--n_layer_end", type=integer, default=0, help="blocks after the middle, run once; the paper: 1")
    add(
        "--depth_embedding",
        type=nullable(choice([name for name in DEPTH_EMBEDDINGS if name])),
        default=None,
        help="added before each pass: linear_learned (a vector times the passes left), learned (a table)",
    )
    add("--disable_ln_mid", action="store_true", help="LN-CoTFormer without its LayerNorm after each pass")
    add("--min_repeat", type=integer, default=1, help=NO_EFFECT)


def _adaptive(add) -> None:
    add(
        "--depth_random_method",
        type=str,
        default="uniform",
        help=f"adm, adaptive_but: how training draws the capacities of a forward pass: {', '.join(DRAWS)}; "
        "any other name is uniform, as in the released code",
    )
    add(
        "--training_length_factor",
        type=nullable(number),
        nargs="+",
        default=None,
        help="adm, adaptive_but: train with these R - 1 capacities instead of drawn ones",
    )
    add(
        "--eval_length_factor",
        type=nullable(number),
        nargs="+",
        default=None,
        help="adm, adaptive_but: evaluate with these R - 1 capacities, fractions of the tokens that take "
        "passes 2..R; None: all of them",
    )
    add(
        "--routing",
        type=choice(CHOICES["routing"]),
        default="topk",
        help="adm, adaptive_but in evaluation: topk (the best tokens of each sequence, which looks ahead) or "
        "threshold (causal)",
    )
    add(
        "--routing_threshold",
        type=nullable(number),
        nargs="+",
        default=None,
        help="the R - 1 thresholds of --routing threshold; None: those that calibrate.py found for "
        "--eval_length_factor",
    )
    add("--mod_capacity_factor", type=number, default=0.6, help=NO_EFFECT)
    add(
        "--halt_threshold",
        type=number,
        default=0.999,
        help="stick_breaking: a token stops when its probability of having halted exceeds this",
    )
    add(
        "--depth_predictor_loss_coef",
        type=nullable(number),
        default=None,
        help="stick_breaking: weight of the ACT loss (expected depth); None: 0.03",
    )
    add(
        "--act_penalty",
        type=nullable(number),
        default=None,
        help="the same, by the name that the released code writes into its runs; wins if both are given",
    )
    add(
        "--act_loss_reduction",
        type=choice(CHOICES["act_loss_reduction"]),
        default="mean",
        help="stick_breaking: the ACT loss is a mean over tokens, or their sum, as in the released code",
    )
    add(
        "--ponder_lambda_p",
        type=number,
        default=0.4,
        help="pondernet: halting probability of the geometric prior; the paper: 0.4",
    )
    add(
        "--ponder_kl_div_loss_weight",
        type=number,
        default=0.01,
        help="pondernet: weight of the divergence from the prior",
    )
    add(
        "--ponder_eval",
        type=choice(CHOICES["ponder_eval"]),
        default="expectation",
        help="pondernet: evaluate the expectation over halting steps, or a drawn step (sample)",
    )


def _latent(add) -> None:
    add(
        "--kv_lora_rank",
        type=integer,
        default=192,
        help="mla: width of the latent that the keys and values of all heads are made from, which a cache "
        "keeps in their place",
    )
    add("--q_lora_rank", type=integer, default=384, help="mla: width of the latent that queries come through")
    add(
        "--qk_rope_head_dim",
        type=integer,
        default=32,
        help="mla: the part of a query or key that positions turn; the key's is shared by the heads",
    )
    add(
        "--qk_nope_head_dim",
        type=integer,
        default=64,
        help="mla: the part of a head's query or key that they do not turn",
    )
    add("--v_head_dim", type=integer, default=64, help="mla: width of a head's value")


def _pause(add) -> None:
    add(
        "--n_pause",
        type=integer,
        default=4,
        help="pause: learned tokens behind each token of the text; the next one is predicted at the last of "
        "them. --sequence_length counts the text alone",
    )


def _cache(add) -> None:
    add("--positional_encoder", type=choice(POSITIONAL_ENCODERS), default="rotary", help="rotary or none")
    add(
        "--attention_window_length",
        type=nullable(integer),
        default=None,
        help="a token sees this many positions, its own included; None: all before it",
    )
    add("--lm_cache", type=choice(("none",)), default="none", help=NO_EFFECT)
    add("--mem_cache_size", type=nullable(integer), default=None, help=NO_EFFECT)
    add("--cache_topk", type=integer, default=1, help=NO_EFFECT)
    add("--cache_selection_method", type=str, default="per_token_and_head", help=NO_EFFECT)
    add("--cache_indexing_scheme", type=str, default="by_total", help=NO_EFFECT)
    add("--track_cache_attention", action="store_true", help=NO_EFFECT)
    add("--allow_cache_during_training", action="store_true", help=NO_EFFECT)


def _evaluation(add) -> None:
    add(
        "--eval_freq",
        type=integer,
        default=200,
        help="steps between evaluations on 24 batches; the last one is on the whole validation set",
    )
    add(
        "--eval_seq_prefix",
        type=nullable(str),
        default="Once upon a time",
        help="each evaluation continues this text; None or none: no sample",
    )
    add(
        "--eval_seq_length",
        type=nullable(integer),
        default=None,
        help="eval.py: tokens of a sequence; None: sequence_length",
    )
    add(
        "--eval_sample_size",
        type=nullable(integer),
        default=None,
        help="eval.py: tokens to evaluate on; None: the whole validation set",
    )


def _logging(add) -> None:
    add(
        "--log_freq",
        type=nullable(integer),
        default=None,
        help="steps between lines of metrics.jsonl; None: eval_freq",
    )
    add("--wandb", action="store_true", help="log to Weights & Biases; WANDB_MODE=offline needs no network")
    add("--wandb_project", type=str, default="my-project", help="W&B project")
    add("--wandb_entity", type=nullable(str), default=None, help="W&B team; None: your own account")
    add("--results_base_folder", type=str, default="./exps", help="where the folders of runs lie")
    add(
        "--save_checkpoint_freq",
        type=nullable(integer),
        default=None,
        help="steps between checkpoints ckpt_<step>.pt; None: only ckpt.pt at the end",
    )
    add(
        "--keep_last",
        type=nullable(integer),
        default=None,
        help="keep only so many of the ckpt_<step>.pt, the newest; None: all",
    )
    add(
        "--keep_every",
        type=nullable(integer),
        default=None,
        help="with --keep_last: also those at multiples of so many steps",
    )
    add(
        "--checkpoint_staging_dir",
        type=nullable(str),
        default=os.environ.get("SLURM_TMPDIR") or None,
        help="a folder of this machine to write checkpoints to before they are copied to the run's folder; "
        "default: $SLURM_TMPDIR, if there is one",
    )
    add(
        "--max_steps_this_run",
        type=nullable(integer),
        default=None,
        help="stop after so many steps, and save: for chains of jobs",
    )
    add("--max_time", type=nullable(number), default=None, help="stop after so many minutes, and save")
    add(
        "--exit_code_unfinished",
        type=integer,
        default=0,
        help="exit code of a run that was stopped with steps left, by a signal (SIGTERM, SIGUSR1, Ctrl-C) or "
        "the flags above; 85 is usual for `run me again`",
    )
    add(
        "--extend_schedule",
        type=choice(EXTENSIONS),
        default="rebuild",
        help="when a run gets more --iterations: lay its schedule out anew over all (rebuild), or leave it "
        "as it is and hold its last rate (keep)",
    )
    add(
        "--remove_intermediary_checkpoints_at_end",
        action="store_true",
        help="delete the ckpt_<step>.pt when the run has finished",
    )
    add(
        "--use_pretrained",
        type=nullable(str),
        default="auto",
        help="auto: go on from the newest checkpoint of this run, if any; a file; None: start afresh",
    )
    add(
        "--exp_name",
        type=nullable(str),
        default=None,
        help="name of the run's folder; None: made from the flags",
    )
    add("--run_prefix", type=nullable(str), default=None, help="put before the name that is made")


def _distributed(add) -> None:
    add(
        "--distributed_backend",
        type=nullable(choice(BACKENDS)),
        default=None,
        help="of several processes, which torchrun starts: nccl (GPUs) or gloo (CPUs): a copy of the network "
        "in each (DDP); fsdp: a part of it in each; None: DDP over what the device has",
    )
    add(
        "--distributed_timeout",
        type=number,
        default=10.0,
        help="minutes that processes wait for one another before all give up",
    )
    add("--config_format", type=choice(("base",)), default="base", help="base, the only one there is")
