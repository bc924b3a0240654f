"""Numbers of the paper's figures."""

from reproduction.figures import published_anchors


def test_published_values_have_the_macs_of_the_paper():
    anchors = {label: macs for label, macs, _ in published_anchors()}
    assert round(anchors["Standard, 48 layers, 40k steps"] / 1e9, 3) == 91.844
    assert round(anchors["ADM, full compute, 60k steps"] / 1e9, 2) == 227.74
