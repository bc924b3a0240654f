"""Figures stay open for a test after they are written."""

import pytest


@pytest.fixture
def drawn(monkeypatch):
    """A list that receives each figure that the test writes."""
    from matplotlib import pyplot

    figures = []
    close = pyplot.close
    monkeypatch.setattr(pyplot, "close", figures.append)
    yield figures
    for figure in figures:
        close(figure)
