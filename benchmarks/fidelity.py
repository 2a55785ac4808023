"""Every structure in every layer at full rank against the library's layer, beside tensorly-torch.

A cell is a layer with its options, a structure, and a dtype. The cores are random, in the dtype;
the oracle is the library's own layer in float64, with the weight that one einsum over the cores
gives. What a structure, or torch itself, refuses is counted with its reason; nothing is skipped.
At full rank most convolutions are cheapest with their weight rebuilt: each is also run at rank 2,
as a chain of small convolutions. All three dtypes are run in one dimension and without options.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import fidelity_tltorch
from benchmarks.fidelity_layers import Cell, cells
from benchmarks.outcome import Arguments, Goal, Outcome, Table, table
from tnc.capture import capture
from tnc.decide.options import build, print_option
from tnc.decide.site import Site
from tnc.derive.contraction import index_letters
from tnc.derive.dense import dense
from tnc.derive.initial import core_std
from tnc.errors import TncError
from tnc.fit.kept import kept
from tnc.net import Structure
from tnc.rewrite.edit import install_, owner_of
from tnc.structures import Family, families

NAME = "fidelity"

LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 6e-2}
"""How far a result may be off the oracle, relative to its norm."""

MORE: Mapping[str, tuple[Any, ...]] = {
    "sum": ("low-rank + kronecker",),
    "stacked": tuple(
        {"kind": "stacked", "of": of, "shared": shared}
        for of, shared in (("low-rank", []), ("low-rank", ["A"]), ("tucker", []), ("cp", []))
    ),
    "free-form": (
        {"kind": "free-form", "equation": "B[o r] A[r i] : i -> o"},
        {"kind": "free-form", "equation": "B[e o r] A[e r i] : i -> e o"},
        {"kind": "free-form", "equation": "C[r h s] B[o r] A[s i w] : i h w -> o"},
    ),
}
"""Structures whose options have no defaults."""


@dataclass(frozen=True)
class Result:
    """What became of one cell: 'passes', 'fails' or 'refused', the error or the reason."""

    layer: str
    options: str
    structure: str
    dtype: str
    outcome: str
    error: float = float("nan")
    reason: str = ""


class Held(nn.Module):
    """A model with the layer as its only part."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Tensor) -> Tensor:
        found: Tensor = self.layer(*inputs)
        return found


def run(arguments: Arguments) -> Outcome:
    """Run the grid; the goal is no failure."""
    layers = list(cells())[::7] if arguments.quick else list(cells())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = [result for cell in layers for result in _ours(cell)]
        theirs = [Result(*row) for cell in layers for row in fidelity_tltorch.results(cell, LIMITS)]
    failed = [r for r in ours if r.outcome == "fails"]
    worst = {
        str(d).removeprefix("torch."): max(
            (r.error for r in ours if r.dtype in str(d) and r.outcome == "passes"), default=0.0
        )
        for d in LIMITS
    }
    goals = (
        Goal("failures", len(failed), 0),
        Goal("worst-float32-error", worst["float32"], 1e-5),
        Goal("cells-that-pass", sum(r.outcome == "passes" for r in ours), 1, "at least"),
    )
    figures = {
        "cells": len(ours),
        "outcomes": Counter(r.outcome for r in ours),
        "worst-error": worst,
        "failures": [r.__dict__ for r in failed],
        "refusals": _reasons(ours, "refused"),
        "by-layer": _counts(ours),
        "tensorly-torch": {
            "cells": len(theirs),
            "outcomes": Counter(r.outcome for r in theirs),
            "by-layer": _counts(theirs),
            "refusals": _reasons(theirs, "refused"),
            "failures": _reasons(theirs, "fails"),
        },
    }
    return Outcome((_table(ours, theirs), _failures(failed)), goals, figures)


def members() -> Iterator[Family]:
    """Yield every registered family, with the options that it needs."""
    for name in sorted(families.all()):
        for value in MORE.get(name, (name,)):
            yield build(families, value)


def _ours(cell: Cell) -> Iterator[Result]:
    inputs = tuple(x.double() if x.is_floating_point() else x for x in cell.inputs)
    try:
        model = Held(cell.make()).double()
        with torch.no_grad():
            model(*inputs)
    except (ValueError, RuntimeError) as error:
        yield from _everywhere(cell, "refused", f"torch: {error}")
        return
    trace = capture(model, inputs, graph=False)
    if trace.untraced or not trace.sites:
        yield from _everywhere(cell, "fails", f"no site: {trace.untraced}")
        return
    for family in members():
        reason = "; ".join({r for s in trace.sites if (r := family.refuses(s.signature))})
        for dtype, full in cell.numbers:
            if reason:
                yield _result(cell, family, dtype, full, "refused", reason=reason)
                continue
            try:
                error = _error(model, inputs, trace.sites, family, dtype, full)
            except (TncError, RuntimeError, ValueError, TypeError) as problem:
                told = f"{type(problem).__name__}: {problem}"
                yield _result(cell, family, dtype, full, "fails", reason=told)
                continue
            outcome = "passes" if error <= LIMITS[dtype] else "fails"
            reason_off = "" if outcome == "passes" else "its result is another one"
            yield _result(cell, family, dtype, full, outcome, error, reason_off)


def _error(
    model: nn.Module,
    inputs: Any,
    sites: tuple[Site, ...],
    family: Family,
    dtype: torch.dtype,
    full: bool,
) -> float:
    """Return the relative difference of the structured layer and the library's in float64."""
    made = copy.deepcopy(model).to(dtype)
    oracle = copy.deepcopy(made).double()
    given = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
    for number, site in enumerate(sites):
        template = family.template(site.signature)
        low = {name: min(2, bound) for name, bound in template.bounds}
        structure = template.full() if full else template.at(low)
        cores = _cores(structure, number, dtype)
        install_(made, site, structure, cores)
        module, attribute = owner_of(oracle, site.name)
        weight = _weight(structure, {n: c.double() for n, c in cores.items()})
        module._parameters[attribute].data = weight.permute(site.unordered).contiguous()  # type: ignore[union-attr]
    for module in oracle.modules():
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()
    with torch.no_grad():
        got = made(*given).double()
        want = oracle(*(x.double() if x.is_floating_point() else x for x in given))
    if got.shape != want.shape:
        return float("inf")
    return float((got - want).norm() / (want.norm() or 1.0))  # a sparse core may hold zeros alone


def _cores(structure: Structure, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    deviations = core_std(structure, 0.3)
    cores = {
        name: (torch.randn(shape, generator=generator) * deviations.get(name, 1.0)).to(dtype)
        for name, shape in structure.shapes.items()
    }
    return cores | {name: kept(cores[name], n) for name, n in structure.stored.items()}


def _weight(structure: Structure, cores: Mapping[str, Tensor]) -> Tensor:
    """Return the dense weight by one einsum a term: no order, no program, nothing shared."""
    total = torch.zeros(structure.signature.shape, dtype=torch.float64)
    for term in structure.terms:
        contraction = dense(term)
        letters = index_letters((*contraction.operands, contraction.output))
        operands = [
            torch.eye(contraction.size[axes[0]], dtype=torch.float64)
            if name.startswith("identity:")
            else cores[name]
            for name, axes in zip(contraction.names, contraction.operands)
        ]
        text = ",".join("".join(letters[n] for n in axes) for axes in contraction.operands)
        out = "".join(letters[n] for n in contraction.output)
        weight = torch.einsum(f"{text}->{out}", *operands).reshape(term.signature.shape)
        total += weight[tuple(slice(size) for size in structure.signature.shape)]
    return total


def _everywhere(cell: Cell, outcome: str, reason: str) -> Iterator[Result]:
    for family in members():
        for dtype, full in cell.numbers:
            yield _result(cell, family, dtype, full, outcome, reason=reason)


def _result(
    cell: Cell,
    family: Family,
    dtype: torch.dtype,
    full: bool,
    outcome: str,
    error: float = float("nan"),
    reason: str = "",
) -> Result:
    named = str(dtype).removeprefix("torch.") + ("" if full else ", rank 2")
    text = print_option(families, family)
    return Result(cell.kind, cell.name, text, named, outcome, error, reason)


def _counts(results: list[Result]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for result in results:
        own = found.setdefault(result.layer, {"passes": 0, "fails": 0, "refused": 0})
        own[result.outcome] += 1
    return found


def _reasons(results: list[Result], outcome: str) -> dict[str, int]:
    found = Counter(f"{r.layer}: {r.reason}" for r in results if r.outcome == outcome)
    return dict(sorted(found.items()))


def _table(ours: list[Result], theirs: list[Result]) -> Table:
    mine, other = _counts(ours), _counts(theirs)
    columns = ("layer", "passes", "fails", "refused", "tltorch passes", "fails", "unsupported")
    rows = [[k, *mine[k].values(), *other.get(k, {"": 0}).values()] for k in mine]
    totals = [sum(int(row[n]) for row in rows) for n in range(1, 7)]
    return table(columns, [*rows, ["all", *totals]])


def _failures(failed: list[Result]) -> Table:
    rows = [(r.options, r.structure, r.dtype, r.error, r.reason[:60]) for r in failed[:20]]
    return table(("failing layer", "structure", "dtype", "error", "reason"), rows)
