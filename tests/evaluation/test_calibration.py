"""Calibration: thresholds for causal routing, found and kept."""

import json

import numpy as np
import pytest
import torch

from distributed import choose_precision
from errors import Failure, UsageError
from evaluation.calibration import (
    HALT_ALL,
    Calibration,
    CalibrationFile,
    calibrate,
    capacities_at,
    cascade,
    compute_fraction,
    find_thresholds,
    router_scores,
    threshold_for,
)
from tests.models.reference import make

FLOAT32 = choose_precision("torch.float32", torch.device("cpu"))


@pytest.fixture(params=["adm", "adaptive_but"])
def network(request):
    return make(request.param, n_repeat=4, depth_embedding="linear_learned", sequence_length=32)


def batches(count=4):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 31, (count, 8, 33), generator=generator)
    return [(part[:, :-1], part[:, 1:]) for part in ids]


@pytest.mark.parametrize(
    "factors",
    [[0.5, 0.25, 0.125], [0.9, 0.9, 0.3], [1.0, 0.5, 0.5], [0.3, 0.0, 0.0], [0.0, 0.0, 0.0], [1, 1, 1]],
)
def test_the_wanted_fractions_are_reached(network, factors):
    """Measured by running the model with the thresholds."""
    thresholds, reached, tokens = find_thresholds(network, batches(), factors, FLOAT32)
    assert tokens == 4 * 8 * 32
    passes = torch.cat(
        [network(ids, thresholds=thresholds, get_routing=True)["passes"].flatten() for ids, _ in batches()]
    )
    measured = [(passes > router + 1).float().mean().item() for router in range(3)]
    assert measured == pytest.approx(reached)
    assert measured == pytest.approx(factors, abs=1.5 / tokens)
    assert not network.training


def test_cascade_and_capacities_by_hand():
    scores = np.array([[0.9, 0.2, 0.5], [0.4, 0.8, 0.1], [0.6, 0.7, 0.9]])
    lowest = cascade(scores)
    assert lowest.tolist() == [[0.9, 0.2, 0.2], [0.4, 0.4, 0.1], [0.6, 0.6, 0.6]]
    assert capacities_at(lowest, 0.4) == pytest.approx([1.0, 2 / 3, 1 / 3])
    assert capacities_at(lowest, 0.0) == [1.0, 1.0, 1.0]
    assert capacities_at(lowest, HALT_ALL) == [0.0, 0.0, 0.0]


def test_scores_at_full_depth_are_of_every_token_in_order(network):
    parts = list(router_scores(network, batches(), FLOAT32, thresholds=[0.0] * 3))
    assert [part.shape for part in parts] == [(256, 3)] * 4 and not np.isnan(parts[0]).any()
    ids, _ = batches()[0]
    expected = network(ids, length_factors=[1.0] * 3, get_routing=True)["router_scores"][2, :, 5]
    assert parts[0][2 * 32 + 5].tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize("budget", [0.6, 0.8, 1.0])
def test_a_budget_is_met_from_below_and_closely(network, budget):
    full = [0.0] * 3
    lowest = cascade(np.concatenate(list(router_scores(network, batches(), FLOAT32, thresholds=full))))
    factors = capacities_at(lowest, threshold_for(network.config, lowest, 32, budget))
    cost = compute_fraction(network.config, 32, factors)
    assert budget - 0.01 < cost <= budget


def test_a_budget_under_one_pass_is_refused(network):
    with pytest.raises(
        UsageError, match=r"a budget of 0.1 cannot be met: one pass for every token is 0\.\d+"
    ):
        threshold_for(network.config, np.full((4, 3), 0.5), 32, 0.1)


def test_calibrations_are_kept_and_found_again(network, tmp_path):
    checkpoint = tmp_path / "ckpt.pt"
    settings = {"dataset": "pydoc", "sequence_length": 32}
    file = CalibrationFile(checkpoint, network)
    first = calibrate(network, file, batches(), FLOAT32, length_factors=[0.5, 0.4, 0.3], **settings)
    second = calibrate(network, file, batches(), FLOAT32, budget=0.7, **settings)
    assert isinstance(first, Calibration) and second.budget == 0.7

    again = CalibrationFile(checkpoint, network)
    nothing = []  # known calibrations need no text
    assert calibrate(network, again, nothing, FLOAT32, length_factors=(0.5, 0.4, 0.3), **settings) == first
    assert calibrate(network, again, nothing, FLOAT32, budget=0.7, **settings) == second
    assert again.find("other", 32, budget=0.7) is again.find("pydoc", 16, budget=0.7) is None

    # Calibrations of other weights under the same file name are ignored.
    with torch.no_grad():
        network.transformer["mod"][0].mod_router.weight += 1e-3
    assert CalibrationFile(checkpoint, network).calibrations == []


def test_a_damaged_file_is_named(network, tmp_path):
    path = tmp_path / "thresholds_ckpt.json"
    for content in ("{", "[]", json.dumps({"routers_sha256": ""})):
        path.write_text(content)
        if "sha256" in content:
            CalibrationFile(tmp_path / "ckpt.pt", network)
            continue
        with pytest.raises(Failure, match="is not a file of thresholds"):
            CalibrationFile(tmp_path / "ckpt.pt", network)


def test_thresholds_that_cannot_be_written_are_used(network, tmp_path, caplog):
    """As next to a checkpoint in a read-only folder."""
    (tmp_path / "file").touch()
    file = CalibrationFile(tmp_path / "file" / "ckpt.pt", network)
    found = calibrate(
        network, file, batches(), FLOAT32, dataset="d", sequence_length=32, length_factors=[0.5, 0.25, 0.0]
    )
    assert found.reached == pytest.approx([0.5, 0.25, 0.0], abs=0.01)
    assert "cannot write" in caplog.text and "the thresholds are used now" in caplog.text
