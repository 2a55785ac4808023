"""Test data: options for families that need them, and the weights that every family meets."""

from __future__ import annotations

from collections.abc import Iterator

from tnc.decide.options import build
from tnc.net import Signature, Structure
from tnc.structures import Family, families

OPTIONS: dict[str, tuple[dict[str, object], ...]] = {
    "free-form": (
        {"equation": "L[o1 i1 r] M[r o2 i2 s] N[s o3 i3] : (i1 i2 i3) -> (o1 o2 o3)"},
        {"equation": "A[g o i] : (g i) -> (g o)", "sizes": {"g": 2}},
        {"equation": "B[o r] A[r i h w] : i h w -> o"},
    ),
    "tucker": ({}, {"factors": 2}, {"spatial": True}),
    "tensor-train": ({}, {"factors": 3}, {"output_modes": (2, 6), "input_modes": (9, 2)}),
    "tensor-ring": ({"factors": 3}, {"output_modes": (2, 3, 2)}),
    "block-tensor-train": ({}, {"output_modes": (2, 6), "input_modes": (9, 2)}),
    "search": ({"evaluations": 4},),
    "cp": ({}, {"factors": 1}),
    "sum": tuple(
        {"terms": tuple(build(families, term) for term in terms)}
        for terms in (
            ("low-rank", "kronecker"),
            ("low-rank", "sparse"),
            ("tucker", "tensor-train", "low-rank"),
        )
    ),
    "stacked": tuple(
        {"of": build(families, of), "shared": shared}
        for of, shared in (("low-rank", ()), ("low-rank", ("A",)), ("tucker", ("V1",)))
    ),
    "grouped-low-rank": ({}, {"groups": 3, "scheme": 1}, {"groups": 2, "scheme": 3}),
    "butterfly": ({}, {"factors": 3}),
    "block-diagonal": ({"blocks": 2},),
    "einsum": (
        {},
        {"theta": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)},
        {"theta": (0.4, 0.3, 0.3, 0.3, 0.3, 0.4, 0.5)},
    ),
    "blast": ({}, {"blocks": 3}),
    "block-term": ({}, {"blocks": 3, "factors": 3}),
    "fully-connected": ({}, {"factors": 4}),
    "generalised-block-low-rank": ({}, {"components": 3}),
    "tucker-cp": ({}, {"factors": 1}),
    "hierarchical-tucker": ({}, {"factors": 2, "tree": "((o1 i1) (o2) (i2))"}),
}

LINEAR = (Signature((12,), (18,)), Signature((7,), (11,)))
CONV = (Signature((8,), (6, 3, 3)), Signature((5,), (7, 3, 2)), Signature((6,), (4, 1, 1)))


def members() -> Iterator[tuple[str, Family]]:
    """Yield every registered family with each of its options."""
    for name, family in families.all().items():
        for options in OPTIONS.get(name, ({},)):
            yield f"{name}-{options or ''}", family(**options)


def structures() -> Iterator[tuple[str, Family, Signature]]:
    """Yield every registered family with each of its options and every weight that it takes."""
    for name, made in members():
        for signature in LINEAR + CONV:
            if not made.refuses(signature):
                yield f"{name}-{signature}", made, signature


def linear_structures() -> dict[str, Structure]:
    """Return a structure of half the size for every family and its options that has kernels.

    Without sparse cores; of the two weights one has prime sizes, which most families pad: the
    members take them in turn.
    """
    found = {}
    for place, (name, made) in enumerate(members()):
        taken = [signature for signature in LINEAR if not made.refuses(signature)]
        if not taken:
            continue
        signature = taken[place % len(taken)]
        template = made.template(signature)
        structure = template.at(template.within(signature.parameters // 2) or template.scaled(0.0))
        if not structure.stored:
            found[f"{name}-{signature}"] = structure
    return found
