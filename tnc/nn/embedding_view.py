"""The view of an embedding: rows of a table, looked up in the cores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from tnc.derive.gather import gathered
from tnc.kernels.applied import DTYPES
from tnc.kernels.device import CPU
from tnc.kernels.einsums import Einsums, lower
from tnc.kernels.lookups.choose import choices
from tnc.net import Network, Structure
from tnc.nn.generated_lookup import GeneratedLookUp, without_gradient
from tnc.nn.given import Given
from tnc.nn.lookup_outcome import LookUpOutcome, recorded
from tnc.nn.sparse import Kept
from tnc.nn.view import View


@dataclass(frozen=True)
class LookUp:
    """One network of a table, ready to be read by row numbers."""

    term: Network
    names: tuple[str, ...]
    program: Einsums
    width: int

    def run(self, cores: Mapping[str, Tensor | Kept], x: Tensor) -> Tensor:
        """Return the rows of the term's table."""
        digits = _digits(self.term, x)
        y = self.program.run([_pick(self.term, name, cores, digits) for name in self.names])
        if self.program.legs > 1:
            y = y.flatten(-self.program.legs)
        return y if y.shape[-1] == self.width else y.narrow(-1, 0, self.width)


@dataclass(frozen=True)
class EmbeddingView(View):
    """A look-up of output legs; the table is never rebuilt. `padding_idx` gets no gradient."""

    name: ClassVar[str] = "embedding"
    gathers: ClassVar[bool] = True
    padding_idx: int | None = None

    def prepare(self, structure: Structure) -> tuple[LookUp, ...]:
        (width,) = structure.signature.inputs
        return tuple(
            LookUp(term, contraction.names, lower(contraction), width)
            for term, contraction in ((term, gathered(term, 128)) for term in structure.terms)
        )

    @property
    def kernel_view(self) -> EmbeddingView:
        return EmbeddingView()

    def generated(self, structure: Structure) -> GeneratedLookUp | None:
        return GeneratedLookUp.of(structure, self.padding_idx)

    def why_plain(self, structure: Structure, dtype: torch.dtype, device: str) -> str:
        if structure.stored:
            return "sparse cores are looked up entry by entry"
        if any(term.equation.shared for term in structure.terms):
            return "a leg of both sides picks and stays: rows are looked up by plain calls"
        if device != CPU:
            return f"look-ups are generated for the CPU, not for {device}"
        if dtype not in DTYPES:
            return f"look-ups are generated for {', '.join(DTYPES.values())}"
        return ""

    def outcomes(self, structure: Structure, given: Given, bias: bool) -> tuple[LookUpOutcome, ...]:
        generated = GeneratedLookUp(structure, None)
        found = []
        for part in generated.parts:
            for count in given.rows:
                task = part.applied.task(count, given.training, given.dtype)
                best, *others = choices(task)
                found.append(LookUpOutcome(task, best, tuple(others)))
        return tuple(dict.fromkeys(found))

    def recorded(self, structure: Structure, entry: Mapping[str, Any]) -> LookUpOutcome:
        return recorded(structure, entry)

    def adopt(self, prepared: Any, generated: GeneratedLookUp, given: Given) -> None:
        for part in generated.parts:
            for count in given.rows:
                part.applied.prepare(count, given.training, given.dtype)

    def apply(
        self,
        prepared: tuple[LookUp, ...],
        cores: Mapping[str, Tensor | Kept],
        bias: Tensor | None,
        x: Tensor,
    ) -> Tensor:
        total = prepared[0].run(cores, x)
        for term in prepared[1:]:
            total = total + term.run(cores, x)
        return without_gradient(total, x, self.padding_idx)

    def attributes(self, structure: Structure) -> dict[str, Any]:
        (rows,), (width,) = structure.signature.outputs, structure.signature.inputs
        return {
            "num_embeddings": rows,
            "embedding_dim": width,
            "padding_idx": self.padding_idx,
            "max_norm": None,
        }


def _digits(term: Network, x: Tensor) -> dict[str, Tensor]:
    """Split row numbers into one number for each output leg, last leg fastest."""
    legs = term.equation.output_indices
    found, rest = {}, x
    for name in reversed(legs[1:]):
        found[name] = rest % term.size[name]
        rest = rest // term.size[name]
    found[legs[0]] = rest
    return found


def _pick(
    term: Network, name: str, cores: Mapping[str, Tensor | Kept], digits: Mapping[str, Tensor]
) -> Tensor:
    if name.startswith("one-hot:"):
        leg = name.removeprefix("one-hot:")
        like = next(iter(cores.values()))
        return functional.one_hot(digits[leg].long(), term.size[leg]).to(like.dtype)
    indices = term.equation.core(name).indices
    picked = [n for n in indices if n in digits]
    core = cores[name]
    if isinstance(core, Kept):
        return (
            core.picked({indices.index(n): digits[n] for n in picked}) if picked else core.dense()
        )
    if not picked:
        return core
    if indices[0] == picked[0] and len(picked) == 1:
        found = functional.embedding(digits[picked[0]], core.flatten(1))
        return torch.unflatten(found, -1, core.shape[1:])
    front = [indices.index(n) for n in picked]
    rest = [place for place, n in enumerate(indices) if n not in digits]
    return core.permute(*front, *rest)[tuple(digits[n] for n in picked)]
