"""Processor time of a step of every optimizer rule, over torch's AdamW and over its peers on PyPI.

On the weights and biases of the six linear layers of one layer of MiniLM's encoder, or on the
weights alone where a rule refuses vectors; one layer, since with six the run took too long. Rules
of factors take pairs of rank 128. All that is compared takes ten steps in turns, on one thread;
ratios are medians over five turns, over fewer where they take long. A refresh every ten steps or
oftener comes as it does in training; of one that is rarer, the excess over a plain step is timed
apart and divided by its interval; of coap's, that of its SVD every `refresh_every` is left out.
Backward passes, with the hooks of rules that read the model, and estimates of curvature are not
timed. A peer has the rule's rank and interval; what else it does is its own: both Muons multiply in
bfloat16, so that the rule is timed in both precisions beside the one that it chooses.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

from benchmarks.optimizers import (
    RANK,
    Layers,
    copies,
    give,
    layers_of_minilm,
    pool_of,
    trial,
)
from benchmarks.outcome import Arguments, Goal, Outcome, table
from tnc.decide.option_text import print_form
from tnc.optim.rule import rules

NAME = "optimizer-step"
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}

WARM, STEPS, TURNS = 2, 10, 5
LONGEST = 2.0
"""Seconds after which no further turn of a rule begins."""
NEVER = 10**9


@dataclass(frozen=True)
class Peer:
    """Name an optimizer of a package, its options, and the one that says how often it refreshes."""

    module: str
    name: str
    options: Mapping[str, Any]
    every: str = ""

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"

    def built(self, parameters: Sequence[Tensor], every: int | None) -> torch.optim.Optimizer:
        """Build it, to refresh every so many steps. Raises ImportError."""
        kind = getattr(importlib.import_module(self.module), self.name)
        group: dict[str, Any] = {"params": list(parameters)}
        given = dict(self.options)
        if every is not None and self.every:
            given[self.every] = every
        if "rank" in given or (self.name == "Muon" and self.module != "torch.optim"):
            return kind([group | given])  # type: ignore[no-any-return]
        return kind([group], **given)  # type: ignore[no-any-return]


PYPI = "pytorch_optimizer"
PROJECTED = {"rank": RANK, "scale": 0.25, "projection_type": "std"}
PEERS: Mapping[str, tuple[Peer, ...]] = {
    "muon": (Peer("torch.optim", "Muon", {}), Peer(PYPI, "Muon", {"use_muon": True})),
    "lion": (Peer(PYPI, "Lion", {}),),
    "diffgrad": (Peer(PYPI, "DiffGrad", {}),),
    "sophia": (Peer(PYPI, "SophiaH", {"update_period": NEVER}),),
    "galore": (Peer(PYPI, "GaLore", PROJECTED, "update_proj_gap"),),
    "fira": (Peer(PYPI, "Fira", PROJECTED, "update_proj_gap"),),
    "soap": (Peer(PYPI, "SOAP", {}, "precondition_frequency"),),
    "shampoo": (
        Peer(
            PYPI,
            "ScalableShampoo",
            {"start_preconditioning_step": 1, "block_size": 1024},
            "preconditioning_compute_steps",
        ),
    ),
}
"""Optimizers that follow the same paper; a rule that is not named has none in these packages."""

VARIANTS: Mapping[str, tuple[dict[str, Any], ...]] = {
    "muon": ({"precision": "float32"}, {"precision": "bfloat16"}),
}
"""Options with which a rule is timed once more; goals are of what it does without them."""


@dataclass(eq=False)
class Runner:
    """Take steps, each after something that is not timed."""

    prepare: Callable[[int], None]
    step: Callable[[], object]
    done: int = 0

    def seconds(self, steps: int) -> float:
        """Return the mean processor time of a step."""
        found = []
        for _ in range(steps):
            self.prepare(self.done)
            started = time.process_time()
            self.step()
            found.append(time.process_time() - started)
            self.done += 1
        return mean(found)


def run(arguments: Arguments) -> Outcome:
    """Time every rule; `--quick` takes one turn. Goal: no rule is slower than a peer of its own."""
    torch.set_num_threads(1)
    layers = layers_of_minilm(1)
    turns = 1 if arguments.quick else TURNS
    rows, goals, figures = [], [], {}
    wanted = arguments.only.split(",") if arguments.only else list(rules.all())
    for name in wanted:
        for options in ({}, *VARIANTS.get(name, ())):
            found, absent = timed(name, layers, turns, options)
            own, adamw = found.pop("own"), found.pop("adamw")
            ratio = median(a / b for a, b in zip(own, adamw))
            line: dict[str, Any] = {"milliseconds": 1e3 * median(own), "over AdamW": ratio}
            said = []
            for peer, seconds in found.items():
                line[peer] = median(a / b for a, b in zip(own, seconds))
                said.append(f"{peer} {line[peer]:.3f}")
                if not options:
                    goals.append(Goal(f"{name} over {peer}", line[peer], 1.0))
            said += [f"{peer} absent" for peer in absent]
            title = print_form({"kind": name, **options})
            rows.append((title, line["milliseconds"], ratio, "; ".join(said) or "none"))
            print(*rows[-1], flush=True)
            figures[title] = line | {"turns": len(own), "absent": absent}
    columns = ("rule", "milliseconds", "over AdamW", "over its peers")
    return Outcome((table(columns, rows),), tuple(goals), figures)


def timed(
    name: str, layers: Layers, turns: int, options: Mapping[str, Any]
) -> tuple[dict[str, list[float]], list[str]]:
    """Return seconds of a step in every turn: of the rule, AdamW and each peer; absent peers."""
    interval = _interval(name, layers)
    rare = interval is not None and interval > STEPS
    plain = NEVER if rare else interval
    parameters = trial(name, layers).parameters
    runners = {"own": _rule(name, layers, plain, options), "adamw": _adamw(parameters)}
    excess: dict[str, float] = {}
    absent = []
    for peer in PEERS.get(name, ()):
        try:
            runners[str(peer)] = _peer(peer, parameters, plain)
        except ImportError:
            absent.append(str(peer))
    for runner in runners.values():
        runner.seconds(WARM)
    found: dict[str, list[float]] = {key: [] for key in runners}
    keys, began = list(runners), time.process_time()
    for turn in range(turns):
        start = turn % len(keys)
        for key in keys[start:] + keys[:start]:
            found[key].append(runners[key].seconds(STEPS))
        if time.process_time() - began > LONGEST:
            break
    if rare and interval is not None:
        eager = {"own": _rule(name, layers, 1, options)} | {
            str(peer): _peer(peer, parameters, 1)
            for peer in PEERS.get(name, ())
            if str(peer) in runners
        }
        for key, runner in eager.items():
            runner.seconds(1)
            excess[key] = max(0.0, runner.seconds(WARM) - median(found[key])) / interval
    return {k: [s + excess.get(k, 0.0) for s in found[k]] for k in keys}, absent


def _interval(name: str, layers: Layers) -> int | None:
    group = trial(name, layers).rule.param_groups[0]
    return group.get("update_every")


def _rule(name: str, layers: Layers, every: int | None, given: Mapping[str, Any]) -> Runner:
    options = dict(given) | ({} if every is None else {"update_every": every})
    group = trial(name, layers).rule.param_groups[0]
    if every == NEVER and "refresh_every" in group:
        options["refresh_every"] = NEVER
    tried = trial(name, layers, **options)
    tried.prepare(0)
    tried.step()
    tried.estimate()
    return Runner(tried.prepare, tried.step)


def _adamw(parameters: Sequence[Tensor]) -> Runner:
    own = copies(parameters)
    return _given(own, torch.optim.AdamW(own, foreach=True))


def _peer(peer: Peer, parameters: Sequence[Tensor], every: int | None) -> Runner:
    own = copies(parameters)
    made = peer.built(own, every)
    if peer.name == "SophiaH":  # its first step would differentiate twice
        give(own, pool_of(own)[0])
        made.step(hessian=[torch.ones_like(p) for p in own])  # type: ignore[call-overload]
    return _given(own, made)


def _given(own: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> Runner:
    pool = pool_of(own)
    return Runner(lambda number: give(own, pool[number % len(pool)]), optimizer.step)
