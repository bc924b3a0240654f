"""What each kind of attention costs: multiply-accumulates, and memory in a cache. No torch here.

Shapes: C = n_embd, H = n_head, L = kv_lora_rank, E = qk_rope_head_dim.
"""

from typing import Any, NamedTuple

from models.config import ModelConfig


class AttentionCosts(NamedTuple):
    """Of one layer. asking: multiply-accumulates for a row's query and output. offering: for its keys and
    values. pair: for a query and a key that it looks at, in all heads. kept: numbers of a row in a cache.
    """

    asking: int
    offering: int
    pair: int
    kept: int


def _multi_head(config: ModelConfig) -> AttentionCosts:
    width = config.n_embd
    return AttentionCosts(2 * width**2, 2 * width**2, 2 * width, 2 * width)


def _latent(config: ModelConfig) -> AttentionCosts:
    """As in training and evaluation, where keys and values are made from the latents."""
    key, value = config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
    kept = config.kv_lora_rank + config.qk_rope_head_dim
    queries = config.q_lora_rank * (config.n_embd + config.n_head * key)
    made = config.kv_lora_rank * config.n_head * (config.qk_nope_head_dim + value)
    return AttentionCosts(
        asking=queries + config.n_head * value * config.n_embd,
        offering=config.n_embd * kept + made,
        pair=config.n_head * (key + value),
        kept=kept,
    )


ATTENTION_COSTS = {"mha": _multi_head, "mla": _latent}
BYTES = {"torch.float64": 8, "torch.float32": 4, "torch.bfloat16": 2, "torch.float16": 2}


def cache_bytes_per_token(args: Any, dtype: Any = "torch.bfloat16", attention: str | None = None) -> int:
    """Memory of the key/value cache for each token of a text, over all layers and repeats, at full depth.

    Pauses behind the token are its too.
    args: a namespace of flags, or a ModelConfig. dtype: of what is kept (a torch.dtype or its name).
    attention: count as if the model had that kind; None: its own. Multi-head attention keeps a key and a
    value of C numbers each, latent attention L + E numbers.
    """
    config = args if isinstance(args, ModelConfig) else ModelConfig.from_args(args)
    costs = ATTENTION_COSTS[attention or config.variant.attention](config)
    n_begin, n_mid, n_end = config.layers
    blocks = n_begin + n_mid * config.repeats + n_end * config.exits
    return blocks * config.positions_per_token * costs.kept * BYTES[str(dtype)]
