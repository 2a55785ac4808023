"""Plans to report on: a hostile one, and one of thousands of layers."""

from __future__ import annotations

from dataclasses import replace

from tests.unit.test_cli import plan_of
from tnc.decide.background import Background, Curve, Part
from tnc.decide.plan import Entry, Plan, Total
from tnc.net import Structure, parse_network

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def hostile() -> Plan:
    """A plan whose every free text is markup."""
    plan = plan_of(reason=HOSTILE)
    entries = (replace(plan.entries[0], site=f"{HOSTILE}.weight", rule=HOSTILE), plan.entries[1])
    return replace(
        plan,
        entries=entries,
        skips=tuple(replace(skip, site=HOSTILE, reason=HOSTILE) for skip in plan.skips),
        notes=(HOSTILE,),
        background=Background(
            curves=(Curve(f"{HOSTILE}.weight", HOSTILE, ("r",), ((32, 9, 0.1, 0.2, 2),)),),
            resource="params",
            frontier=((96.0, 0.3), (128.0, 0.0)),
            parts=(Part(HOSTILE, HOSTILE, 64, 64), Part("b", "Linear", 64, 64)),
        ),
    )


def large(layers: int = 2000, families: int = 3) -> Plan:
    """A plan of many layers, with curves, in blocks of four."""
    names = ("low-rank", "tensor-train", "tucker")[:families]
    entries, curves, parts = [], [], []
    for number in range(layers):
        site = f"model.layers.{number // 4}.{('q', 'k', 'up', 'down')[number % 4]}_proj.weight"
        rank = 8 + number * 7 % 240
        structure = Structure.of(parse_network(f"B[o r] A[r i] : i -> o | i=1024 o=1024 r={rank}"))
        dense, made = 1024 * 1024, 2048 * rank
        kept = number % 9 == 0
        family = "dense" if kept else names[number % families]
        entries.append(
            Entry(
                site,
                (site,),
                None if kept else structure,
                "svd",
                family,
                "both",
                1e-3 * (256 - rank),
                (256 - rank) / 300,
                dense if kept else made,
                dense,
                2 * dense if kept else 2 * made,
                2 * dense,
                "it pays",
                "s.yaml:4",
            )
        )
        parts.append(Part(site.removesuffix(".weight"), "Linear", dense, 2 * dense))
        for name in names:
            points = tuple(
                (2048 * r, 4096 * r, (256 - r) / 1000, (256 - r) / 300, r)
                for r in range(8, 256, 11)
            )
            curves.append(Curve(site, name, ("r",), points))
    dense = 1024 * 1024 * layers
    used = sum(entry.params for entry in entries)
    total = Total(used, dense, 2 * used, 2 * dense)
    frontier = tuple((dense * k / 20, float((20 - k) ** 2)) for k in range(1, 21))
    return Plan("f", 0, tuple(entries), (), ("factorize",), (("params", used * 1.01),), "sum",
                total, total,
                background=Background(tuple(curves), "params", frontier, tuple(parts)))  # fmt: skip
