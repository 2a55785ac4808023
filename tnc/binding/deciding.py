"""Decide what every core's state becomes; cores that weights share gather from all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tnc.binding.dense_state import DenseState
from tnc.binding.draft import Draft, Spot
from tnc.binding.grams import NONE, move_grams
from tnc.binding.moments import (
    Asked,
    agreed,
    fresh,
    joined,
    judge,
    move,
    state_of,
    unsafe,
    with_share,
)
from tnc.binding.report import Line
from tnc.binding.verdicts import Verdict
from tnc.binding.weights import Cored


@dataclass(frozen=True, eq=False)
class _Part:
    """What one weight brings to one of its cores."""

    weight: Cored
    core: str
    dense: DenseState
    spot: Spot
    verdict: Verdict
    moved: Mapping[str, Tensor]
    told: str


def decide(
    draft: Draft,
    into: Sequence[tuple[Cored, DenseState, Spot]],
    cores: Mapping[str, nn.Parameter],
    asked: Asked,
) -> None:
    """Put into the draft the state of every core, by name in `cores`, that weights become."""
    labels = {id(core): label for label, core in cores.items()}
    readers: dict[int, int] = {}
    for weight, _, _ in into:
        for name in weight.trainable:
            key = id(weight.layer.cores[name])
            readers[key] = readers.get(key, 0) + 1
    parts: dict[str, list[_Part]] = {label: [] for label in cores}
    trained = [entry for entry in into if entry[0].trainable]
    verdicts = []
    for weight, dense, spot in trained:
        own = _labels(weight, labels)
        alone = {n: label for n, label in own.items() if readers[id(cores[label])] == 1}
        options, lost = draft.options(spot.group), _lost(draft, weight)
        form = draft.form(spot.group)
        verdicts.append(judge(form, dense, weight, alone or own, lost, asked, options))
    sizes = [weight.layer.structure.signature.parameters for weight, _, _ in trained]
    for (weight, dense, spot), verdict in zip(trained, agreed(verdicts, sizes)):
        form, options = draft.form(spot.group), draft.options(spot.group)
        moved = move(form, dense, weight) if verdict.moves else {}
        grams = move_grams(form, dense.moving, weight, options) if verdict.moves else NONE
        for name, label in _labels(weight, labels).items():
            slots = moved.get(name, {}) | dict(grams.slots.get(name, {}))
            told = grams.told.get(name, "")
            part = _Part(weight, name, dense, spot, verdict, slots, told)
            parts[label].append(part)
        _pull_gradients(draft, weight, dense)
        draft.notes += [f"{weight.name}: {note}" for note in dense.notes]
        _note_frozen(draft, weight, spot.group)
    for label, core in cores.items():
        _settle(draft, label, core, parts[label], asked)


def _labels(weight: Cored, labels: Mapping[int, str]) -> dict[str, str]:
    return {name: labels[id(weight.layer.cores[name])] for name in weight.trainable}


def _settle(
    draft: Draft, label: str, core: nn.Parameter, parts: Sequence[_Part], asked: Asked
) -> None:
    form = draft.form(parts[0].spot.group)
    first = next((part for part in parts if not part.verdict.moves), parts[0])
    options = draft.options(parts[0].spot.group)
    reason, state = first.verdict.reason, {}
    if first.verdict.moves:
        joint = joined(form, [part.moved for part in parts])
        squares = asked.squares.get(label) if asked.squares is not None else None
        if asked.policy == "pull":
            squares = None
        refused = unsafe(form, joint, squares)
        if not refused:
            state = state_of(form, core, joint, first.dense, squares, asked.policy, options)
            if not state:
                refused = "the rule takes nothing of what was moved"
        reason = refused or reason
    deed = "moved" if state else "reset" if first.dense.known else "new"
    if not state:
        warmup = asked.warmup if asked.policy == "auto" and first.dense.known else 0
        state = fresh(form, core, warmup, options)
    if first.told and state and first.verdict.moves:
        reason += f"; {first.told}"
    if len(parts) > 1:
        reason += f", shared by {len(parts)} weights"
    share = parts[0].weight.shares[parts[0].core]
    line = Line(label, parts[0].weight.name, deed, reason, first.verdict.ratio)
    draft.keep(core, parts[0].spot, line, with_share(state, form, options, share))


def _pull_gradients(draft: Draft, weight: Cored, dense: DenseState) -> None:
    if dense.gradient is None:
        return
    device = next(iter(weight.cores.values())).device
    pulled = weight.transport.pull(weight.mapped(dense.gradient).to(device))
    for name in weight.trainable:
        draft.gather(weight.layer.cores[name], weight.kept(name, pulled[name]))


def _lost(draft: Draft, weight: Cored) -> float:
    """Return the relative error of a weight that was dense."""
    old = draft.before.plain.get(weight.name)
    if old is None or tuple(old.shape) != weight.shape:
        return 0.0
    with torch.no_grad():
        made = weight.dense().float()
        was = old.float().to(made.device)
        return float((made - was).norm() / (was.norm() + torch.finfo(was.dtype).tiny))


def _note_frozen(draft: Draft, weight: Cored, number: int) -> None:
    """Note that the decay of a weight does not reach all networks of its sum."""
    options, form = draft.options(number), draft.form(number)
    trained = set(weight.trainable)
    terms = weight.layer.structure.terms
    frozen = [t for t in terms if not any(core.name in trained for core in t.equation.cores)]
    if frozen and options.get("weight_decay") and form.decoupled(options):
        draft.notes.append(f"{weight.name}: {frozen[0]} is frozen and does not decay")
