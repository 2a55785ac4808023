"""What a rule of `tnc.optim` is: an update of one parameter, and slots that say how it moves.

A rule is a `torch.optim.Optimizer`: groups, schedulers, hooks, `state_dict` and gradient scalers
work as ever. Its state holds tensors and numbers only, float32 beside bfloat16 parameters too, so
that `torch.load(weights_only=True)` and distributed checkpoints take it; no attribute of the object
is needed to resume. One file each in `tnc/optim/rules`; the registry finds them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tnc.decide.optimizers import rules as rules
from tnc.errors import BindError
from tnc.optim.declaring import MISSING, Declared, argument
from tnc.optim.following import LEFT, decay, warmed
from tnc.optim.kinds import MOVING, Form, Group, Kind, State
from tnc.optim.loading import mended
from tnc.optim.options import NonNegative
from tnc.optim.rule_form import RuleForm

STEP = "step"


@dataclass(frozen=True, eq=False)
class Part:
    """One parameter within a step: what a rule reads and changes of it.

    `weight` is what the rule changes: the parameter itself, or its copy in float32, which is
    written back; `before` holds its values where the step is shortened afterwards.
    """

    parameter: Tensor
    weight: Tensor
    gradient: Tensor
    state: dict[str, Any]
    group: dict[str, Any]
    before: Tensor | None = None


class Rule(Declared, torch.optim.Optimizer, ABC):
    """An optimizer that updates one parameter at a time from its gradient and its slots.

    `kinds` names every slot of the state but `step`, which counts the parameter's steps, and
    `holds` says how many times the mean squared gradient a diagonal slot is (see `Form`). Weight
    decay is decoupled where `decoupled` is set. A rule that draws random numbers sets `random`, and
    finds a seed of its own for each parameter in the state. A rule that learns from more than the
    loss's gradient sets `estimates` and has a method `update_hessian`, called after the backward
    pass of a loss with labels drawn from the model's predictions. Of a parameter that is sharded
    every process gathers the whole, keeps the whole state and makes the whole update; where entries
    are updated each by itself (`elementwise`) the state is sharded as the parameter is, and nothing
    gathered.

    Options are declared by their types and defaults, see `tnc.optim.declaring`. Arguments that are
    no options become attributes, and go with copies and pickles. One is known to tnc: `model`, the
    module whose parameters the rule trains, which `adopt` exchanges when it is rewritten; `needs`
    names it where a rule takes it.
    """

    kinds: ClassVar[Mapping[str, Kind]]
    holds: ClassVar[Mapping[str, Callable[[State, Group], float]]] = {}
    decoupled: ClassVar[bool] = True
    random: ClassVar[bool] = False
    follows: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    estimates: ClassVar[bool] = False
    elementwise: ClassVar[bool] = False

    params: Any = argument(kw_only=False)
    lr: NonNegative = 1e-3
    weight_decay: NonNegative = 0.0

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        cls.needs = tuple(name for name in cls.declared if name == "model")

    def __init__(self, *places: Any, **given: Any) -> None:
        arguments, options = self.taken(places, given)
        params = arguments.pop("params")
        vars(self).update(arguments)
        self.check(options)
        self.attach()
        super().__init__(params, options)

    def attach(self) -> None:
        """Make of the arguments what the rule needs of them; options are not known yet.

        Called when the rule is made, copied or unpickled, and when it adopts another model.
        """
        return None

    @abstractmethod
    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        """Return the slots of a parameter before its first step; float32 tensors and numbers."""

    @abstractmethod
    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Group) -> None:
        """Change `weight` and the slots in place. `state['step']` counts this step already."""

    @abstractmethod
    def state_bytes(self, shape: tuple[int, ...], group: Group) -> int:
        """Return the bytes of the slots of a parameter of a shape, by formula; `step` aside."""

    def bytes_of(self, parameter: Tensor, group: Group) -> int:
        """Return the bytes of a parameter's slots: by its shape, unless a rule needs more of it."""
        return self.state_bytes(tuple(parameter.shape), group)

    def observe(self, parameter: Tensor, state: dict[str, Any], group: Group) -> None:
        """Take into the state what the model tells of a parameter beside its gradient: nothing.

        Called before `update` in every step. Rules that read the model override it.
        """
        return None

    def adopt(self, model: nn.Module) -> None:
        """Read another model from now on: what became of the one before."""
        if "model" in self.needs:
            vars(self)["model"] = model
            self.attach()

    def refuses(self, weight: Tensor, group: Group) -> str:
        """Say why a parameter cannot be trained by this rule; empty when it can."""
        return ""

    def read(self, state: State, weight: Tensor, group: Group) -> dict[str, Tensor]:
        """Return the slots that move when the parameter becomes cores, in the parameter's shape.

        By default those whose kind moves, as they are. A rule that keeps them projected lifts them.
        """
        return {
            slot: value
            for slot, value in state.items()
            if isinstance(value, Tensor) and self.kinds.get(slot) in MOVING
        }

    def write(self, moved: State, weight: Tensor, group: Group) -> dict[str, Any]:
        """Return slots for a core from what `read` gave, moved to the core: the way back."""
        return dict(moved)

    def grams(self, shape: tuple[int, ...], group: Group) -> Mapping[str, tuple[int, ...]]:
        """Return, by slot of kind GRAM, the axes whose Gram matrix `read` gives; see `Form`."""
        return {}

    @property
    def form(self) -> Form:
        """The kinds of the rule's slots, for binding."""
        return RuleForm(
            {STEP: Kind.SCALAR, "seed": Kind.SCALAR, **self.kinds},
            holds=self.holds,
            decoupled=lambda group: self.decoupled,
            refuses=self.refuses,
            contiguous=True,
            rule=self,
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters. Raises BindError for one that the rule cannot train."""
        for name, each in self.options().items():
            if each.default is MISSING and name not in self.defaults | param_group:
                raise BindError(
                    f"{type(self).__name__}: {name} is not given",
                    hint=f"give {name} to the rule or to each of its groups",
                )
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self.check(group)
            for place, weight in enumerate(group["params"]):
                reason = self.refuses(weight, group)
                if not reason and weight.is_complex():
                    reason = "its entries are complex"
                if reason:
                    raise BindError(
                        f"{type(self).__name__} cannot train a parameter of shape "
                        f"{tuple(weight.shape)}: {reason}",
                        where=_called(group, place, len(self.param_groups) - 1),
                        hint="give it to a group with another rule, such as adamw: see "
                        "tnc.optim.build",
                    )
        except Exception:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step on every parameter that has a gradient; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.advance(
            self._open(parameter, group, place)
            for group in self.param_groups
            for place, parameter in enumerate(group["params"])
            if parameter.grad is not None
        )
        return loss

    def advance(self, parts: Iterable[Part]) -> None:
        """Update every part and write it back, one after the other."""
        for part in parts:
            self.update(part.weight, part.gradient, part.state, part.group)
            self._close(part)

    def fresh(self, weight: Tensor, group: Group, seed: int = 0) -> dict[str, Any]:
        """Return the whole state of a parameter before its first step."""
        numbers: dict[str, Any] = {STEP: torch.zeros((), dtype=torch.float32)}
        if self.random:
            numbers["seed"] = int(group.get("seed", 0)) + seed
        return numbers | self.start(weight, group)

    def decay_(self, weight: Tensor, state: dict[str, Any], group: Group) -> None:
        """Shrink a parameter by decoupled weight decay; a core by its share of its weight's."""
        if group.get("weight_decay"):
            weight.mul_(decay(dict(group), state))

    def __getstate__(self) -> dict[str, Any]:
        held = vars(self)
        kept = {name: held[name] for name in self.declared.keys() & held.keys()}
        return super().__getstate__() | kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.declared.keys() & state.keys():
            self.attach()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; tensors keep the types that they were saved with.

        `torch.optim` casts every state tensor to its parameter's type: integers above 256 and
        float32 moments would not survive beside a bfloat16 parameter.
        """
        state_dict = mended(state_dict)
        super().load_state_dict(state_dict)
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        own = chain.from_iterable(group["params"] for group in self.param_groups)
        for key, parameter in zip(saved, own):
            for slot, value in state_dict["state"].get(key, {}).items():
                if isinstance(value, Tensor) and self.state[parameter][slot].dtype != value.dtype:
                    device = parameter.device if value.dim() else value.device
                    self.state[parameter][slot] = value.detach().clone().to(device)

    def reached(self, tensor: Tensor) -> Tensor:
        """Return what an update works on of a parameter or gradient: the whole, or its shards."""
        gather = None if self.elementwise else getattr(tensor, "full_tensor", None)
        found: Tensor = tensor if gather is None else gather()
        return found

    def _open(self, parameter: Tensor, group: dict[str, Any], place: int) -> Part:
        gradient = parameter.grad
        assert gradient is not None
        if gradient.is_sparse:
            raise BindError(
                f"{type(self).__name__} takes no sparse gradients",
                hint="build the embedding with sparse=False",
            )
        weight, gradient = self.reached(parameter), self.reached(gradient)
        wide = torch.promote_types(weight.dtype, torch.float32)
        work = weight.to(wide)
        state = self.state[parameter]
        if STEP not in state:
            state.update(self.fresh(work, group, place))
        before = work.clone() if state.get(LEFT) else None
        state[STEP] += 1
        self.observe(parameter, state, group)
        return Part(parameter, work, gradient.to(wide), state, group, before)

    def _close(self, part: Part) -> None:
        parameter, work = part.parameter, part.weight
        if part.before is not None:
            warmed(work, part.before, part.state)
        if hasattr(parameter, "full_tensor") and not hasattr(work, "full_tensor"):
            from torch.distributed.tensor import distribute_tensor

            mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
            parameter.copy_(distribute_tensor(work.to(parameter.dtype), mesh, placements))
        elif work is not parameter:
            parameter.copy_(work)


def _called(group: dict[str, Any], place: int, number: int) -> str:
    names = group.get("param_names")
    return names[place] if names else f"parameter {place} of group {number}"
