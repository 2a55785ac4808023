"""Test data: options for families that need them, and the weights that every family meets."""

from __future__ import annotations

from collections.abc import Iterator

from tnc.decide.options import build
from tnc.net import Signature
from tnc.structures import Family, families

OPTIONS: dict[str, tuple[dict[str, object], ...]] = {
    "free-form": (
        {"equation": "L[o1 i1 r] M[r o2 i2 s] N[s o3 i3] : (i1 i2 i3) -> (o1 o2 o3)"},
        {"equation": "A[g o i] : (g i) -> (g o)", "sizes": {"g": 2}},
        {"equation": "B[o r] A[r i h w] : i h w -> o"},
    ),
    "tucker": ({}, {"factors": 2}),
    "tensor-train": ({}, {"factors": 3}),
    "tensor-ring": ({"factors": 3},),
    "cp": ({}, {"factors": 1}),
    "sum": tuple(
        {"terms": tuple(build(families, term) for term in terms)}
        for terms in (("low-rank", "kronecker"), ("tucker", "tensor-train", "low-rank"))
    ),
}

LINEAR = (Signature((12,), (18,)), Signature((7,), (11,)))
CONV = (Signature((8,), (6, 3, 3)), Signature((5,), (7, 3, 2)))


def structures() -> Iterator[tuple[str, Family, Signature]]:
    """Yield every registered family with each of its options and every weight that it takes."""
    for name, family in families.all().items():
        for options in OPTIONS.get(name, ({},)):
            made = family(**options)
            for signature in LINEAR + CONV:
                if not made.refuses(signature):
                    yield f"{name}-{options or ''}-{signature}", made, signature
