"""Items of the GPU gate on the imitated device: none of them mixes devices, and their checks pass."""

import pytest


@pytest.mark.parametrize("name", ["formats", "waits", "checkpoint", "generation", "rotary"])
def test_items_pass(on_cuda, name):
    rows = on_cuda("gate_item", name=name)
    failed = [one["name"] for one in rows if one["ok"] is False]
    assert rows and failed == (["kernel, float32", "kernel, bfloat16"] if name == "rotary" else [])
