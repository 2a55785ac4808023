"""The view of a linear layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from tnc.derive.cost import Work, rebuild_flops
from tnc.derive.dense import forward
from tnc.errors import KernelError
from tnc.kernels.applied import choices, dtypes, task_of
from tnc.kernels.einsums import Einsums, lower
from tnc.kernels.outcome import Outcome, outcome, recorded
from tnc.net import Network, Structure
from tnc.nn.dense import Rebuild, plan_rebuild
from tnc.nn.generated import GeneratedLinear
from tnc.nn.given import Given
from tnc.nn.sparse import Kept
from tnc.nn.view import Cores, View


@dataclass(frozen=True)
class LinearTerm:
    """One network of a linear weight, ready to run: pad, split legs, contract, join legs, crop.

    With `dense` set the weight is rebuilt first: that is cheaper for this structure and these rows.
    """

    dense: Rebuild | None
    program: Einsums
    pad: int
    legs: tuple[int, ...]
    width: int
    covers: int
    takes_bias: bool
    sparse: str = ""
    """The core that is the whole matrix, stored as some of its entries."""
    scatters: bool = False

    def run(
        self, stored: Mapping[str, Tensor | Kept], x: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """Return the term's part of `x W^T`, plus a bias where the term takes one."""
        core = stored[self.sparse] if self.sparse else None
        if isinstance(core, Kept) and core.multiplies(x):
            found = core.product(x)
            return found if bias is None else found + bias
        cores: Cores = stored  # type: ignore[assignment]
        if self.scatters:
            cores = {n: c.dense() if isinstance(c, Kept) else c for n, c in stored.items()}
        if self.dense is not None:
            return functional.linear(x, self.dense.run(cores), bias)
        if self.pad:
            x = functional.pad(x, (0, self.pad))
        if len(self.legs) > 1:
            x = torch.unflatten(x, -1, self.legs)
        y = self.program.run([x, *(cores[name] for name in self.program.names[1:])], bias)
        if self.program.legs > 1:
            y = y.flatten(-self.program.legs)
        return y if self.covers == self.width else y.narrow(-1, 0, self.width)


def _linear_term(term: Network, structure: Structure, rows: int) -> LinearTerm:
    contraction = forward(term, rows)
    rebuilt = rebuild_flops(term, structure.signature, Work("linear", rows))
    (have,), (want,) = structure.signature.inputs, structure.signature.outputs
    program = lower(contraction)
    dense = rebuilt < contraction.order.flops
    cropped = term.signature.outputs[0] != want
    return LinearTerm(
        plan_rebuild(Structure(structure.signature, (term,))) if dense else None,
        program,
        term.signature.inputs[0] - have,
        tuple(term.size[name] for name in term.equation.inputs[0]),
        want,
        term.signature.outputs[0],
        dense or (program.takes_bias and not cropped),
        _whole_matrix(term, structure),
        bool(structure.stored),
    )


def _whole_matrix(term: Network, structure: Structure) -> str:
    """Return the sparse core that is the whole `[o, i]` weight of a term, empty if none is."""
    first = term.equation.cores[0]
    whole = (*term.equation.output_indices, *term.equation.input_indices)
    alone = len(term.equation.cores) == 1 and first.indices == whole and len(whole) == 2
    return first.name if alone and first.stored and not structure.padded else ""


@dataclass(frozen=True)
class LinearView(View):
    """`y = x W^T + b` over the last dimension, any leading ones.

    `rows` is the number of vectors that the order of contraction is chosen for. `transposed` tells
    that the replaced layer stored its weight inputs first (HF Conv1D).
    """

    name: ClassVar[str] = "linear"
    gathers: ClassVar[bool] = True
    rows: int = 128
    transposed: bool = False

    def prepare(self, structure: Structure) -> tuple[LinearTerm, ...]:
        return tuple(_linear_term(term, structure, self.rows) for term in structure.terms)

    def generated(self, structure: Structure) -> GeneratedLinear | None:
        return GeneratedLinear.of(structure)

    @property
    def kernel_view(self) -> LinearView:
        return LinearView()

    def why_plain(self, structure: Structure, dtype: torch.dtype, device: str) -> str:
        if structure.stored:
            return "sparse cores are read by place, not multiplied whole"
        known = dtypes(device)
        if not known:
            return f"kernels are generated for the CPU and CUDA, not for {device}"
        if dtype not in known:
            listed = ", ".join(known.values())
            return f"kernels are generated for {listed}, not for {str(dtype).split('.')[-1]}"
        return ""

    def outcomes(self, structure: Structure, given: Given, bias: bool) -> tuple[Outcome, ...]:
        (wide,) = structure.signature.outputs
        tasks = [
            (
                task_of(part.applied.network, count, given.training, given.dtype, given.device),
                bias and place == 0 and part.covers == wide,
            )
            for place, part in enumerate(GeneratedLinear(structure).parts)
            for count in given.rows
        ]
        return tuple(outcome(task, choices(task), own) for task, own in dict.fromkeys(tasks))

    def recorded(self, structure: Structure, entry: Mapping[str, Any]) -> Outcome:
        for part in GeneratedLinear(structure).parts:
            if str(part.applied.network) == entry["network"]:
                return recorded(part.applied.network, entry)
        raise KernelError(f"no layer of the artifact has the equation {entry['network']}")

    def adopt(self, prepared: Any, generated: GeneratedLinear, given: Given) -> None:
        for part in generated.parts:
            for count in given.rows:
                part.applied.prepare(count, given.training, given.dtype, given.device)

    def apply(
        self,
        prepared: tuple[LinearTerm, ...],
        cores: Mapping[str, Tensor | Kept],
        bias: Tensor | None,
        x: Tensor,
    ) -> Tensor:
        first = prepared[0]
        if bias is not None and first.takes_bias:
            total, bias = first.run(cores, x, bias), None
        else:
            total = first.run(cores, x)
        for term in prepared[1:]:
            total = total + term.run(cores, x)
        return total if bias is None else total + bias.to(total.dtype)  # autocast

    def attributes(self, structure: Structure) -> dict[str, Any]:
        (outputs,), (inputs,) = structure.signature.outputs, structure.signature.inputs
        if self.transposed:
            return {"nf": outputs, "nx": inputs}
        return {"in_features": inputs, "out_features": outputs}

    def layout(self, weight: Tensor) -> Tensor:
        return weight.t() if self.transposed else weight
