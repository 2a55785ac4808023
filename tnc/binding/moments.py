"""The state of cores from the dense state of their weight, by a policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tnc.binding.dense_state import DenseState, pulled
from tnc.binding.grams import Moved, move_grams
from tnc.binding.verdicts import LOST, Seen, Verdict, verdict_of
from tnc.binding.weights import Cored
from tnc.optim.following import LEFT, SHARE, STEPS, whole
from tnc.optim.kinds import Form, Group, Kind

Policy = Literal["auto", "reset", "pull", "probe"]
POLICIES = ("auto", "reset", "pull", "probe")

SANE = (0.25, 8.0)
"""Energy of probe gradients over that of the moved second moment, when it may be trusted."""

TRUST = 20.0
"""Steps that moved averages count as under `auto`: what moved is an estimate, at other weights."""

QUADRATIC = (Kind.DIAGONAL, Kind.MAGNITUDE)


@dataclass(frozen=True, eq=False)
class Asked:
    """What a caller of `bind` asked for: policy, probe's mean squared gradients, warming up."""

    policy: Policy
    squares: Mapping[str, Tensor] | None
    warmup: int


def judge(
    form: Form,
    dense: DenseState,
    weight: Cored,
    names: Mapping[str, str],
    error: float,
    asked: Asked,
    options: Group,
) -> Verdict:
    """Decide whether the state of a weight moves to its cores, by the table of verdicts.

    `names` are the parameters of the cores, `error` what the weight lost of its norm. The gate of
    `auto` is the energy of probe gradients over that of the moved second moment: it is near 1 to 3
    where a rewrite lost nothing, and above 8 where it did. Cores that other weights share do not
    count, where there are others: the probe sees them from all of their weights.
    """
    if not dense.moving:
        return Verdict(False, dense.reason)
    scaled = [slot for slot in dense.moving if _has_scale(form, slot)]
    scaled.sort(key=lambda slot: form.kinds[slot] is Kind.GRAM)
    kinds = {form.kinds[slot] for slot in dense.moving} - {Kind.COVECTOR}
    slots = "squares" if kinds - {Kind.GRAM} else "grams" if kinds else "momenta"
    squares = asked.squares

    def looks() -> Seen:
        assert squares is not None  # rows ask a probe that is given
        missing = [name for name in names.values() if name not in squares]
        if missing:
            return Seen("missed", missing=missing[0])
        ratio = _ratio(form, dense, weight, names, squares, scaled[0], options)
        return Seen("fits" if SANE[0] <= ratio <= SANE[1] else "apart", ratio)

    probe = "none" if squares is None else "given" if scaled else "useless"
    return verdict_of(asked.policy, slots, probe, error, looks)


def agreed(verdicts: Sequence[Verdict], sizes: Sequence[int]) -> list[Verdict]:
    """Start every weight anew where more than half of all entries are of weights that lost much."""
    lost = sum(size for verdict, size in zip(verdicts, sizes) if verdict.lost)
    if 2 * lost <= sum(sizes):
        return list(verdicts)
    reason = f"{lost / sum(sizes):.0%} of the rewritten weights lost {LOST:g} of their norm or more"
    return [
        replace(verdict, moves=False, reason=reason) if verdict.moves else verdict
        for verdict in verdicts
    ]


def _ratio(
    form: Form,
    dense: DenseState,
    weight: Cored,
    names: Mapping[str, str],
    squares: Mapping[str, Tensor],
    slot: str,
    options: Group,
) -> float:
    held = form.holds[slot](dense.numbers, options)
    if form.kinds[slot] is Kind.GRAM:
        energies = _traces(move_grams(form, dense.moving, weight, options), names)
    else:
        moved = pulled(Kind.DIAGONAL, weight, dense.moving[slot])
        energies = [float(moved[core].sum()) for core in names]
    seen = sum(float(squares[name].sum()) for name in names.values())
    expected = sum(energies) / held if held > 0 else 0.0
    return seen / expected if expected > 0 else float("inf")


def _traces(moved: Moved, cores: Iterable[str]) -> list[float]:
    """Return the energy of each core's gradient: the trace of any of its Gram matrices."""
    found = [moved.slots.get(core, {}) for core in cores]
    return [float(next(iter(slots.values())).trace()) for slots in found if slots]


def move(form: Form, dense: DenseState, weight: Cored) -> dict[str, dict[str, Tensor]]:
    """Return, by core and slot, the dense state moved to the cores; in at least float32."""
    found: dict[str, dict[str, Tensor]] = {name: {} for name in weight.trainable}
    for slot, value in dense.moving.items():
        if form.kinds[slot] is Kind.GRAM:
            continue  # by `move_grams`, all of a weight's at once
        for name, moved in pulled(form.kinds[slot], weight, value).items():
            found[name][slot] = moved
    return found


def joined(form: Form, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Add up what several weights that share a core bring to it; gradients add, so moments do."""
    found = dict(parts[0])
    for part in parts[1:]:
        for slot, value in part.items():
            if form.kinds[slot] is Kind.MAGNITUDE:
                found[slot] = (found[slot].square() + value.square()).sqrt()
            else:
                found[slot] = found[slot] + value
    return found


def unsafe(form: Form, moved: Mapping[str, Tensor], squares: Tensor | None) -> str:
    """Say why what moved to a core cannot be kept; empty where it can."""
    scaled = any(_has_scale(form, slot) and form.kinds[slot] is not Kind.GRAM for slot in moved)
    if squares is not None and scaled and not bool((squares > 0).any()):
        return "the probe's gradients of it are zero"
    for slot, value in moved.items():
        if not bool(torch.isfinite(value).all()):
            return f"{slot} is not finite"
        if form.kinds[slot] in QUADRATIC and not bool((value > 0).any()):
            return f"{slot} would be zero: no gradient of the weight reaches this core"
    return ""


def state_of(
    form: Form,
    core: nn.Parameter,
    moved: Mapping[str, Tensor],
    dense: DenseState,
    squares: Tensor | None,
    policy: Policy,
    options: Group,
) -> dict[str, Any]:
    """Return the whole state of a core from what moved to it; empty where its rule takes nothing.

    Second moments are scaled by the probe: one factor a core (`auto`), or they are its squares
    entry by entry (`probe`). None of their entries stays zero beside a kept count of steps: Adam's
    next step there would be `(1 - b1) / sqrt(1 - b2)` rates long.
    """
    scaled = dict(moved)
    for slot, value in moved.items():
        if squares is None or not _has_scale(form, slot) or form.kinds[slot] is Kind.GRAM:
            continue
        wanted = squares * form.holds[slot](dense.numbers, options)
        factor = float(wanted.double().sum() / value.double().sum())
        scaled[slot] = wanted.to(value) if policy == "probe" else value * factor
        largest = f"max_{slot}"
        if largest in moved:  # a running maximum is in the same units, and never below
            scaled[largest] = torch.maximum(moved[largest] * factor, scaled[slot])
    kept = dense.numbers
    if policy == "auto":
        scaled, kept = _trusted(form, scaled, kept, options)
    wide = torch.promote_types(core.dtype, torch.float32)
    typed = {
        slot: (_filled(value) if form.kinds[slot] in QUADRATIC else value).to(
            dense.types.get(slot, wide if form.kinds[slot] is Kind.GRAM else core.dtype)
        )
        for slot, value in scaled.items()
    }
    written = form.write(typed, core, options)
    if not written:
        return {}
    numbers = {
        slot: value.clone() if isinstance(value, Tensor) else value for slot, value in kept.items()
    }
    return form.initial(core, options) | numbers | written


def _filled(value: Tensor) -> Tensor:
    """Give entries that are zero the mean of those that are not."""
    positive = value > 0
    if bool(positive.all()):
        return value
    return torch.where(positive, value, value[positive].mean())


def _has_scale(form: Form, slot: str) -> bool:
    return slot in form.holds and form.kinds[slot] is not Kind.COVECTOR


def _trusted(
    form: Form, moved: Mapping[str, Tensor], numbers: Mapping[str, Any], options: Group
) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Let moved averages count as `TRUST` steps: the means stay, and give way to what comes."""
    steps = numbers.get("step")
    if not form.forgets or steps is None or float(steps) <= TRUST:
        return dict(moved), numbers
    fewer = dict(numbers) | {"step": torch.full_like(torch.as_tensor(steps), TRUST)}

    def factor(slot: str) -> float:
        gathers = form.holds.get(slot) or form.holds.get(slot.removeprefix("max_"))
        if gathers is None:
            return 1.0
        return gathers(fewer, options) / gathers(numbers, options)

    return {slot: value * factor(slot) for slot, value in moved.items()}, fewer


def fresh(form: Form, core: nn.Parameter, warmup: int, options: Group) -> dict[str, Any]:
    """Return the state of a core that starts anew, with the steps that it warms up."""
    found = form.initial(core, options)
    if warmup > 0:
        found |= {LEFT: warmup, STEPS: warmup}
    return found


def with_share(state: dict[str, Any], form: Form, options: Group, share: float) -> dict[str, Any]:
    """Return a core's whole state with its share of its weight's decoupled decay."""
    state = whole(state)
    if share != 1.0 and form.decoupled(options):
        return state | {SHARE: share}
    return state
