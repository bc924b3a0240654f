"""What the paper says of its rows, as pairs whose first is to have the lower loss."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """better, worse: names of rows. where: of the paper."""

    better: str
    worse: str
    where: str


def _table_1() -> list[Claim]:
    found = []
    for layers in (12, 24):
        for repeats in (2, 3, 5):
            size = f"{layers}x{repeats}"
            found.append(Claim(f"table1/cotformer-{size}", f"table1/but-{size}", "Table 1"))
            found.append(Claim(f"table1/but-{size}", f"table1/standard-{layers}", "Table 1"))
        for model in ("but", "cotformer"):
            for fewer, more in ((2, 3), (3, 5)):
                found.append(
                    Claim(f"table1/{model}-{layers}x{more}", f"table1/{model}-{layers}x{fewer}", "Table 1")
                )
    return found


CLAIMS = (
    *_table_1(),
    Claim("table2/ln-cotformer", "table2/cotformer-reserved", "Table 2"),
    Claim("table2/ln-cotformer", "table2/standard-48", "Table 2"),
    Claim("table5/mixture-of-repeats", "table5/stick-breaking", "Table 5"),
    Claim("table5/stick-breaking", "table5/pondernet", "Table 5"),
    Claim("table6/pause-24", "table6/standard-24", "Table 6"),
    Claim("table6/but-24x5", "table6/pause-24", "Table 6"),
    Claim("table6/cotformer-24x5", "table6/pause-24", "Table 6"),
)


@dataclass(frozen=True)
class RouterClaim:
    """That a series of Figure 4's points of this row lies under its fixed depths."""

    row: str
    series: str
    where: str = "Figure 4"


ROUTER_CLAIMS = tuple(RouterClaim("figure4/adm", f"router, {kind}") for kind in ("top-k", "threshold"))

# (smaller gap, larger gap): CoTFormer's lead over BUT grows with the repeats (Figure 2).
GROWING_GAPS = tuple(
    ((f"table1/cotformer-{n}x2", f"table1/but-{n}x2"), (f"table1/cotformer-{n}x5", f"table1/but-{n}x5"))
    for n in (12, 24)
)
