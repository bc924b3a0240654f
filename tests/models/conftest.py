"""Networks here are small: faster forms of attention are taken although they do not pay."""

import pytest

import models.attend


@pytest.fixture(autouse=True)
def all_pay(monkeypatch):
    """Returns what really decides, by the name of the form."""
    decides = {"patches": models.attend._patches_pay, "products": models.attend._products_pay}
    for name in decides:
        monkeypatch.setattr(models.attend, f"_{name}_pay", lambda queries, passes: True)
    return decides
