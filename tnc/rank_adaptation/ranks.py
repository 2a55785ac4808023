"""The ranks of a model in training: a schedule, the layers it adapts, the optimizer, a history."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tnc.decide.options import build, print_option
from tnc.decide.spec import Spec
from tnc.derive import parameters
from tnc.errors import PlanError
from tnc.net import Network, Structure, from_json, to_json
from tnc.nn import StructuredLayer
from tnc.optim import build as build_optimizer
from tnc.rank_adaptation.adapted import Adapted
from tnc.rank_adaptation.schedule import Schedule, schedules
from tnc.rewrite import Compiled

Profile = Mapping[str, Mapping[str, int]]
"""Rank by bond, by path of the layer."""


@dataclass(frozen=True)
class Record:
    """One step: its number from 1, the loss that was told, ranks and parameters after it."""

    step: int
    loss: float
    ranks: Profile
    params: int


class Ranks:
    """What `tnc.adapt_ranks` returns. `step()` takes the place of `optimizer.step()`.

    `history` holds a `Record` a step, `left` the structured layers that are not adapted, each with
    its reason. Printed, it is the table of ranks.
    """

    def __init__(
        self, model: nn.Module, schedule: Schedule, optimizer: torch.optim.Optimizer, seed: int = 0
    ) -> None:
        self.model, self.schedule, self.optimizer = model, schedule, optimizer
        self.history: list[Record] = []
        self.left: dict[str, str] = {}
        self.works: list[Adapted] = []
        self._step = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._hooks: list[Any] = []
        if isinstance(model, nn.parallel.DistributedDataParallel):
            raise PlanError(
                "DistributedDataParallel does not follow parameters that change shape",
                hint="adapt the ranks first, and wrap the model for a run at fixed ranks",
            )
        self._find(schedule)
        for work in self.works:
            schedule.begin_(work)
        self._profile = self.ranks

    def _find(self, schedule: Schedule) -> None:
        shared = _shared(self.model)
        for path, module in self.model.named_modules():
            if isinstance(module, StructuredLayer):
                work = Adapted(path, module, self.optimizer, self._generator)
                held = [n for n, core in work.cores.items() if id(core) in shared]
                reason = f"core {held[0]} is shared with another module" if held else ""
                reason = reason or work.refuses() or schedule.refuses(work)
                if reason:
                    self.left[path] = reason
                else:
                    self.works.append(work)
        if not self.works:
            told = [f"{path or 'the model'}: {reason}" for path, reason in self.left.items()]
            raise PlanError(
                "no layer of the model has ranks that could be adapted"
                + (f" ({'; '.join(told[:3])})" if told else ": it has no structured layer"),
                hint="make structured layers with tnc.compile first, and give the optimizer "
                "the compiled model's parameters",
            )

    @property
    def ranks(self) -> Profile:
        """Rank of every bond of the adapted layers, by path."""
        return {work.path: work.ranks for work in self.works}

    @property
    def params(self) -> int:
        """Number of entries of the model's parameters."""
        return sum(p.numel() for p in self.model.parameters())

    def step(self, loss: Tensor | float | Callable[[], Any] | None = None) -> Any:
        """Do the optimizer's step with the schedule around it; the gradients are there already.

        `loss` is for the history: a number, or a closure that computes the loss and its gradients
        first, as `torch.optim` takes it. Returns what was given, or what the closure returned.
        """
        if callable(loss):
            with torch.enable_grad():
                loss = loss()
        self._before()
        hooks, self._hooks = self._hooks, []
        self.optimizer.step()
        self._hooks = hooks
        self._after(_number(loss))
        return loss

    def attach(self) -> Ranks:
        """Follow `optimizer.step()` by hooks, where a trainer owns the loop; `close` ends it."""

        def before(*_: Any) -> None:
            if self._hooks:
                self._before()

        def after(*_: Any) -> None:
            if self._hooks:
                self._after()

        self._hooks = [
            self.optimizer.register_step_pre_hook(before),
            self.optimizer.register_step_post_hook(after),
        ]
        return self

    def close(self) -> None:
        """Remove all hooks; the model is an ordinary one with structured layers."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self.schedule.close_(self.works)

    def _before(self) -> None:
        self.schedule.before_(self.works, self._step + 1)

    def _after(self, loss: float = float("nan")) -> None:
        self._step += 1
        self.schedule.after_(self.works, self._step)
        ranks = self.ranks
        if ranks != self._profile:
            self._profile = ranks
        self.history.append(Record(self._step, loss, self._profile, self.params))

    def compiled(self, made: Compiled) -> Compiled:
        """Return a compiled model whose plan states the ranks that its layers have now."""
        return _replanned(made, self)

    def state_dict(self) -> dict[str, Any]:
        """Return plain data and tensors from which `load_state_dict` goes on."""
        return {
            "schedule": print_option(schedules, self.schedule),
            "step": self._step,
            "generator": self._generator.get_state(),
            "structures": {work.path: to_json(work.layer.structure) for work in self.works},
            "memory": {work.path: dict(work.memory) for work in self.works},
            "history": [(r.step, r.loss, dict(r.ranks), r.params) for r in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state: do this before the model and optimizer load theirs.

        Layers and optimizer get the saved shapes; their values come with their own state dicts.
        Raises PlanError where schedule or layers are others.
        """
        given = (state["schedule"], sorted(state["structures"]))
        own = (print_option(schedules, self.schedule), sorted(w.path for w in self.works))
        if given != own:
            raise PlanError(
                f"the state is of {given[0]} over layers {given[1]}, this is {own[0]} over {own[1]}"
            )
        self._step = state["step"]
        self._generator.set_state(state["generator"])
        self.history = [Record(*entry) for entry in state["history"]]
        for work in self.works:
            _resize_(work, from_json(state["structures"][work.path]))
            work.memory = dict(state["memory"][work.path])
        self._profile = self.ranks

    def __str__(self) -> str:
        lines = [f"{print_option(schedules, self.schedule)}, step {self._step}"]
        for work in self.works:
            ranks = ", ".join(f"{b} {work.start[b]} -> {r}" for b, r in work.ranks.items())
            dense = work.layer.structure.signature.parameters
            lines.append(f"  {work.path or '(model)'}: {ranks}; {work.params:,} of {dense:,}")
        lines += [f"  {path or '(model)'}: left alone, {why}" for path, why in self.left.items()]
        return "\n".join([*lines, f"  the model has {self.params:,} parameters"])


def adapt_ranks(
    model: nn.Module,
    schedule: str | Mapping[str, Any] | Schedule | Spec,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    seed: int = 0,
) -> Ranks:
    """Let a schedule change the ranks of a model's structured layers while it trains.

    `schedule` is text such as `dlrt{tolerance=0.1}`, an instance, or a spec with `train`; a spec
    with `optimizer` builds that too where none is given, as `ranks.optimizer`. In the loop,
    `ranks.step(loss)` takes the place of `optimizer.step()`. Raises SpecProblems for options,
    PlanError where no layer can be adapted.

    >>> import torch, tnc
    >>> from torch import nn
    >>> spec = tnc.Spec(version=1, rules=[{"match": "*", "structure": "tucker", "ranks": "full"}])
    >>> net = tnc.compile(nn.Sequential(nn.Linear(8, 8)), spec, example=torch.ones(1, 8)).model
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> ranks = tnc.adapt_ranks(net, "dlrt{tolerance=0.5}", optimizer)
    >>> net(torch.ones(2, 8)).square().mean().backward()
    >>> ranks.step()
    >>> ranks.ranks["0"]["r1"] < 8
    True
    """
    if optimizer is None:
        if not isinstance(schedule, Spec):
            raise PlanError(
                "there is no optimizer whose steps the schedule could follow",
                hint="give the optimizer of the model's parameters, or a spec with `optimizer`",
            )
        optimizer = build_optimizer(model, schedule)
    if isinstance(schedule, Spec):
        if schedule.train is None:
            raise PlanError(
                "the spec does not say how ranks change",
                where="train",
                hint="add a line such as `train: dlrt{tolerance=0.1}`",
            )
        schedule = schedule.train
    return Ranks(model, build(schedules, schedule), optimizer, seed)


def _shared(model: nn.Module) -> set[int]:
    """Return the identities of parameters that several modules hold."""
    held = [
        id(p) for module in model.modules() for p in module._parameters.values() if p is not None
    ]
    return {key for key, count in Counter(held).items() if count > 1}


def _number(loss: Any) -> float:
    if loss is None:
        return float("nan")
    return float(loss.detach()) if isinstance(loss, Tensor) else float(loss)


def _resize_(work: Adapted, structure: Structure) -> None:
    """Give a layer the shapes of a structure; the values are those of no use in between."""
    term: Network = structure.terms[0]
    if term.equation != work.network.equation:
        raise PlanError("the state is of another equation", where=work.path)
    values = {
        name: core.detach().new_zeros(shape)
        if (shape := structure.shapes[name]) != tuple(core.shape)
        else core.detach()
        for name, core in work.cores.items()
    }
    work.forget_()
    work.set_(values, {})


def _replanned(made: Compiled, ranks: Ranks) -> Compiled:
    now = {
        name: work.layer.structure
        for work in ranks.works
        for reparam in made.reparams
        if work.layer.structure.signature == reparam.structure.signature
        for name in reparam.old
        if {n: p.lstrip(".") for n, p in reparam.new} == _names(work)
    }
    entries = tuple(
        replace(
            entry,
            structure=now[entry.members[0]],
            params=parameters(now[entry.members[0]]),
            reason=f"{entry.reason}; ranks adapted while training",
        )
        if entry.structure is not None and entry.members[0] in now
        else entry
        for entry in made.plan.entries
    )
    saved = sum(a.params - b.params for a, b in zip(entries, made.plan.entries))
    plan = replace(
        made.plan,
        entries=entries,
        total=replace(made.plan.total, params=made.plan.total.params + saved),
        scope=replace(made.plan.scope, params=made.plan.scope.params + saved),
    )
    reparams = tuple(replace(r, structure=now.get(r.old[0], r.structure)) for r in made.reparams)
    return replace(made, plan=plan, reparams=reparams)


def _names(work: Adapted) -> dict[str, str]:
    prefix = f"{work.path}." if work.path else ""
    return {name: f"{prefix}cores.{name}" for name in work.cores}
