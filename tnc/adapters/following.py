"""What adapters do in training, tied to the steps of one or several optimizers."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tnc.adapters.adapters import Adapters, of
from tnc.adapters.attach import generator_for
from tnc.adapters.delta import Delta
from tnc.adapters.method import Method
from tnc.adapters.training import Optimizer, Training, Turn
from tnc.adapters.training_step import TrainingStep
from tnc.errors import BindError
from tnc.nn.rebuilt import is_sharded

_OPEN: weakref.WeakKeyDictionary[Optimizer, weakref.ref[Followed]] = weakref.WeakKeyDictionary()


class Followed:
    """The hooks by which optimizers' steps run what the methods of the active adapters ask for.

    Before a step: gradients of penalties are added, then `gradients_`. After it: `proximal_`, then
    `event_`, whose reports are kept in `events` as (step, weight, what was done). A step of a delta
    begins with the first of its optimizers that steps and ends when all of them have, or when one
    of them would step again; so each hook runs once, however many optimizers there are. Nothing
    runs for steps that a gradient scaler skips, nor between accumulated backward passes. With a
    closure the hooks before a step run after each call of it.
    """

    def __init__(self, adapters: Adapters, optimizers: tuple[Optimizer, ...], seed: int) -> None:
        self.adapters, self.optimizers, self.seed = adapters, optimizers, seed
        self.events: list[tuple[int, str, str]] = []
        self._open: dict[str, set[int]] = {}
        self._skipped: set[int] = set()
        self._handles: list[RemovableHandle] = []
        for number, optimizer in enumerate(optimizers):
            self._handles += (
                optimizer.register_step_pre_hook(self._before(number)),
                optimizer.register_step_post_hook(self._after(number)),
            )
        self._training = Training(adapters, optimizers)
        for key, delta in self._training.deltas():
            self._seed(key, delta)

    @property
    def steps(self) -> int:
        """How many steps were taken: the most of any active delta."""
        return max((delta.steps for _, delta in self._training.deltas()), default=0)

    def close(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        for optimizer in self.optimizers:
            _OPEN.pop(optimizer, None)

    def state_dict(self) -> dict[str, Any]:
        """Return what resumes, tensors, numbers and text alone, between two steps.

        Parameters and constants are with the adapters (`storing.save`), moments with the optimizer.
        """
        return {
            "seed": self.seed,
            "events": [list(event) for event in self.events],
            "deltas": {
                key: {
                    "steps": delta.steps,
                    "memory": dict(delta.memory),
                    "watches": delta.probe is not None,
                }
                for key, delta in self._training.deltas()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned. Raises BindError where the adapters are others."""
        found = dict(self._training.deltas())
        if found.keys() != state["deltas"].keys():
            other = sorted(found.keys() ^ state["deltas"].keys())[0]
            raise BindError(
                f"the state is of other adapters: {other!r} is on one side alone",
                hint="load the adapters and use those that were active when it was saved",
            )
        self.seed = int(state["seed"])
        self.events = [(int(step), str(path), str(told)) for step, path, told in state["events"]]
        for key, delta in found.items():
            told = state["deltas"][key]
            delta.steps = int(told["steps"])
            delta.memory = {name: v.detach().clone() for name, v in told["memory"].items()}
            if told["watches"]:
                delta.watch_()
            self._seed(key, delta)
            self._training.share(delta)

    def _seed(self, key: str, delta: Delta) -> None:
        adapter, _, path = key.partition("/")
        for peer in self._training.alike(delta):
            peer.seed = generator_for(self.seed, adapter, path).initial_seed()

    def _step(self, delta: Delta, turn: list[Turn]) -> TrainingStep:
        deltas = tuple(each for _, each, _ in turn)
        model = self.adapters.model
        return TrainingStep(delta.steps + 1, deltas, self.optimizers, self.seed, model)

    def _before(self, number: int) -> Callable[..., Any]:
        def hook(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is it
            if closure is None:
                self._begin(number)
                return None

            def followed() -> Any:
                for key, _, holding in self._training.turns():
                    if number in holding:
                        self._open.pop(key, None)
                value = closure()
                self._begin(number)
                return value

            rest = {k: v for k, v in kwargs.items() if k != "closure"}
            return (optimizer, followed, *args[2:]), rest

        return hook

    def _begin(self, number: int) -> None:
        optimizer = self.optimizers[number]
        self._skipped.discard(number)
        if _is_skipped(optimizer):
            self._skipped.add(number)
            return
        _unscale_(optimizer)
        turn = self._training.turns()
        for key, delta, holding in turn:
            if number not in holding:
                continue
            if number in self._open.get(key, ()):
                self._end(key, delta, turn)
            if key not in self._open:
                self._open[key] = set()
                self._adjust(delta, holding, self._step(delta, turn))
            self._open[key].add(number)

    def _adjust(self, delta: Delta, holding: set[int], at: TrainingStep) -> None:
        method = delta.method
        if acts(method, "penalty") or acts(method, "gradients_"):
            _check_whole(delta, holding)
        if acts(method, "penalty"):
            with torch.enable_grad():
                penalty = method.penalty(delta, at)
            if penalty is not None:
                _add_gradient(penalty, delta)
        if acts(method, "gradients_"):
            with torch.no_grad():
                method.gradients_(delta, at)

    def _after(self, number: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if number in self._skipped:
                return
            turn = self._training.turns()
            for key, delta, holding in turn:
                if number in holding and self._open.get(key, set()) >= holding:
                    self._end(key, delta, turn)

        return hook

    @torch.no_grad()
    def _end(self, key: str, delta: Delta, turn: list[Turn]) -> None:
        self._open.pop(key, None)
        at = self._step(delta, turn)
        delta.method.proximal_(delta, at)
        told = delta.method.event_(delta, at)
        delta.steps = at.number
        self._training.share(delta)
        if told:
            self.events.append((at.number, delta.site.name, told))


def follow(adapters: Adapters | nn.Module, *optimizers: Optimizer, seed: int = 0) -> Followed:
    """Let optimizers' steps run what the active adapters ask for; `close()` ends it.

    `adapters` are what `tnc.adapt` returned, or its model. `seed` is for what is drawn in training;
    give every process the same. Raises BindError where an optimizer trains nothing of the adapters,
    or a method does not go with one; PlanError where they are merged, so that nothing would train
    them.
    """
    adapters = of(adapters)
    if not optimizers:
        raise BindError("no optimizer is given", hint="follow(adapters, optimizer)")
    adapters.check_unmerged()
    trained = {id(p) for p in adapters.parameters()}
    for optimizer in optimizers:
        earlier = _OPEN.get(optimizer)
        if earlier is not None and earlier() is not None:
            raise BindError(
                "the optimizer is followed already: its hooks would run twice",
                hint="close() what follow returned first",
            )
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not held & trained:
            raise BindError(
                "the optimizer has no parameter of the adapters",
                hint="build it from adapters.parameters()",
            )
        for name in adapters.names:
            for path, delta in adapters.deltas(name).items():
                if held & {id(p) for p in delta.trained.values()}:
                    _check_fit(path, delta, optimizer)
    made = Followed(adapters, optimizers, seed)
    for optimizer in optimizers:
        _OPEN[optimizer] = weakref.ref(made)
    return made


def acts(method: Method, hook: str) -> bool:
    """Whether a method has a hook of its own."""
    return getattr(type(method), hook) is not getattr(Method, hook)


def _check_fit(path: str, delta: Delta, optimizer: Optimizer) -> None:
    reason = delta.method.unfit(optimizer)
    if reason:
        raise BindError(f"{path}: {reason}", where=path)
    if delta.method.divided() and any(is_sharded(p) for p in delta.trained.values()):
        raise BindError(
            f"{path}: it is sharded, and {delta.method.divided()}",
            where=path,
            hint="leave the adapted layers out of fully_shard, or take DistributedDataParallel",
        )


def _check_whole(delta: Delta, holding: set[int]) -> None:
    """Raise BindError where an optimizer steps before all gradients of a delta are there."""
    trained = delta.trained
    missing = [name for name, p in trained.items() if p.grad is None]
    if missing and len(holding) > 1 and len(missing) < len(trained):
        raise BindError(
            f"an optimizer steps before {missing[0]} has the gradient that a hook needs",
            where=delta.site.name,
            hint="step all optimizers of a delta after the backward pass, not within it",
        )


def _is_skipped(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer will skip the step that it was called for."""
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, Tensor) and bool(found.item())


@torch.no_grad()
def _unscale_(optimizer: Optimizer) -> None:
    """Take the scale off gradients that a fused optimizer would unscale itself."""
    scale = getattr(optimizer, "grad_scale", None)
    if not isinstance(scale, Tensor):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.div_(scale.to(parameter.grad))
    optimizer.grad_scale = None  # type: ignore[attr-defined]


def _add_gradient(penalty: Tensor, delta: Delta) -> None:
    trained: list[nn.Parameter] = list(delta.trained.values())
    found = torch.autograd.grad(penalty, trained, allow_unused=True)
    for parameter, gradient in zip(trained, found):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
