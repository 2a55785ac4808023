"""The adapters of a model: switched, mixed, merged, trained, saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from tnc.adapters.attach import shared_copy, train_
from tnc.adapters.bank import Bank, banks_of
from tnc.adapters.base import base_weight
from tnc.adapters.converting import Conversion, Line, check_asked, low_rank, put_low_rank_
from tnc.adapters.delta import Delta, peers
from tnc.adapters.installing import remove_bank_
from tnc.adapters.merging import Drift, merge_again_
from tnc.adapters.place import place_of
from tnc.adapters.unloading import merge_, unload_
from tnc.capture.model import Holder, model_of
from tnc.errors import PlanError


@dataclass(frozen=True, eq=False)
class Adapters:
    """A model with adapters. All state is in the model: `tnc.adapters.of(model)` is this again.

    `reasons` tells, for every weight that got no adapter, why.
    """

    model: nn.Module
    reasons: tuple[tuple[str, str], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters by name, in the order in which they were added."""
        return tuple(dict.fromkeys(name for bank in self._banks() for name in bank.names))

    @property
    def active(self) -> dict[str, float]:
        """The adapters in use with their weights."""
        found: dict[str, float] = {}
        for bank in self._banks():
            found.update(bank.active)
        return found

    def __str__(self) -> str:
        """Return a line for each adapter and for each weight without one."""
        whole = sum(p.numel() for p in self.model.parameters())
        lines = []
        for name in self.names:
            deltas = self.deltas(name).values()
            count = sum({id(p): p.numel() for d in deltas for p in d.trained.values()}.values())
            kinds = ", ".join(dict.fromkeys(type(delta.method).__name__ for delta in deltas))
            share = self.active.get(name)
            state = (
                "not in use" if share is None else "in use" if share == 1 else f"times {share:g}"
            )
            lines.append(
                f"{name}: {kinds} beside {len(deltas)} weights, {count:,} trained parameters "
                f"({count / max(1, whole):.3%} of all), {state}"
            )
        lines += [f"{weight}: no adapter, {reason}" for weight, reason in self.reasons]
        return "\n".join(lines) or "no adapters"

    __repr__ = __str__

    def deltas(self, adapter: str | None = None) -> dict[str, Delta]:
        """Return the deltas of one adapter (of the only one) by the name of the weight."""
        adapter = self._one(adapter)
        found: dict[str, Delta] = {}
        for bank in self._banks():
            for delta in bank.held(adapter).values():
                found.setdefault(delta.site.name, delta)
        return found

    def parameters(self, *adapters: str) -> Iterator[nn.Parameter]:
        """Yield what is trained of some adapters (of all) and beside them, each once."""
        for _, parameter in self.named_parameters(*adapters):
            yield parameter

    def named_parameters(self, *adapters: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the trained parameters by their names in the model, each once."""
        chosen = self._known(adapters) or self.names
        mine = {
            id(parameter)
            for name in chosen
            for delta in self.deltas(name).values()
            for parameter in delta.trained.values()
        }
        others = {
            id(parameter)
            for name in self.names
            if name not in chosen
            for delta in self.deltas(name).values()
            for parameter in delta.parameters()
        }
        for name, parameter in self.model.named_parameters():
            if id(parameter) in mine or (parameter.requires_grad and id(parameter) not in others):
                yield name, parameter

    def use(self, *adapters: str, **weights: float) -> None:
        """Switch to these adapters; a keyword gives an adapter's weight. Without any, to none."""
        chosen = {**dict.fromkeys(self._known(adapters), 1.0), **weights}
        self._known(tuple(weights))
        _check_shares(weights)
        self.check_unmerged()
        for bank in self._banks():
            bank.active = {name: share for name, share in chosen.items() if name in bank.names}

    @torch.no_grad()
    def set_(self, constant: str, value: float, adapter: str | None = None) -> None:
        """Set a constant of an adapter's deltas, such as the `task` of `tlora`.

        Raises PlanError, with nothing changed, where no delta has it or a method takes no such
        value.
        """
        self.check_unmerged()
        deltas = self.deltas(adapter).values()
        found = [p for d in deltas if constant in d.constants for p in peers(self.model, d)]
        if not found:
            raise PlanError(f"no delta of the adapter has a constant {constant!r}")
        whole = not found[0].constant(constant).is_floating_point()
        if whole and (value < 0 or value != int(value)):
            raise PlanError(f"{constant} cannot be {value}", hint="give a whole number from 0")
        before = [delta.constant(constant).clone() for delta in found]
        try:
            for delta in found:
                delta.constant(constant).fill_(value)
                delta.tensors()
        except IndexError as error:
            for delta, old in zip(found, before):
                delta.constant(constant).copy_(old)
            raise PlanError(f"{constant} cannot be {value}: {error}") from error

    @contextmanager
    def disabled(self) -> Iterator[nn.Module]:
        """Compute as the base model does within a `with` block.

        What is trained beside adapters, such as a head, is the model's own: it stays as it is.
        """
        saved = [(*own, own[1].active, own[1].merged, own[1].loads) for own in banks_of(self.model)]
        try:
            for _, bank, *_ in saved:
                bank.active, bank.merged = {}, {}
            yield self.model
        finally:
            for module, bank, active, merged, loads in saved:
                bank.active, bank.merged = active, merged
                if bank.loads != loads:
                    merge_again_(module)

    @torch.no_grad()
    def merge(self) -> tuple[Drift, ...]:
        """Compute with `W + delta` from now on: one product a layer. The base weights are kept.

        A structured weight becomes the sum of its networks and the deltas'. Sums are made in
        float32 or wider and rounded once, to the base's type: what that costs is returned. Raises
        PlanError, with nothing changed, where a merged weight is not finite. A state that is loaded
        meanwhile, of base weights, deltas or both, is merged at once.
        """
        self.check_unmerged()
        return merge_(self.model)

    def unmerge(self) -> None:
        """Go back to base and deltas: exactly what was before `merge`."""
        for bank in self._banks():
            bank.merged = {}

    def remove(self, adapter: str) -> None:
        """Take an adapter away; the last one leaves plain modules."""
        self._known((adapter,))
        self.check_unmerged()
        for module, bank in list(banks_of(self.model)):
            bank.drop(adapter)
            if not bank.names:
                remove_bank_(module)

    @torch.no_grad()
    def unload(self, merge: bool = True) -> nn.Module:
        """Return the model without adapters; with `merge` what the active ones add stays in it.

        The model is changed in place; merged weights are new parameters, so the base model that it
        was made from stays as it is. Of a structured layer the deltas become networks beside its
        own. What was frozen is frozen, what is trained beside the adapters still is. Raises
        PlanError, with nothing changed, where a merged weight is not finite.
        """
        self.unmerge()
        return unload_(self.model, merge)

    def unloaded(self) -> nn.Module:
        """Return a copy of the model with what the active adapters add, as `unload` leaves it.

        This model stays as it is: `tnc.bind(adapters.model, adapters.unloaded(), optimizer)` hands
        the optimizer's state on to the merged weights. What was frozen is frozen, and shares memory
        but where it was merged; what is trained beside the adapters still is, in memory of its own.
        """
        copied = shared_copy(self.model)
        inside = {id(p) for bank in self._banks() for p in bank.parameters()}
        own = self.model.named_parameters()
        train_(copied, [n for n, p in own if p.requires_grad and id(p) not in inside])
        return Adapters(copied).unload()

    @torch.no_grad()
    def to_lora(
        self,
        rank: int | None = None,
        *,
        energy: float | None = None,
        adapter: str | None = None,
        name: str = "lora",
    ) -> Conversion:
        """Add an adapter `name` of kind LoRA that stands for another one; say what that loses.

        It is the truncated SVD of what each delta adds to its weight: of rank `rank` at most, or
        of the least rank that keeps the share `energy` of the squared norm; without either of the
        rank that loses nothing. The new adapter is not in use: `use(name)` switches to it.

        >>> import torch, tnc
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> tuned = tnc.adapt(net, "lora{rank=2}", example=torch.ones(1, 8))
        >>> print(tuned.to_lora(1))
        lora: 1 weights, relative error 0
          0.weight: rank 1, error 0
        """
        return self.mix(name, {self._one(adapter): 1.0}, rank, energy=energy)

    @torch.no_grad()
    def mix(
        self,
        name: str,
        shares: Mapping[str, float],
        rank: int | None = None,
        *,
        energy: float | None = None,
    ) -> Conversion:
        """Add an adapter `name` of kind LoRA: the sum of others, each times its share.

        What is mixed is what the adapters add to weights, so that the sum is exact: factors stand
        side by side, and are made as few as lose nothing. `rank` and `energy` truncate it as
        `to_lora` does. The new adapter is not in use: `use(name)` switches to it.
        """
        check_asked(rank, energy)
        self._known(tuple(shares))
        _check_shares(shares)
        if name in self.names:
            raise PlanError(f"there is an adapter named {name!r}", hint="choose a name")
        deltas = {adapter: self.deltas(adapter) for adapter in shares}
        lines = []
        for path in sorted({path for held in deltas.values() for path in held}):
            using = [(deltas[a][path], share) for a, share in shares.items() if path in deltas[a]]
            place = place_of(self.model, next(a for a in shares if path in deltas[a]), path)
            found, norm = low_rank(using, place.weight(self.model), rank, energy)
            put_low_rank_(self.model, place, name, found)
            lines.append(Line(path, found.rank, found.error, norm))
        return Conversion(name, tuple(lines))

    def weight(self, name: str) -> Tensor:
        """Return a weight with what the active adapters add, in its stored layout."""
        for module, bank in banks_of(self.model):
            for adapter in bank.names:
                for parameter, delta in bank.held(adapter).items():
                    if name in delta.site.aliases:
                        return bank.changed(parameter, base_weight(module, parameter))
        raise PlanError(f"no weight {name!r} has an adapter")

    def _banks(self) -> Iterator[Bank]:
        for _, bank in banks_of(self.model):
            yield bank

    def _one(self, adapter: str | None) -> str:
        if adapter is not None:
            self._known((adapter,))
            return adapter
        if len(self.names) != 1:
            raise PlanError(f"the model has {len(self.names)} adapters", hint="name one")
        return self.names[0]

    def _known(self, adapters: tuple[str, ...]) -> tuple[str, ...]:
        for name in adapters:
            if name not in self.names:
                raise PlanError(
                    f"the model has no adapter {name!r}", hint=f"there are: {', '.join(self.names)}"
                )
        return adapters

    def check_unmerged(self) -> None:
        """Raise PlanError where the adapters are merged."""
        if any(bank.merged for bank in self._banks()):
            raise PlanError("the adapters are merged", hint="call unmerge() first")


def of(model: nn.Module | Holder) -> Adapters:
    """Return the adapters of a model, or of what holds one; adapters themselves as they are."""
    return model if isinstance(model, Adapters) else Adapters(model_of(model))


def _check_shares(shares: Mapping[str, Any]) -> None:
    """Raise PlanError for a weight of an adapter that is no finite number."""
    for name, share in shares.items():
        if not isinstance(share, Real) or not isfinite(share):
            raise PlanError(
                f"{share!r} is no weight for an adapter",
                where=name,
                hint=f"give a finite number, such as {name}=0.5",
            )
