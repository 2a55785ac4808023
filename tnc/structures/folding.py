"""Foldings of a matrix: the modes that its two dimensions are cut into."""

from __future__ import annotations

from math import prod

from tnc.net import Signature
from tnc.structures.factorise import factorise

Modes = tuple[int, ...]


def folded(extent: int, parts: int, given: Modes) -> Modes:
    """Return the modes that are given, or the most even ones.

    >>> folded(384, 2, ()), folded(384, 2, (6, 64))
    ((16, 24), (6, 64))
    """
    return given or factorise(extent, parts)


def refuses_modes(signature: Signature, parts: int, outputs: Modes, inputs: Modes) -> str:
    """Say why given modes do not fold a weight; empty when they do, or none are given."""
    if not outputs and not inputs:
        return ""
    if len(signature.outputs) != 1 or len(signature.inputs) != 1:
        return "modes are given for matrices only"
    for name, given, extent in (
        ("output_modes", outputs, signature.outputs[0]),
        ("input_modes", inputs, signature.inputs[0]),
    ):
        if not given:
            continue
        if len(given) != parts or min(given) < 1:
            return f"{name} is {given}, {parts} modes of 1 or more are needed"
        if prod(given) < extent:
            return f"{name} {given} hold {prod(given)} of {extent} entries"
    return ""
