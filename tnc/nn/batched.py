"""Small low-rank layers that read one tensor, as one product and one batch of products.

`y_k = B_k (A_k x)`: the rows of all `A_k` are one matrix, the `B_k` a batch. That saves calls, in
which the time of small layers goes; large ones gain nothing. Without gradients only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tnc.kernels.applied import DTYPES, choices, task_of
from tnc.kernels.choose import bucket
from tnc.kernels.device import CPU, DEFAULT
from tnc.kernels.kept import Shelf
from tnc.kernels.machine import Machine, current
from tnc.net import Structure
from tnc.nn.layer import StructuredLayer

SMALL = 64
"""Ranks up to which a batch may be faster."""
GAIN = 0.9
"""One batch must be predicted to take at most this part of the time of the layers one by one."""
HANDING, CALL = 15, 10
"""Lines of Python that handing the parts to the layers costs, and what a layer's own call costs."""

Operands = tuple[Tensor, Tensor, Tensor | None]


class Batch:
    """Layers of one low-rank structure, ready to be applied together."""

    def __init__(self, layers: Sequence[StructuredLayer]) -> None:
        self.layers = tuple(layers)
        self._shelf: Shelf[Operands] = Shelf(1)
        self._pays: dict[tuple[int, torch.dtype, int], bool] = {}

    def tensors(self) -> list[Tensor]:
        """Return the cores and biases of all layers, as they are now."""
        found = []
        for layer in self.layers:
            found += [layer.cores["A"], layer.cores["B"]]
            if layer.bias is not None:
                found.append(layer.bias)
        return found

    def wants(self, x: Tensor) -> bool:
        """Whether the layers are to be applied together to `[.., inputs]`."""
        generated = self.layers[0]._generated
        if torch.is_grad_enabled() or not x.is_cpu or not x.numel() or generated is None:
            return False
        if x.dtype not in DTYPES or not generated.takes(x):
            return False
        rows = x.numel() // x.size(-1)
        key = ((rows - 1).bit_length(), x.dtype, torch.get_num_threads())
        pays = self._pays.get(key)
        if pays is None:
            structure = self.layers[0].structure
            pays = self._pays[key] = gains(structure, len(self.layers), rows, x.dtype)
        return pays

    def run(self, x: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Apply all layers to `[.., inputs]`; `tensors` are theirs."""
        rows = x.numel() // x.size(-1)
        first, second, bias = self._shelf.take(None, tensors, self._stacked, lambda _: tensors)
        count, rank, outputs = second.shape
        inner = torch.mm(x.reshape(rows, -1), first.t()).view(rows, count, rank).transpose(0, 1)
        if bias is None:
            y = torch.bmm(inner, second)
        else:
            y = torch.baddbmm(bias, inner, second)
        return y.view(count, *x.shape[:-1], outputs).unbind(0)

    def _stacked(self) -> Operands:
        with torch.no_grad():
            first = torch.cat([layer.cores["A"] for layer in self.layers])
            second = torch.stack([layer.cores["B"].t() for layer in self.layers]).contiguous()
            biases = [layer.bias for layer in self.layers if layer.bias is not None]
            return first, second, torch.stack(biases).unsqueeze(1) if biases else None

    def forget(self) -> None:
        """Drop the stacked cores."""
        self._shelf.forget()


def cannot(layers: Sequence[StructuredLayer]) -> str:
    """Say why layers are no batch of low-rank ones; empty where they are."""
    first = layers[0]
    if len(layers) < 2 or any(layer.structure != first.structure for layer in layers):
        return "their structures differ"
    structure = first.structure
    if len(structure.terms) != 1 or structure.stored or structure.padded:
        return "they are no low-rank layers"
    equation = structure.terms[0].equation
    if str(equation) != "B[o r] A[r i] : i -> o":
        return "they are no low-rank layers"
    if structure.terms[0].size["r"] > SMALL:
        return f"a rank of {structure.terms[0].size['r']} is too large for a batch to gain"
    if len({layer.bias is None for layer in layers}) > 1:
        return "one has a bias, another none"
    return ""


def gains(structure: Structure, count: int, rows: int, dtype: torch.dtype) -> bool:
    """Whether one batch is predicted to take less than the layers one by one."""
    task = task_of(structure.terms[0], rows, False, dtype)
    machine = current(task.dtype, task.threads, CPU)
    alone = choices(task)[0].seconds + CALL * machine.statement
    together = _seconds(machine, structure, count, bucket(rows))
    return together < GAIN * count * alone


def _seconds(machine: Machine, structure: Structure, count: int, rows: int) -> float:
    (outputs,), (inputs,) = structure.signature.outputs, structure.signature.inputs
    rank = structure.terms[0].size["r"]
    products = machine.gemm(DEFAULT, 1, rows, count * rank, inputs)
    products += machine.gemm(DEFAULT, count, rows, outputs, rank)
    return products + HANDING * machine.statement
