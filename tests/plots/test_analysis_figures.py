"""Figures of the analysis commands: readable with many layers, repeats and bins."""

import numpy as np

from plots import kv_compression, logit_lens, router
from tests.plots.legibility import texts, unreadable

ABOUT = {"model": "adm", "tokens": 16_000, "n_repeat": 5}
LAYERS = ["begin 0", *(f"middle {index}" for index in range(21)), "end 0", "end 1"]
NAMES = ("keys", "values", "joint")


def test_logit_lens_joins_repeats_and_blocks_apart(tmp_path, drawn):
    depths = {}
    for repeat in range(1, 6):
        for name in (f"middle 0, repeat {repeat}", f"middle 1, repeat {repeat}", f"repeat {repeat}"):
            depths[name] = {
                "loss": 2.4715 + 1e-4 * repeat,
                "accuracy": 0.3,
                "agreement": 0.9,
                "divergence": 0.1,
            }
    content = ABOUT | {"depths": depths, "through_end_blocks": True}
    logit_lens.draw(content, tmp_path / "lens")
    (figure,) = drawn
    assert unreadable(figure) == []
    repeats, blocks = figure.axes[0].lines
    assert list(repeats.get_xdata()) == [2, 5, 8, 11, 14] and len(blocks.get_xdata()) == 10
    assert not figure.axes[0].yaxis.get_offset_text().get_text()  # 2.4715, not 0.0005
    assert "Adaptive LN-CoTFormer, means over 16,000 tokens" in texts(figure)


def test_router_figures(tmp_path, drawn):
    entry = {"depth": 2.5, "lowest_score": 0.02, "tokens": 1234, "loss": 1.0}
    entry |= {f"score_{router}": 0.1 * router for router in range(1, 5)}
    bins = [entry | {"label": f"{100 * index:,} to {100 * index + 99:,}"} for index in range(20)]
    content = ABOUT | {"mean": entry, "alike_in_depth": False, "types_ranked_by": "lowest_score"}
    content |= dict.fromkeys(("by_frequency", "by_position", "by_loss"), bins)
    content |= {
        "deepest": [entry | {"label": "'$x^2$'"}] * 15,
        "least_deep": [entry | {"label": "'\\n'"}] * 15,
    }
    router.draw(content, tmp_path / "router")
    assert [unreadable(figure) for figure in drawn] == [[], []]
    assert "score of router 4" in texts(drawn[0])


def test_kv_compression_figures_of_a_deep_model(tmp_path, drawn):
    ranks = {"90": 8, "95": 12, "99": 20}
    passes = {layer: list(range(1, 6)) if layer.startswith("middle") else [1] for layer in LAYERS}
    places = [(layer, repeat) for layer in LAYERS for repeat in passes[layer]]
    every = [*places, *((layer, "all") for layer in LAYERS if layer.startswith("middle"))]
    values = 0.8 ** np.arange(64)
    kept = {name: [0.9] for name in ("own", "shared", "shared_keys", "shared_values")}
    by_layer = dict.fromkeys(LAYERS, kept)
    content = ABOUT | {
        "n_embd": 64,
        "weights": [{"layer": layer} | dict.fromkeys(NAMES, ranks) for layer in LAYERS],
        "data": [
            {"layer": layer, "repeat": repeat} | {name: {"second_moment": ranks} for name in NAMES}
            for layer, repeat in every
        ],
        "attention": [
            {"layer": layer, "repeat": repeat, "entropy": 3.2, "normalised": 0.5} for layer, repeat in places
        ],
        "latents": {
            "full_cache_bytes_per_token": 3584,
            "ranks": [{"rank": rank, "energy_kept": by_layer} for rank in (16, 17, 18, 32, 128)],
        },
    }  # fmt: skip
    spectra = {f"weights/{layer}/{name}": values for layer in LAYERS for name in NAMES}
    spectra |= {f"data/{layer}/{repeat}/{name}": values for layer, repeat in every for name in NAMES}
    kv_compression.draw(content, spectra, tmp_path / "kv")
    assert [unreadable(figure) for figure in drawn] == [[], [], [], []]
    assert [label.get_text()[:3].strip() for label in drawn[2].axes[0].get_xticklabels()] == [
        "16",
        "32",
        "128",
    ]
