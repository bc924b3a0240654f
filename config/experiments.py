"""The experiments of the paper: the one place where their hyperparameters stand.

`python main.py --experiment table2/ln-cotformer` trains one; explicit flags override its own. The
job packages under iridis/ name rows of this table. Published values: perplexity on OpenWebText2's validation
set and, where there were several seeds, its standard error over them (Mohtashami et al., ICLR 2025).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from errors import UsageError, unknown

# A step sees 128 sequences of 256 tokens in all experiments; how it is divided into micro-batches is a matter
# of the GPU's memory, and may be overridden.
PROTOCOL = {
    "dataset": "owt2", "vocab_size": 50304, "sequence_length": 256, "batch_size": 64, "acc_steps": 2,
    "n_embd": 768, "n_head": 12, "positional_encoder": "rotary",
    "opt": "adamw", "lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1, "grad_clip": 0.0,
    "dropout": 0.0, "scheduler": "cos", "warmup_percent": 0.2, "final_div_factor": 0.05,
    "iterations": 40_000, "eval_freq": 100,
}  # fmt: skip


@dataclass(frozen=True)
class Experiment:
    """A row. name: <table or figure>/<model>; flags: of main.py, by name.

    perplexity, error: as published; None where the paper shows a point without its number, or one seed.
    zero_shot: of Table 3, accuracies in percent in MMLU, ARC, HellaSwag and PIQA.
    """

    name: str
    flags: Mapping[str, object]
    perplexity: float | None = None
    error: float | None = None
    zero_shot: tuple[float, float, float, float] | None = None


def _row(
    name: str,
    model: str,
    n_layer: int,
    n_repeat: int = 1,
    published: tuple[float | None, float | None] = (None, None),
    **flags: object,
) -> Experiment:
    shape: dict[str, object] = {"model": model, "n_layer": n_layer}
    if model not in ("base", "pause"):
        shape["n_repeat"] = n_repeat
    return Experiment(name, PROTOCOL | shape | flags, *published)


# Reserved layers run once, before and after the repeated ones: 2 -> 21xR -> 1.
RESERVED = {"n_layer_begin": 2, "n_layer_end": 1}
LINEAR = {"depth_embedding": "linear_learned"}
# The name that the paper's runs gave for how capacities are drawn; here as there, it means `uniform`.
ADAPTIVE = RESERVED | {"depth_random_method": "uniform_random_range"}
# A folder of its own: as a longer run in the folder of 40k steps it would extend that one.
LONG = {"iterations": 60_000, "run_prefix": "60k"}

_TABLE_1 = {
    ("base", 12, 1): (28.39, 0.01), ("base", 24, 1): (25.93, 0.02), ("base", 48, 1): (24.17, 0.00),
    ("but", 12, 2): (27.74, 0.01), ("but", 12, 3): (27.47, 0.01), ("but", 12, 5): (27.15, 0.02),
    ("cotformer", 12, 2): (27.55, 0.02), ("cotformer", 12, 3): (27.07, 0.01),
    ("cotformer", 12, 5): (26.64, 0.04),
    ("but", 24, 2): (25.47, 0.01), ("but", 24, 3): (25.19, 0.03), ("but", 24, 5): (24.95, 0.01),
    ("cotformer", 24, 2): (25.28, 0.00), ("cotformer", 24, 3): (24.85, 0.04),
    ("cotformer", 24, 5): (24.48, 0.03),
}  # fmt: skip


def _label(model: str, n_layer: int, n_repeat: int) -> str:
    return f"standard-{n_layer}" if model == "base" else f"{model}-{n_layer}x{n_repeat}"


EXPERIMENTS = (
    *(_row(f"table1/{_label(*key)}", *key, published) for key, published in _TABLE_1.items()),
    _row("table2/standard-48", "base", 48, 1, (24.17, 0.00)),
    _row("table2/cotformer-24x5", "cotformer", 24, 5, (24.48, 0.03)),
    _row("table2/cotformer-reserved", "cotformer", 24, 5, (24.51, 0.01), **RESERVED),
    # 24.11 is Table 4's number *without* a depth embedding.
    _row("table2/ln-cotformer", "ln_cotformer", 24, 5, (24.11, 0.03), **RESERVED),
    *(
        replace(_row(f"table3/{name}", *shape, **flags), zero_shot=accuracies)
        for name, shape, flags, accuracies in (
            ("standard-24", ("base", 24), {}, (25.83, 29.34, 27.41, 58.54)),
            ("but-24x2", ("but", 24, 2), {}, (25.64, 29.50, 27.38, 59.09)),
            ("but-24x5", ("but", 24, 5), {}, (26.07, 30.25, 27.73, 58.27)),
            # The table says 2->21x5->1; of the two models with these layers this is the better one.
            ("ln-cotformer", ("ln_cotformer", 24, 5), RESERVED, (25.98, 29.89, 28.20, 59.30)),
            ("cotformer-24x5", ("cotformer", 24, 5), {}, (25.99, 29.95, 27.74, 59.47)),
            ("cotformer-24x2", ("cotformer", 24, 2), {}, (26.22, 30.72, 27.26, 58.65)),
            ("standard-48", ("base", 48), {}, (26.11, 29.31, 27.93, 60.28)),
        )
    ),
    # Adaptive at 40k steps; Section 5's have 60k.
    _row("table4/adm", "adm", 24, 5, (25.08, 0.03), **ADAPTIVE),
    _row("table4/adm-depth-embedding", "adm", 24, 5, (24.94, 0.01), **ADAPTIVE, **LINEAR),
    _row("table4/ln-cotformer", "ln_cotformer", 24, 5, (24.11, 0.03), **RESERVED),
    _row("table4/ln-cotformer-depth-embedding", "ln_cotformer", 24, 5, (24.17, 0.08), **RESERVED, **LINEAR),
    # Table 5's sizes are not known to us: these are those of Table 7.
    *(
        _row(f"table5/{name}", model, 12, 5, (perplexity, None), iterations=10_000, **flags)
        for name, model, perplexity, flags in (
            ("stick-breaking", "stick_breaking", 33.82, {}),
            ("pondernet", "pondernet", 41.37, {"ponder_lambda_p": 0.4}),
            ("mixture-of-repeats", "adaptive_but", 33.08, LINEAR),
        )
    ),
    _row("table6/standard-24", "base", 24, 1, (25.93, 0.02)),
    _row("table6/pause-24", "pause", 24, 1, (25.05, 0.03), n_pause=4),
    _row("table6/but-24x5", "but", 24, 5, (24.95, 0.01)),
    _row("table6/cotformer-24x5", "cotformer", 24, 5, (24.48, 0.03)),
    _row("table6/standard-48", "base", 48, 1, (24.17, 0.00)),
    *(
        _row(f"table7/{model}-{width}-{length}", model, 12, 5, (perplexity, None), **flags)
        for width, length, flags, perplexities in (
            (768, 256, {}, (27.15, 26.64)),
            (768, 512, {"sequence_length": 512}, (21.53, 21.06)),
            (1024, 256, {"n_embd": 1024, "n_head": 16}, (24.89, 24.56)),
        )
        for model, perplexity in zip(("but", "cotformer"), perplexities, strict=True)
    ),
    _row("section5/ln-cotformer-60k", "ln_cotformer", 24, 5, (23.19, None), **RESERVED, **LINEAR, **LONG),
    _row("section5/adm-60k", "adm", 24, 5, (23.83, None), **ADAPTIVE, **LINEAR, **LONG),
    # Of Figure 2, what Table 1 does not have.
    _row("figure2/cotformer-12x15", "cotformer", 12, 15),
    _row("figure2/but-12x6", "but", 12, 6),
    _row("figure2/but-12x15", "but", 12, 15),
    # Figure 3 counts these two, and trains nothing.
    _row("figure3/cotformer-12x3", "cotformer", 12, 3),
    _row("figure3/but-12x5", "but", 12, 5),
    # Figures 4 and 5 are drawn from the adaptive model of Section 5.
    _row("figure4/adm", "adm", 24, 5, **ADAPTIVE, **LINEAR, **LONG),
)  # fmt: skip

BY_NAME = {experiment.name: experiment for experiment in EXPERIMENTS}


def find_experiment(name: str) -> Experiment:
    """The row of that name. Raises UsageError, with the nearest name, where there is none."""
    rows = [one for one in BY_NAME if one.startswith(f"{name.rstrip('/')}/")]
    if rows:
        raise UsageError(f"--experiment {name} has {len(rows)} experiments; choose one: {', '.join(rows)}")
    if name not in BY_NAME:
        raise UsageError(unknown(f"--experiment {name}: unknown experiment", name, BY_NAME))
    return BY_NAME[name]
