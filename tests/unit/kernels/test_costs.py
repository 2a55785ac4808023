"""What the cost model says of copies and of matrices that lie otherwise than a library reads."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tnc.kernels.choose import Task, choose
from tnc.kernels.costs import Costs
from tnc.kernels.layouts import halves
from tnc.kernels.machine import generic
from tnc.kernels.program import Copy, Matrix, Multiply
from tnc.net import parse_network

SIZE = {"rows": 64, "a": 48, "k": 96, "n": 64}
BTT = "L[o1 o2 i2 r] R[o2 i1 i2 r] : (i1 i2) -> (o1 o2) | o1=64 o2=64 i1=64 i2=64 r=4"


def costs(*backends: str) -> Costs:
    return Costs(replace(generic("float32", 1), backends=backends))


def product(left: str, right: str, result: str = "bmn") -> Multiply:
    legs = {"b": ("a",), "m": ("rows",), "k": ("k",), "n": ("n",)}

    def matrix(name: str, roles: str) -> Matrix:
        return Matrix(name, tuple(legs[role] for role in roles), roles)

    return Multiply(matrix("t", result), matrix("x", left), matrix("A", right))


def test_halves() -> None:
    assert halves(("a", "b", "c"), ("c", "a", "b")) == (("a", "b"), ("c",))
    assert halves(("a", "b", "c"), ("b", "c", "a")) == (("a",), ("b", "c"))
    for other in (("a", "b", "c"), ("c", "b", "a"), ("b", "a", "c"), ("a", "c", "b")):
        assert halves(("a", "b", "c"), other) is None


def test_a_turned_matrix_costs_less_than_a_reversal() -> None:
    big = SIZE | {"k": 1024}
    turned = costs("mkl").copy(Copy("y", "t", ("a", "k", "rows"), ("rows", "a", "k")), big)
    reversed_ = costs("mkl").copy(Copy("y", "t", ("a", "k", "rows"), ("rows", "k", "a")), big)
    assert turned < 0.5 * reversed_


@pytest.mark.parametrize("roles", [("kbm", "bkn"), ("bmk", "nbk")])
def test_onednn_takes_long_over_turned_matrices_that_lie_apart(roles: tuple[str, str]) -> None:
    plain = costs("onednn").product(product("bmk", "bkn"), SIZE)
    assert costs("onednn").product(product(*roles), SIZE) > 1.5 * plain
    assert costs("onednn").product(product("kbm", "nbk", "nbm"), SIZE) < 1.5 * plain
    same = costs("mkl").product(product("bmk", "bkn"), SIZE)
    assert costs("mkl").product(product(*roles), SIZE) < 1.5 * same


def test_one_row_of_a_block_train_on_onednn_lays_its_cores() -> None:
    """As they lie, oneDNN would copy both at every call: ten times the time."""
    task = Task(parse_network(BTT), 1, "float32", 1, training=False, backend="onednn")
    best = choose(task)[0]
    assert all(step.right.roles == "bkn" for step in best.program.products)
    assert best.seconds < 1e-3
