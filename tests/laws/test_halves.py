"""Every structure may be split at any of its cores: the halves, one after the other, are it."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from tests.laws.data import structures
from tests.laws.test_structures import close, layer, small
from tnc.derive.halves import common_front, halves
from tnc.net import Structure, parse_network
from tnc.nn import LinearView
from tnc.nn.dense import rebuild

LINEAR = [(n, f, s) for n, f, s in structures() if len(s.inputs) == len(s.outputs) == 1]
each = pytest.mark.parametrize(
    ("family", "signature"), [(f, s) for _, f, s in LINEAR], ids=[name for name, _, _ in LINEAR]
)


@each
def test_the_back_of_the_front_is_the_whole(family, signature) -> None:
    structure = small(family, signature)
    made = layer(structure, LinearView())
    names, cores = list(structure.shapes), made.tensors()
    for size in range(len(names) + 1):
        for subset in list(combinations(names, size))[:6]:
            split = halves(structure, frozenset(subset))
            if len(structure.terms) > 1 or size in (0, len(names)):
                assert split is None
                continue
            if split is None:
                continue
            front, back = (rebuild(half, cores) for half in split)
            assert close(back @ front, made.weight)
            assert set(split[0].shapes) == set(subset)


def test_a_wrong_half_is_seen() -> None:
    structure = Structure.of(parse_network("B[o r] A[r i] : i -> o | i=8 o=4 r=2"))
    made = layer(structure, LinearView())
    split = halves(structure, frozenset({"A"}))
    assert split is not None
    front, back = (rebuild(half, made.tensors()) for half in split)
    assert not close(back @ (front + 1e-6 * torch.ones_like(front)), made.weight)


def test_a_front_is_chosen_where_it_saves() -> None:
    def of(equation: str) -> Structure:
        return Structure.of(parse_network(equation))

    low = of("B[o r] A[r i] : i -> o | i=8 o=4 r=2")
    assert common_front((low, low), ("A",), 16) == ("A",)
    assert common_front((low, low), (), 16) == ()
    assert common_front((low, low), ("B",), 16) == ()  # `B[o r] x[i]` first is no saving
    wide = of("B[o r] A[r i] : i -> o | i=8 o=4 r=3")
    assert common_front((low, wide), ("A",), 16) == ()  # not one front: another rank
