"""Contracts: what a pass promises about the model's outputs, checked on the probe input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from tnc.rewrite.subject import Subject

Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Contract(ABC):
    """A promise. `breach` returns why it is broken, empty when it holds."""

    @abstractmethod
    def breach(self, before: Outputs, after: Outputs, old: Subject, new: Subject) -> str:
        """Compare the outputs on the probe, and the subjects, before and after."""


@dataclass(frozen=True)
class Exact(Contract):
    """The outputs stay equal up to rounding: their difference has relative norm below `rtol`."""

    rtol: float = 1e-4

    def breach(self, before: Outputs, after: Outputs, old: Subject, new: Subject) -> str:
        return _differ(before, after, self.rtol)


@dataclass(frozen=True)
class ZeroDelta(Contract):
    """What was added does nothing yet: the outputs stay equal (adapters at their start)."""

    rtol: float = 1e-5

    def breach(self, before: Outputs, after: Outputs, old: Subject, new: Subject) -> str:
        return _differ(before, after, self.rtol)


@dataclass(frozen=True)
class Approximate(Contract):
    """Every rewritten weight is within `slack` of the error that the plan promised for it.

    A refitted weight is another weight, in the metric of other inputs: `refitted` is its slack.
    """

    slack: float = 1.1
    refitted: float = 2.0
    floor: float = 1e-4

    def breach(self, before: Outputs, after: Outputs, old: Subject, new: Subject) -> str:
        dtypes = {name: p.dtype for name, p in new.model.named_parameters(remove_duplicate=False)}
        for reparam in new.reparams[len(old.reparams) :]:
            rounding = max(torch.finfo(dtypes[name]).eps for _, name in reparam.new)
            slack = self.refitted if reparam.refitted else self.slack
            allowed = reparam.promised * slack + self.floor + 4 * rounding
            if not reparam.residual <= allowed:
                return (
                    f"{reparam.old[0]}: relative error {reparam.residual:.4g}, "
                    f"the plan promised {reparam.promised:.4g}"
                )
        broken = [index for index, out in enumerate(after) if not bool(torch.isfinite(out).all())]
        if broken and all(bool(torch.isfinite(before[index]).all()) for index in broken):
            return f"output {broken[0]} is no longer finite"
        return ""


@dataclass(frozen=True)
class Analysis(Contract):
    """The model is not touched: same parameters, same outputs to the bit."""

    def breach(self, before: Outputs, after: Outputs, old: Subject, new: Subject) -> str:
        names = [name for name, _ in old.model.named_parameters()]
        if names != [name for name, _ in new.model.named_parameters()]:
            return "parameters were added, removed or renamed"
        same = len(before) == len(after) and all(
            torch.equal(a, b) or (bool((a.isnan() == b.isnan()).all()) and _close(a, b))
            for a, b in zip(before, after)
        )
        return "" if same else "the outputs changed"


def outputs_of(model: nn.Module, probe: tuple[tuple[Any, ...], dict[str, Any]]) -> Outputs:
    """Run the model in eval mode without gradients and return every tensor of its output.

    Complex ones come as real ones with a last axis of two.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            result = model(*probe[0], **probe[1])
    finally:
        for module, training in modes:
            module.training = training
    return tuple(_tensors(result))


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        found = result.detach()
        yield torch.view_as_real(found.resolve_conj()) if found.is_complex() else found
    elif isinstance(result, Mapping):
        for key in result:
            yield from _tensors(result[key])
    elif isinstance(result, (tuple, list)):
        for item in result:
            yield from _tensors(item)


def _differ(before: Outputs, after: Outputs, rtol: float) -> str:
    if [a.shape for a in before] != [b.shape for b in after]:
        return "the outputs changed their number or shapes"
    for index, (a, b) in enumerate(zip(before, after)):
        if not a.is_floating_point():
            if not torch.equal(a, b):
                return f"output {index} changed"
            continue
        if not torch.equal(a.isfinite(), b.isfinite()):
            return f"output {index} has other entries that are not finite"
        a, b = (t.nan_to_num(posinf=0.0, neginf=0.0) for t in (a, b))
        limit = max(rtol, 8 * torch.finfo(a.dtype).eps)
        scale = float(a.double().norm()) or 1.0
        gap = float((a.double() - b.double()).norm()) / scale
        if not gap <= limit:
            return f"output {index} changed by {gap:.3g} (relative norm), allowed is {limit:.3g}"
    return ""


def _close(a: Tensor, b: Tensor) -> bool:
    return bool(torch.equal(a.nan_to_num(), b.nan_to_num()))
