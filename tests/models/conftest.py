"""Networks here are small, and in float64: attention takes its CPU kernel although it is not faster."""

import pytest
import torch

import models.attention_op


@pytest.fixture(autouse=True)
def really_faster(monkeypatch):
    """Returns what decides outside of tests."""
    decides = models.attention_op._cpu_matmul_is_faster

    def always(queries, *_):
        return queries.device.type == "cpu" and not torch.compiler.is_compiling()

    monkeypatch.setattr(models.attention_op, "_cpu_matmul_is_faster", always)
    return decides
