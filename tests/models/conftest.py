"""Networks here are small: attention by patches is taken although it does not pay."""

import pytest

import models.attend


@pytest.fixture(autouse=True)
def patches_pay(monkeypatch):
    """Returns what really decides."""
    decides = models.attend._pays
    monkeypatch.setattr(models.attend, "_pays", lambda queries, passes: True)
    return decides
