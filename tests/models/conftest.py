"""Networks here are small: faster forms of attention are taken although they do not pay."""

import pytest

import models.attention_op


@pytest.fixture(autouse=True)
def all_pay(monkeypatch):
    """Returns what really decides, by the name of the form."""
    decides = {"patches": models.attention_op._patches_pay, "products": models.attention_op._products_pay}
    for name in decides:
        monkeypatch.setattr(models.attention_op, f"_{name}_pay", lambda queries, passes: True)
    return decides
