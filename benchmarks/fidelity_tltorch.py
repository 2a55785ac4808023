"""The fidelity grid on tensorly-torch: its own layers, against the library's in float64.

Each layer is made from torch's by `from_conv`, `from_linear` or `from_embedding`, as its users do,
with as many parameters as the dense one (`rank='same'`). The oracle is torch's layer with the
weight that the factorized tensor itself gives.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.fidelity_layers import Cell

CONVOLUTIONS, MATRICES = ("CP", "Tucker", "TT"), ("CP", "Tucker", "BlockTT")
Row = tuple[str, str, str, str, str, float, str]


def results(cell: Cell, limits: Mapping[torch.dtype, float]) -> Iterator[Row]:
    """Yield (layer, options, structure, dtype, outcome, error, reason) for every factorization."""
    for name in CONVOLUTIONS if cell.kind.startswith("Conv") else MATRICES:
        for dtype in (dtype for dtype, full in cell.numbers if full):
            outcome, error, reason = _tried(cell, name, dtype, limits[dtype])
            named = str(dtype).removeprefix("torch.")
            yield cell.kind, cell.name, name, named, outcome, error, reason


def _tried(cell: Cell, name: str, dtype: torch.dtype, limit: float) -> tuple[str, float, str]:
    try:
        import tltorch  # noqa: F401
    except ImportError:
        return "refused", float("nan"), "tensorly-torch is not installed"
    try:
        layer = cell.make().to(dtype)
    except (ValueError, RuntimeError) as error:
        return "refused", float("nan"), f"torch: {error}"
    given = [x.to(dtype) if x.is_floating_point() else x for x in cell.inputs]
    try:
        made, weight = _factorized(layer, name)
        if made is None:
            return "refused", float("nan"), f"it has no layer for {type(layer).__name__}"
        with torch.no_grad():
            got = made(*given).double()
            oracle = copy.deepcopy(layer).double()
            oracle.weight.data = weight.detach().double().reshape(oracle.weight.shape)
            want = oracle(*(x.double() if x.is_floating_point() else x for x in given))
    except Exception as error:  # whatever another library raises is an outcome here
        return "refused", float("nan"), f"{type(error).__name__}: {str(error)[:80]}"
    if got.shape != want.shape:
        return "fails", float("inf"), "its result has another shape"
    error = float((got - want).norm() / want.norm())
    return (
        ("passes", error, "") if error <= limit else ("fails", error, "its result is another one")
    )


def _factorized(layer: Any, name: str) -> tuple[Any, Tensor | Any]:
    from tltorch import FactorizedConv, FactorizedEmbedding, FactorizedLinear

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if isinstance(layer, nn.modules.conv._ConvNd):
            made = FactorizedConv.from_conv(
                layer,
                factorization=name,
                implementation="factorized",
                decompose_weights=False,
                dtype=layer.weight.dtype,
            )
            made.weight.normal_(0, 0.3)
            if layer.bias is not None:
                made.bias.data = layer.bias.data
            whole = made.weight.to_tensor()
            return made, whole.movedim(-1, 0) if name == "TT" else whole
        if type(layer) is nn.Linear:
            made = FactorizedLinear.from_linear(
                layer,
                factorization=name,
                implementation="factorized",
                n_tensorized_modes=2,
                bias=layer.bias is not None,
            )
            return made, made.weight.to_matrix()
        if type(layer) is nn.Embedding:
            made = FactorizedEmbedding.from_embedding(
                layer, factorization=name, rank="same", dtype=layer.weight.dtype
            )
            return made, made.weight.to_matrix()
    return None, None
