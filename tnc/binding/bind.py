"""Bind an optimizer that was training a model to what the model became."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor, nn

from tnc.binding.dense_state import DenseState, lift_dense, read_dense
from tnc.binding.grams import NONE, move_grams
from tnc.binding.moments import (
    Asked,
    Policy,
    Verdict,
    agreed,
    fresh,
    joined,
    judge,
    move,
    state_of,
    with_share,
)
from tnc.binding.probing import Probe, squared_gradients
from tnc.binding.report import Line, Report
from tnc.binding.weights import Cored, Weights, weights_of
from tnc.errors import BindError
from tnc.optim.following import follow
from tnc.optim.kinds import Form, check_slots, form_of, part_of
from tnc.optim.rule import Rule
from tnc.rewrite import Compiled

WARMUP = 0
"""Steps over which a core that starts anew under `auto` grows to full steps. None: after a lossy
rewrite 20 of them cost .02 of loss over the first 50 steps (`benchmarks/continuation.py`)."""


@dataclass(frozen=True)
class Bound:
    """The optimizer, which is the one that was given, and what was done to its state."""

    optimizer: torch.optim.Optimizer
    report: Report


def bind(
    model: nn.Module,
    compiled: Compiled | nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    policy: Policy = "auto",
    probe: Probe | None = None,
    warmup: int = WARMUP,
) -> Bound:
    """Let the optimizer of a model train what the model became; return it with a report.

    The same optimizer object goes on, so that schedulers, hooks and gradient scalers stay: its
    groups keep their order and options, and hold the parameters of `compiled` where they held those
    of `model`. A momentum is pulled to the cores exactly; a second moment is pulled and gets its
    scale from `probe`, which yields the losses of a few training batches on the model that it is
    given. Policies: 'auto' moves state where the probe confirms it and else starts anew with
    `warmup` shortened steps; 'reset' starts cores anew; 'pull' moves without a scale; 'probe' takes
    second moments from the probe alone. Weight decay that is decoupled decays the product as it did
    the weight. Works in every direction: dense to cores, cores to other cores, cores to dense.

    Raises BindError, with nothing changed, for state of unknown kind and for parameters that the
    optimizer refuses.

    >>> import torch, tnc
    >>> net = torch.nn.Sequential(torch.nn.Linear(16, 16))
    >>> adam = torch.optim.AdamW(net.parameters())
    >>> net(torch.ones(2, 16)).sum().backward(); adam.step()
    >>> spec = tnc.Spec(version=1, rules=[{"match": "0", "structure": "low-rank", "keep": 0.5}])
    >>> made = tnc.compile(net, spec, example=torch.ones(2, 16))
    >>> bound = tnc.bind(net, made, adam, policy="pull")
    >>> [line.deed for line in bound.report.lines]
    ['moved', 'moved', 'carried']
    """
    if policy not in get_args(Policy):
        raise BindError(f"policy is {policy!r}", hint=f"policies are {', '.join(get_args(Policy))}")
    if policy == "probe" and probe is None:
        raise BindError("policy 'probe' needs a probe", hint="probe(model) yields training losses")
    new = compiled.model if isinstance(compiled, Compiled) else compiled
    if new is model:
        raise BindError(
            "the model before and after are the same object",
            hint="give the model that the optimizer was training, and the compiled one",
        )
    work = _Work(weights_of(model), weights_of(new), optimizer)
    learners = [p for p in getattr(optimizer, "parts", (optimizer,)) if isinstance(p, Rule)]
    for rule in learners:
        rule.adopt(new)  # whether it takes the new parameters depends on their model
    try:
        work.read()
        squares = None
        if probe is not None and policy in ("auto", "probe") and work.cores:
            squares = squared_gradients(new, probe, work.cores)
        work.decide(Asked(policy, squares, warmup))
    except BaseException:
        for rule in learners:
            rule.adopt(model)
        raise
    work.commit()
    for rule in learners:
        rule.adopt(new)  # anew: without what it saw of the probe
    follow(optimizer)
    name = type(optimizer).__name__
    return Bound(optimizer, Report(name, policy, tuple(work.lines), tuple(work.notes)))


@dataclass(eq=False)
class _Work:
    """One binding: everything is worked out beside the optimizer, then put in place at once."""

    before: Weights
    after: Weights
    optimizer: torch.optim.Optimizer
    lines: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    cores: dict[str, nn.Parameter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._names: dict[int, list[str]] = {}
        for name, parameter in self.before.plain.items():
            self._names.setdefault(id(parameter), []).append(name)
        self._held: dict[int, Cored] = {}  # cores of the old model, by parameter
        for weight in self.before.cored.values():
            for core in weight.cores.values():
                self._held.setdefault(id(core), weight)
        self._places: dict[int, int] = {}
        for number, group in enumerate(self.optimizer.param_groups):
            for parameter in group["params"]:
                self._places[id(parameter)] = number
        self._groups: list[list[nn.Parameter]] = [[] for _ in self.optimizer.param_groups]
        self._labels: list[list[str]] = [[] for _ in self.optimizer.param_groups]
        self._state: dict[nn.Parameter, dict[str, Any]] = {}
        self._gradients: dict[nn.Parameter, Tensor] = {}
        self._into: list[tuple[Cored, DenseState]] = []  # weights that become cores
        self._dtypes: dict[int, dict[str, torch.dtype]] = {}  # of slots, by part of the optimizer
        self._told: dict[int, str] = {}  # how Gram matrices came to a core

    # ------------------------------------------------------------------------------- reading

    def read(self) -> None:
        """Follow every parameter of the optimizer to what it became."""
        lifted: set[int] = set()
        for number, group in enumerate(self.optimizer.param_groups):
            labels = group.get("param_names") or [""] * len(group["params"])
            for parameter, label in zip(list(group["params"]), labels):
                names = self._names.get(id(parameter))
                called = names[0] if names else label
                check_slots(self.optimizer, self._form(number), parameter, called)
                self._note_types(parameter, number)
                if names is not None:
                    self._follow_plain(parameter, names, number)
                elif id(parameter) in self._held:
                    weight = self._held[id(parameter)]
                    if id(weight) not in lifted:
                        lifted.add(id(weight))
                        self._follow_cored(weight, number)
                else:
                    self._keep(
                        parameter, number, label or "a parameter", "left", "not of the model"
                    )
        self._add_new()

    def _form(self, number: int) -> Form:
        return form_of(self.optimizer, self.optimizer.param_groups[number])

    def _note_types(self, parameter: nn.Parameter, number: int) -> None:
        for slot, value in self.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                self._types(number).setdefault(slot, value.dtype)

    def _types(self, number: int) -> dict[str, torch.dtype]:
        return self._dtypes.setdefault(id(self._part_at(number)), {})

    def _follow_plain(self, parameter: nn.Parameter, names: list[str], number: int) -> None:
        state = self.optimizer.state.get(parameter, {})
        name = next((n for n in names if n in self.after.plain or n in self.after.cored), None)
        if name is None:
            reason = "the compiled model has it no longer: a pass took it in"
            self.lines.append(Line(names[0], names[0], "dropped", reason))
        elif name in self.after.plain:
            self._carry(parameter, self.after.plain[name], name, number, state)
        else:
            group = self.optimizer.param_groups[number]
            dense = read_dense(self._form(number), state, parameter, number, group)
            self._open(self.after.cored[name], dense)

    def _carry(
        self,
        old: nn.Parameter,
        new: nn.Parameter,
        name: str,
        number: int,
        state: Mapping[str, Any],
    ) -> None:
        group = self.optimizer.param_groups[number]
        if old.shape != new.shape:
            self._state[new] = self._form(number).initial(new, group)
            reason = f"its shape was {tuple(old.shape)} and is {tuple(new.shape)}"
            self._keep(new, number, name, "reset", reason)
            return
        same = torch.equal(old.detach(), new.detach())
        if not same and name.rpartition(".")[0] not in _owners(self.after):
            self._state[new] = self._form(number).initial(new, group)
            self._keep(new, number, name, "reset", "a pass changed its values")
            return
        if state:
            self._state[new] = dict(state)
        if old.grad is not None:
            self._gradients[new] = old.grad
        deed = "carried" if state else "new"
        self._keep(new, number, name, deed, "" if same else "a bias that took up the mean")

    def _follow_cored(self, weight: Cored, number: int) -> None:
        target = self.after.cored.get(weight.name)
        plain = self.after.plain.get(weight.name)
        if target is None and plain is None:
            reason = "the compiled model has it no longer: a pass took it in"
            self.lines.append(Line(weight.path, weight.name, "dropped", reason))
            return
        if target is not None and _same(weight, target):
            for name in weight.trainable:
                old, new = weight.layer.cores[name], target.layer.cores[name]
                place = self._places.get(id(old), number)
                label = f"{target.path}.cores.{name}"
                if new not in self._state:
                    self._carry_core(old, new, label, place)
            return
        states = {
            name: self.optimizer.state.get(weight.layer.cores[name], {})
            for name in weight.trainable
        }
        group = self.optimizer.param_groups[number]
        shared = [n for n in weight.trainable if self._readers(weight.layer.cores[n]) > 1]
        places = [self._places.get(id(weight.layer.cores[n]), number) for n in weight.trainable]
        parts = {id(self._part_at(place)) for place in places}
        if shared or len(parts) > 1 or not all(states.values()):
            dense = DenseState({}, {}, None, number, any(states.values()))
            reason = "several weights share its cores" if shared else "there was no state"
            if len(parts) > 1:
                reason = "its cores were trained by different rules"
        else:
            dense = lift_dense(self._form(number), states, weight, number, group)
            reason = "the tangent part of what its cores knew"
        if target is not None:
            self._open(target, dense)
            return
        assert plain is not None
        self._state[plain] = self._densified(plain, dense, group)
        if dense.gradient is not None:
            self._gradients[plain] = dense.gradient
        deed = "moved" if dense.moving else "reset"
        self._keep(plain, number, weight.name, deed, reason)

    def _densified(
        self, plain: nn.Parameter, dense: DenseState, group: Mapping[str, Any]
    ) -> dict[str, Any]:
        form = self._form(dense.group)
        if not dense.moving:
            return form.initial(plain, group) | dict(dense.numbers)
        typed = {
            slot: value.to(self._types(dense.group).get(slot, plain.dtype)).contiguous()
            for slot, value in dense.moving.items()
        }
        written = form.write(typed, plain, group)
        return form.initial(plain, group) | dict(dense.numbers) | written

    def _carry_core(self, old: nn.Parameter, new: nn.Parameter, label: str, number: int) -> None:
        state = self.optimizer.state.get(old, {})
        if state:
            self._state[new] = dict(state)
        if old.grad is not None:
            self._gradients[new] = old.grad
        self._keep(new, number, label, "carried" if state else "new", "")

    def _part_at(self, number: int) -> torch.optim.Optimizer:
        return part_of(self.optimizer, self.optimizer.param_groups[number])

    def _readers(self, core: nn.Parameter) -> int:
        return sum(
            any(core is own for own in weight.cores.values())
            for weight in {id(w.layer): w for w in self.before.cored.values()}.values()
        )

    def _open(self, weight: Cored, dense: DenseState) -> None:
        """Note that a weight becomes cores; what it brings is decided when the probe is there."""
        self._into.append((weight, dense))
        for name in weight.trainable:
            core = weight.layer.cores[name]
            if not any(core is known for known in self.cores.values()):
                self.cores[f"{weight.path}.cores.{name}"] = core
            reason = self._form(dense.group).refuses(core, self.optimizer.param_groups[dense.group])
            if reason:
                raise BindError(
                    f"{type(self.optimizer).__name__} cannot train a core of shape "
                    f"{tuple(core.shape)}: {reason}",
                    where=f"{weight.path}.cores.{name}",
                    hint="choose a structure whose cores are matrices (low-rank), or a rule of "
                    "tnc.optim that takes any core",
                )

    def _add_new(self) -> None:
        """Give new trainable parameters to the first group whose rule takes them."""
        known = {id(p) for params in self._groups for p in params}
        known |= {id(core) for core in self.cores.values()}
        old = {id(p) for p in self.before.plain.values()}
        for name, parameter in self.after.plain.items():
            if id(parameter) in known or not parameter.requires_grad or id(parameter) in old:
                continue
            if name in self.before.plain or name in self.before.cored:
                continue  # the optimizer did not hold it before either
            known.add(id(parameter))
            self._keep(parameter, self._taking(parameter, name), name, "new", "made by a pass")

    def _taking(self, parameter: nn.Parameter, name: str) -> int:
        """Return the first group whose rule can train a parameter. Raises BindError."""
        reasons = []
        for number, group in enumerate(self.optimizer.param_groups):
            reasons.append(self._form(number).refuses(parameter, group))
            if not reasons[-1]:
                return number
        raise BindError(
            f"no group of the optimizer can train a parameter of shape {tuple(parameter.shape)}, "
            f"which a pass made: {reasons[0]}",
            where=name,
            hint="add a group with a rule that takes any shape, such as adamw",
        )

    # ------------------------------------------------------------------------------ deciding

    def decide(self, asked: Asked) -> None:
        """Work out the state of every core; cores that weights share gather from all of them."""
        parts: dict[int, list[dict[str, Tensor]]] = {}
        judged: dict[int, list[tuple[Verdict, DenseState, Cored, str]]] = {}
        verdicts = agreed(
            [self._judged(weight, dense, asked) for weight, dense in self._into],
            [weight.layer.structure.signature.parameters for weight, _ in self._into],
        )
        for (weight, dense), verdict in zip(self._into, verdicts):
            form = self._form(dense.group)
            moved = move(form, dense, weight) if verdict.moves else {}
            options = self.optimizer.param_groups[dense.group]
            grams = move_grams(form, dense.moving, weight, options) if verdict.moves else NONE
            pulled = self._pulled_gradient(weight, dense)
            for name in weight.trainable:
                core = weight.layer.cores[name]
                parts.setdefault(id(core), []).append(
                    moved.get(name, {}) | dict(grams.slots.get(name, {}))
                )
                if name in grams.told:
                    self._told[id(core)] = grams.told[name]
                judged.setdefault(id(core), []).append((verdict, dense, weight, name))
                if name in pulled:
                    known = self._gradients.get(core)
                    self._gradients[core] = pulled[name] if known is None else known + pulled[name]
            self.notes += [f"{weight.name}: {note}" for note in dense.notes]
        for label, core in self.cores.items():
            self._settle(label, core, parts[id(core)], judged[id(core)], asked)

    def _judged(self, weight: Cored, dense: DenseState, asked: Asked) -> Verdict:
        names = {name: self._label(weight, name) for name in weight.trainable}
        group = self.optimizer.param_groups[dense.group]
        form = self._form(dense.group)
        return judge(form, dense, weight, names, self._lost(weight), asked, group)

    def _settle(
        self,
        label: str,
        core: nn.Parameter,
        parts: list[dict[str, Tensor]],
        judged: list[tuple[Verdict, DenseState, Cored, str]],
        asked: Asked,
    ) -> None:
        verdict, dense, weight, _ = next((j for j in judged if not j[0].moves), judged[0])
        number = judged[0][1].group
        if len({id(self._part_at(j[1].group)) for j in judged}) > 1:
            verdict = Verdict(False, "its weights were trained by different rules")
        group, form = self.optimizer.param_groups[number], self._form(number)
        if verdict.moves:
            squares = asked.squares.get(label) if asked.squares is not None else None
            state = state_of(
                form,
                core,
                joined(form, parts),
                dense.numbers,
                None if asked.policy == "pull" else squares,
                asked.policy,
                group,
                self._types(number),
            )
            deed = "moved"
        else:
            warmup = asked.warmup if asked.policy == "auto" and dense.known else 0
            state = fresh(form, core, warmup, group)
            deed = "reset" if dense.known else "new"
        self._state[core] = with_share(state, form, group, len(weight.trainable))
        reason = verdict.reason + ("" if len(judged) == 1 else f", shared by {len(judged)} weights")
        if verdict.moves and id(core) in self._told:
            reason += f"; {self._told[id(core)]}"
        self._keep(core, number, label, deed, reason, weight.name, verdict.ratio)

    def _label(self, weight: Cored, name: str) -> str:
        core = weight.layer.cores[name]
        return next(label for label, known in self.cores.items() if known is core)

    def _lost(self, weight: Cored) -> float:
        old = self.before.plain.get(weight.name)
        if old is None:
            return 0.0
        with torch.no_grad():
            made = weight.layer.weight.detach()
            norm = float(old.detach().float().norm()) or 1.0
            return float((made.float() - old.detach().float()).norm()) / norm

    def _pulled_gradient(self, weight: Cored, dense: DenseState) -> dict[str, Tensor]:
        if dense.gradient is None:
            return {}
        pulled = weight.transport.pull(weight.mapped(dense.gradient))
        return {name: weight.kept(name, pulled[name]) for name in weight.trainable}

    # ---------------------------------------------------------------------------- putting in

    def _keep(
        self,
        parameter: nn.Parameter,
        number: int,
        label: str,
        deed: str,
        reason: str,
        weight: str = "",
        ratio: float = float("nan"),
    ) -> None:
        if deed == "left" and self.optimizer.state.get(parameter):
            self._state[parameter] = self.optimizer.state[parameter]
        self._groups[number].append(parameter)
        self._labels[number].append(label)
        self.lines.append(Line(label, weight or label, deed, reason, ratio))

    def commit(self) -> None:
        """Put groups, state and gradients in place."""
        for group, params, labels in zip(self.optimizer.param_groups, self._groups, self._labels):
            group["params"][:] = params
            if "param_names" in group:
                group["param_names"][:] = labels
        self.optimizer.state.clear()
        for parameter, state in self._state.items():
            self.optimizer.state[parameter] = state
        for parameter, gradient in self._gradients.items():
            parameter.grad = gradient.to(parameter.dtype).contiguous()


def _same(old: Cored, new: Cored) -> bool:
    """Whether two weights have the same cores with the same values."""
    if old.layer.structure != new.layer.structure:
        return False
    return all(
        torch.equal(old.layer.cores[name].detach(), new.layer.cores[name].detach())
        for name in old.layer.structure.shapes
    )


def _owners(weights: Weights) -> set[str]:
    """Return the paths of modules that hold weights which became cores."""
    return {weight.name.rpartition(".")[0] for weight in weights.cored.values()}
