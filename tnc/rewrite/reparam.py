"""What a rewrite did to one weight."""

from __future__ import annotations

from dataclasses import dataclass

from tnc.net import Structure


@dataclass(frozen=True)
class Reparam:
    """One weight became cores. Everything an optimizer needs to follow, without the modules.

    `old` are the names of the replaced parameter (several when tied). `new` pairs every core with
    the name of its parameter. The dense weight of `structure`, transposed where `transposed`,
    stands for the old one; `residual` is its relative error in the plan's metric and `promised`
    what the plan predicted. `plain` is the relative error in the Frobenius norm. `refitted` tells
    that the weight was first fitted to the inputs that compressed layers before it produce, so that
    both errors are of that other weight. `merged` tells that the cores stand for a product of the
    weights of several layers, which is none of `old`.
    """

    old: tuple[str, ...]
    structure: Structure
    new: tuple[tuple[str, str], ...]
    transposed: bool
    residual: float
    promised: float
    plain: float
    fit: str
    note: str = ""
    refitted: bool = False
    merged: bool = False
