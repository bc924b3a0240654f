"""Multiply-accumulates of a forward pass in closed form, parameters, and bytes of the KV cache.

Two conventions, for one sequence of T tokens:
paper: as the published numbers (ptflops): dense attention over all keys whatever the mask, the head at the
last position only, and not the keys and values that the adaptive BUT computes of halted tokens.
true: what this code computes: only visible keys, the head at every position, keys and values of halted
tokens. Which keys a routed token sees depends on where the others are; this is the expectation over evenly
spread tokens. Embedding look-ups, norms, activations and softmax count nothing.

Pause tokens are computed like tokens, but the head reads one position per token of the text. Latent attention
is counted with the keys and values that training makes, without the zeros that pad its values.

Shapes: C = n_embd, H = n_head, L = kv_lora_rank, E = qk_rope_head_dim, V = vocab_size. No torch on import.
`python count_macs.py --model adm --n_repeat 5 ...` prints the table.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from errors import UsageError, unknown
from models.capacities import check_factors, tokens_per_pass
from models.config import ModelConfig

CONVENTIONS = ("paper", "true")
PARTS = ("projections", "attention", "mlp", "head", "router")
OPERATIONS = 2 * (1 + 2)  # of a multiply-accumulate in training: forward, and the gradients of both factors


class AttentionCosts(NamedTuple):
    """Multiply-accumulates of one attention layer.

    query: for a token's query and output. key_value: for its key and value. pair: for a query and a key that
    it attends to, in all heads. cached: numbers that a KV cache keeps of a token.
    """

    query: int
    key_value: int
    pair: int
    cached: int


def _multi_head(config: ModelConfig) -> AttentionCosts:
    width = config.n_embd
    return AttentionCosts(2 * width**2, 2 * width**2, 2 * width, 2 * width)


def _latent(config: ModelConfig) -> AttentionCosts:
    """As in training and evaluation, where keys and values are computed from the latents."""
    key, value = config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
    cached = config.kv_lora_rank + config.qk_rope_head_dim
    queries = config.q_lora_rank * (config.n_embd + config.n_head * key)
    made = config.kv_lora_rank * config.n_head * (config.qk_nope_head_dim + value)
    return AttentionCosts(
        query=queries + config.n_head * value * config.n_embd,
        key_value=config.n_embd * cached + made,
        pair=config.n_head * (key + value),
        cached=cached,
    )


ATTENTION_COSTS = {"mha": _multi_head, "mla": _latent}
BYTES = {"torch.float64": 8, "torch.float32": 4, "torch.bfloat16": 2, "torch.float16": 2}


def cache_bytes_per_token(args: Any, dtype: Any = "torch.bfloat16", attention: str | None = None) -> int:
    """Bytes of the KV cache for each token of a text (pause tokens included), over all layers and passes.

    Args:
        args: a namespace of flags, or a ModelConfig.
        dtype: of the cache, a torch.dtype or its name.
        attention: count as if the model had this kind ("mha": a key and a value of C numbers each, "mla": L +
        E
            numbers); None: its own.
    """
    config = args if isinstance(args, ModelConfig) else ModelConfig.from_args(args)
    costs = ATTENTION_COSTS[attention or config.variant.attention](config)
    n_begin, n_mid, n_end = config.layers
    blocks = n_begin + n_mid * config.repeats + n_end * config.exits
    return blocks * config.positions_per_token * costs.cached * BYTES[str(dtype)]


class Macs(int):
    """A number of multiply-accumulates, and the `parts` that it is the sum of (keys: PARTS)."""

    parts: dict[str, int]

    def __new__(cls, parts: dict[str, int]) -> "Macs":
        macs = super().__new__(cls, sum(parts.values()))
        macs.parts = parts
        return macs


def count_macs(
    args: Any,
    sequence_length: int,
    length_factors: Sequence[float] | None = None,
    convention: str = "paper",
) -> Macs:
    """MACs of one forward pass over one sequence of `sequence_length` tokens (Section 4 of the paper).

    args: a namespace of flags, or a ModelConfig. length_factors: fractions of the tokens that take passes
    2..R, for models in which tokens stop early; None: all. convention: `paper` or `true`, see above.
    Raises UsageError for impossible factors or an unknown convention.
    """
    config = args if isinstance(args, ModelConfig) else ModelConfig.from_args(args)
    if sequence_length < 1:
        raise UsageError(f"sequence_length={sequence_length} must be at least 1")
    if length_factors is not None:
        check_factors("length_factors", length_factors, config.n_repeat)
    factors = length_factors if config.variant.stops_early else None
    tokens = tokens_per_pass(
        sequence_length, config.repeats, factors, config.variant.single_precision_capacities
    )
    return macs_of_passes(config, tokens, convention)


def training_flops(args: Any, sequence_length: int, length_factors: Sequence[float] | None = None) -> int:
    """Floating-point operations of forward and backward passes over one sequence, convention `true`.

    What model FLOP utilisation counts (PaLM, appendix B): a multiply-accumulate is two operations, the
    backward pass is twice the forward pass, and recomputation counts nothing. Arguments as `count_macs`.
    """
    return OPERATIONS * int(count_macs(args, sequence_length, length_factors, "true"))


def macs_of_passes(config: ModelConfig, tokens: Sequence[float], convention: str) -> Macs:
    """The same from the tokens that took each pass, as a forward pass reports them (`tokens_per_pass`)."""
    if convention not in CONVENTIONS:
        raise UsageError(unknown(f"convention {convention!r} is unknown", convention, CONVENTIONS))
    rows = [Fraction(n).limit_denominator(10**6) * config.positions_per_token for n in tokens]
    count = _Count(config, rows, convention == "true")
    n_begin, n_mid, n_end = config.layers
    variant = config.variant
    count.blocks(n_begin + n_end * config.exits, count.length, [count.length])
    for repeat, present in enumerate(count.tokens, start=1):
        keys = count.tokens[:repeat] if variant.sees_all_passes else [count.length]
        with_keys = count.length if variant.halted_tokens_offer_keys else present
        count.blocks(n_mid, present, keys, with_keys)
        count.decisions(repeat, present)
    count.head()
    return Macs({name: round(count.parts[name]) for name in PARTS})


class _Count:
    """Sums of the parts. length: tokens of the sequence and its pauses, all of which take the first pass."""

    def __init__(self, config: ModelConfig, tokens: list[Fraction], true: bool) -> None:
        self.config, self.tokens, self.true = config, tokens, true
        self.length = tokens[0]
        self.parts: dict[str, Fraction | float] = dict.fromkeys(PARTS, Fraction(0))

    def blocks(
        self, layers: int, present: Fraction, keys: Sequence[Fraction], with_keys: Fraction | None = None
    ) -> None:
        """present: tokens with queries. keys: of each pass, those they see. with_keys: tokens with keys."""
        if not present:
            return
        costs = ATTENTION_COSTS[self.config.variant.attention](self.config)
        with_keys = present if with_keys is None or not self.true else with_keys
        self.parts["projections"] += layers * (costs.query * present + costs.key_value * with_keys)
        self.parts["mlp"] += layers * self.config.n_embd**2 * 8 * present
        pairs = sum(self._pairs(present, count) if self.true else present * count for count in keys)
        self.parts["attention"] += layers * costs.pair * pairs

    def _pairs(self, queries: Fraction, keys: Fraction) -> Fraction | float:
        """Pairs of a query and a key it sees: its own position always, of the others in proportion."""
        length, window = self.length, self.config.attention_window_length or self.length
        window = min(window, length)
        others = window * (window - 1) / 2 + (length - window) * (window - 1)  # of all tokens with all
        if length == 1:
            return queries
        return queries + queries * (keys - 1) * others / (length * (length - 1))

    def decisions(self, repeat: int, present: Fraction) -> None:
        """Routers, halting gates and halting heads after a pass."""
        config, width = self.config, self.config.n_embd
        last = repeat == config.repeats
        if config.variant.routed and not last:
            # The released adaptive BUT scores halted tokens too.
            everyone = config.variant.halted_tokens_offer_keys and not self.true
            self.parts["router"] += width * (self.length if everyone else present)
        elif config.variant.has_halting_gate:
            self.parts["router"] += (width**2 + 2 * width) * present
        elif config.variant.predicts_every_pass and not last:
            self.parts["router"] += width * (self.length if self.true else 1)

    def head(self) -> None:
        positions = self.length / self.config.positions_per_token if self.true else 1
        self.parts["head"] += self.config.exits * positions * self.config.vocab_size * self.config.n_embd


def parameter_count(config: ModelConfig) -> int:
    """Number of weights; the head shares the embedding's, which are counted once."""
    width, bias, variant = config.n_embd, int(config.bias), config.variant
    if variant.attention == "mla":
        heads, shared = config.n_head, config.qk_rope_head_dim
        query, latent, value = config.q_lora_rank, config.kv_lora_rank, config.v_head_dim
        attention = query * (width + bias + 1 + heads * (config.qk_nope_head_dim + shared))
        attention += (width + bias) * (latent + shared) + latent
        attention += latent * heads * (config.qk_nope_head_dim + value) + (heads * value + bias) * width
    else:
        attention = 4 * width * (width + bias)
    norm = width * (1 + bias)
    block = attention + 8 * width**2 + 5 * width * bias + 2 * norm
    other = (config.vocab_size + config.n_pause * variant.pauses) * width
    other += norm * (1 + config.has_ln_mid)
    if config.has_depth_embedding:
        other += width * (config.n_repeat if config.depth_embedding == "learned" else 1)
    other += width * (config.n_repeat - 1) * variant.routed
    other += width * (width + 3) * variant.has_halting_gate + (width + 1) * (config.exits - 1)
    return config.n_layer * block + other


def count_parameters(args: Any) -> dict[str, int]:
    """total: with the head, which shares the embedding's weights, counted again. unique: each once.

    without_embeddings: unique, less the embedding. effective_layers: blocks that a token passes at full
    depth.
    """
    config = args if isinstance(args, ModelConfig) else ModelConfig.from_args(args)
    unique = parameter_count(config)
    embedding = config.vocab_size * config.n_embd
    n_begin, n_mid, n_end = config.layers
    return {
        "total": unique + embedding,
        "unique": unique,
        "without_embeddings": unique - embedding,
        "effective_layers": n_begin + n_mid * config.repeats + n_end,
    }


def table(
    config: ModelConfig, sequence_length: int, length_factors: Sequence[float] | None, dtype: str
) -> str:
    """The table that count_macs.py prints. dtype: of the cache."""
    counts = [count_macs(config, sequence_length, length_factors, name) for name in CONVENTIONS]
    rows = [("MACs", *CONVENTIONS)]
    rows += [(part, *(f"{count.parts[part]:,}" for count in counts)) for part in PARTS]
    rows.append(("total", *(f"{count:,}" for count in counts)))
    rows.append(("per token", *(f"{count / sequence_length:,.0f}" for count in counts)))
    rows += [("", "", ""), ("parameters", "", "")]
    rows += [(name.replace("_", " "), f"{n:,}", "") for name, n in count_parameters(config).items()]
    rows += [("", "", ""), (f"cache, {dtype.removeprefix('torch.')}", "", "")]
    rows.append(("bytes per token", f"{cache_bytes_per_token(config, dtype):,}", ""))
    if config.variant.attention != "mha":
        rows.append(("with multi-head", f"{cache_bytes_per_token(config, dtype, 'mha'):,}", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"{name.ljust(widths[0])}  {one.rjust(widths[1])}  {two.rjust(widths[2])}".rstrip()
        for name, one, two in rows
    ]
    begin, middle, end = config.layers
    capacities = "" if length_factors is None else f", capacities {' '.join(map(str, length_factors))}"
    title = (
        f"{config.variant.paper_name}, {begin} -> {middle}x{config.repeats} -> {end} layers, "
        f"n_embd {config.n_embd}, one sequence of {sequence_length} tokens{capacities}"
    )
    return "\n".join([title, "", *lines])


if __name__ == "__main__":  # the old form of the command
    import runpy

    runpy.run_module("count_macs", run_name="__main__", alter_sys=True)
