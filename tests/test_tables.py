"""Tables as text, Markdown and LaTeX."""

from tables import aligned_table, latex_table, markdown_table

ROWS = [("", "loss", "note"), ("a_b", "1 +- 2", "95 %"), ("long name", "3", "")]


def test_columns_are_aligned():
    lines = [
        "             loss  note",
        "a_b        1 +- 2  95 %",
        "long name       3",
    ]  # no spaces at the ends
    assert aligned_table(ROWS, "rrl").split("\n")[1] == "      a_b  1 +- 2  95 %"
    assert aligned_table(ROWS, "lrl").split("\n") == lines
    assert aligned_table(ROWS).split("\n")[1] == "a_b        1 +- 2  95 %"
    assert aligned_table([]) == ""


def test_markdown():
    assert markdown_table(ROWS).split("\n")[:3] == [
        "|  | loss | note |",
        "| --- | --- | --- |",
        "| a_b | 1 +- 2 | 95 % |",
    ]


def test_latex():
    lines = latex_table(iter(ROWS)).split("\n")
    assert lines[0] == r"\begin{tabular}{lll}" and lines[-1] == r"\end{tabular}"
    assert lines[3] == r"\midrule" and lines[4] == r"a\_b & 1 $\pm$ 2 & 95 \% \\"
