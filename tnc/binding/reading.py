"""Follow every parameter that an optimizer holds to what it became."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from tnc.binding.dense_state import DenseState, densified, lift_dense, nothing, read_dense
from tnc.binding.draft import Draft, Spot
from tnc.binding.new_parameters import place_new
from tnc.binding.report import Line
from tnc.binding.weights import Cored
from tnc.errors import BindError
from tnc.optim.forms import check_slots

GONE = "the compiled model has it no longer: a pass took it in"


class Reading:
    """One walk over an optimizer's groups. Plain parameters are placed in the draft at once.

    `into` then holds every weight that becomes cores, with what the optimizer knows of it and where
    it held it: what that becomes waits for the probe.
    """

    def __init__(self, draft: Draft, changed: Mapping[str, str] | None = None) -> None:
        """`changed` says by the name of a weight what made another weight of it, cores aside."""
        self._draft = draft
        self._changed = dict(changed or {})
        self._before, self._after = draft.before, draft.after
        self.into: list[tuple[Cored, DenseState, Spot]] = []
        self._names: dict[int, list[str]] = {}
        for name, parameter in self._before.plain.items():
            self._names.setdefault(id(parameter), []).append(name)
        self._cored: dict[int, list[Cored]] = {}  # the old model's weights of a core, ties once
        for weight in {weight.key: weight for weight in self._before.cored.values()}.values():
            for core in weight.cores.values():
                self._cored.setdefault(id(core), []).append(weight)
        self._spots = {id(parameter): spot for spot, parameter, _ in self._all()}
        self._lifted: set[int] = set()
        self._opened: set[tuple[int, ...]] = set()
        frozen = [id(p) for p in self._before.plain.values() if not p.requires_grad]
        self._holds_frozen = all(key in self._spots for key in frozen)

    @property
    def cores(self) -> dict[str, nn.Parameter]:
        """The trainable cores that weights become, by name; a shared one under its first."""
        found: dict[int, tuple[str, nn.Parameter]] = {}
        for weight, _, _ in self.into:
            for name in weight.trainable:
                core = weight.layer.cores[name]
                found.setdefault(id(core), (weight.label(name), core))
        return dict(found.values())

    def read(self) -> None:
        """Walk. Raises BindError for state of unknown kind and where nothing is of the models."""
        self._check_models()
        for spot, parameter, label in self._all():
            names = self._names.get(id(parameter))
            check_slots(
                self._draft.optimizer,
                self._draft.form(spot.group),
                parameter,
                names[0] if names else label,
            )
            if names is not None:
                self._plain(parameter, names, spot)
            elif id(parameter) in self._cored:
                for weight in self._cored[id(parameter)]:
                    if id(weight) not in self._lifted:
                        self._lifted.add(id(weight))
                        self._from_cores(weight, spot)
            else:
                state = self._draft.optimizer.state.get(parameter)
                name = label or "a parameter"
                self._draft.keep(
                    parameter, spot, Line(name, name, "left", "not of the model"), state
                )
        self._check_shared()
        place_new(self._draft, self._spots, self.into)

    def _all(self) -> Iterator[tuple[Spot, nn.Parameter, str]]:
        for number, group in enumerate(self._draft.optimizer.param_groups):
            labels = group.get("param_names") or [""] * len(group["params"])
            for place, (parameter, label) in enumerate(zip(group["params"], labels)):
                yield Spot(number, place), parameter, label

    def _check_models(self) -> None:
        held = [key for key in self._spots if key in self._before.order]
        if self._spots and not held:
            mixed = any(key in self._after.order for key in self._spots)
            raise BindError(
                "nothing that the optimizer holds is in the model",
                hint="it holds the compiled model's parameters already: bind before you build it"
                if mixed
                else "give the model whose parameters the optimizer was built with, not a copy",
            )
        names = {name for key in held for name in self._names.get(key, ())}
        names |= {w.name for key in held for w in self._cored.get(key, ())}
        if names and not any(n in self._after.plain or n in self._after.cored for n in names):
            raise BindError(
                f"the compiled model has no {sorted(names)[0]!r}, nor any other parameter that the "
                "optimizer holds",
                hint="give what tnc.compile made of this model",
            )

    # ------------------------------------------------------------------------ plain parameters

    def _plain(self, parameter: nn.Parameter, names: list[str], spot: Spot) -> None:
        state = self._draft.optimizer.state.get(parameter, {})
        found: dict[tuple[int, ...], str] = {}  # a tied weight may have become several
        for name in names:
            if name in self._after.plain:
                found.setdefault((id(self._after.plain[name]),), name)
            elif name in self._after.cored:
                found.setdefault(self._after.cored[name].key, name)
        if not found:
            self._draft.drop(names[0], GONE)
        if len(found) > 1:
            self._draft.notes.append(
                f"{', '.join(found.values())} were one weight: each has what it knew as a whole"
            )
        for name in found.values():
            if name in self._after.plain:
                self._carry(parameter, self._after.plain[name], name, spot)
                continue
            weight = self._after.cored[name]
            if name in self._changed:
                dense = nothing(bool(state), self._changed[name], _lost(parameter))
            elif tuple(parameter.shape) == weight.shape:
                options = self._draft.options(spot.group)
                dense = read_dense(self._draft.form(spot.group), state, parameter, options)
            else:
                reason = f"its shape was {tuple(parameter.shape)}"
                dense = nothing(bool(state), reason, _lost(parameter))
            self._open(weight, dense, spot)

    def _carry(self, old: nn.Parameter, new: nn.Parameter, name: str, spot: Spot) -> None:
        """Hand a plain parameter's state on as it is, unless a pass made another of it."""
        if self._draft.holds(new):
            self._draft.drop(name, "it is tied now to one that is held")
            return
        if old.requires_grad and not new.requires_grad:
            self._draft.drop(name, "it is frozen now")
            return
        another, reason = self._changed.get(name, ""), _change(old, new)
        biased = name.rpartition(".")[0] in {
            weight.name.rpartition(".")[0] for weight in self._after.cored.values()
        }
        if another or (reason and not (biased and old.shape == new.shape)):
            self._draft.keep(new, spot, Line(name, name, "reset", another or reason))
            self._draft.notes += [f"{name}: {note}" for note in _lost(old)]
            return
        state = self._draft.optimizer.state.get(old)
        if old.grad is not None:
            self._draft.gather(new, old.grad.detach())
        reason = "a bias that took up the mean" if reason else ""
        self._draft.keep(new, spot, Line(name, name, "carried" if state else "new", reason), state)

    # ------------------------------------------------------------------------ from cores

    def _from_cores(self, weight: Cored, spot: Spot) -> None:
        target, plain = (found.get(weight.name) for found in (self._after.cored, self._after.plain))
        if isinstance(target, Cored) and weight.equals(target):
            for name, core in weight.cores.items():
                if id(core) in self._spots and not self._draft.holds(target.layer.cores[name]):
                    label = target.label(name)
                    self._carry(core, target.layer.cores[name], label, self._spots[id(core)])
            return
        if target is None and plain is None:
            self._draft.drop(weight.name, GONE)
            return
        dense = self._lift(weight, spot)
        if isinstance(target, Cored):
            if target.shape != weight.shape:
                dense = nothing(dense.known, f"its shape was {weight.shape}")
            self._open(target, dense, spot)
            return
        assert isinstance(plain, nn.Parameter)
        if self._draft.holds(plain):
            self._draft.drop(weight.name, "it is tied now to one that is held")
            return
        if tuple(plain.shape) != weight.shape:
            dense = nothing(dense.known, f"its shape was {weight.shape}")
        state = densified(
            self._draft.form(spot.group), dense, plain, self._draft.options(spot.group)
        )
        if dense.gradient is not None:
            self._draft.gather(plain, dense.gradient)
        deed = "moved" if state else "reset" if dense.known else "new"
        reason = "the tangent part of what its cores knew" if state else dense.reason
        self._draft.keep(plain, spot, Line(weight.name, weight.name, deed, reason), state)
        self._draft.notes += [f"{weight.name}: {note}" for note in dense.notes]

    def _lift(self, weight: Cored, spot: Spot) -> DenseState:
        """Return what the optimizer knows of the cores as if it knew it of their weight."""
        states = {
            name: self._draft.optimizer.state.get(weight.layer.cores[name], {})
            for name in weight.trainable
        }
        trained = [weight.cores[name] for name in weight.trainable]
        if any(len(self._cored[id(core)]) > 1 for core in trained):
            notes = _lost(*trained)
            return nothing(any(states.values()), "several weights share its cores", notes)
        return lift_dense(
            self._draft.form(spot.group), states, weight, self._draft.options(spot.group)
        )

    def _open(self, weight: Cored, dense: DenseState, spot: Spot) -> None:
        """Note that a weight becomes cores, and place those of them that are not trained."""
        if weight.key in self._opened:
            return
        self._opened.add(weight.key)
        self._into_checked(weight, spot)
        self.into.append((weight, dense, spot))
        for name, core in weight.cores.items() if weight.beside is None else ():
            if name in weight.trainable or self._draft.holds(core) or not self._holds_frozen:
                continue
            if not self._draft.form(spot.group).refuses(core, self._draft.options(spot.group)):
                label = weight.label(name)
                self._draft.keep(core, spot, Line(label, weight.name, "new", "it is not trained"))

    def _into_checked(self, weight: Cored, spot: Spot) -> None:
        for name in weight.trainable:
            core = weight.layer.cores[name]
            reason = self._draft.form(spot.group).refuses(core, self._draft.options(spot.group))
            if reason:
                raise BindError(
                    f"{type(self._draft.optimizer).__name__} cannot train a core of shape "
                    f"{tuple(core.shape)}: {reason}",
                    where=weight.label(name),
                    hint="choose a structure whose cores are matrices (low-rank), or a rule of "
                    "tnc.optim that takes any core",
                )

    def _check_shared(self) -> None:
        """Refuse a shared core of weights that only in part are this optimizer's."""
        own = {id(core) for core in self.cores.values()}
        for weight in self._after.cored.values():
            shared = [n for n in weight.trainable if id(weight.layer.cores[n]) in own]
            old = self._before.plain.get(weight.name)
            if weight.key in self._opened or not shared or old is None or not old.requires_grad:
                continue
            raise BindError(
                f"core {shared[0]} is shared with weights of this optimizer, which does not hold "
                f"{weight.name}: two optimizers would both train it",
                where=weight.label(shared[0]),
                hint="hold weights that share a factor in one optimizer, or set shares: false",
            )


def _lost(*parameters: nn.Parameter) -> tuple[str, ...]:
    """Return a note where gradients were gathered of parameters whose state does not move."""
    if all(parameter.grad is None for parameter in parameters):
        return ()
    return ("its gradients so far are lost: take a step before binding",)


def _change(old: nn.Parameter, new: nn.Parameter) -> str:
    """Say how a parameter was changed; empty where it has the same values."""
    if old.shape != new.shape:
        return f"its shape was {tuple(old.shape)} and is {tuple(new.shape)}"
    here = old.detach().to(new.device, new.dtype)
    return "" if torch.equal(here, new.detach()) else "a pass changed its values"
