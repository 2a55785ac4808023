"""The state of cores from the dense state of their weight, by a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tnc.binding.dense_state import DenseState, pulled
from tnc.binding.grams import Moved, move_grams
from tnc.binding.weights import Cored
from tnc.optim.following import LEFT, SHARE, STEPS
from tnc.optim.kinds import Form, Group, Kind

Policy = Literal["auto", "reset", "pull", "probe"]
POLICIES = ("auto", "reset", "pull", "probe")

SANE = (0.25, 8.0)
"""Energy of probe gradients over that of the moved second moment, when it may be trusted."""

TRUST = 20.0
"""Steps that moved averages count as under `auto`: what moved is an estimate, at other weights."""

LOSSY = 0.02
"""Relative error of a weight from which a state of unknown scale is not moved."""

LOST = 0.6
"""Relative error of a weight from which `auto` moves nothing: at .57 moving was still better than
starting anew, at .65 worse, whatever the second moments (`benchmarks/continuation.py`)."""


@dataclass(frozen=True, eq=False)
class Verdict:
    """What to do with the cores of one weight: move their state or not, and by what factor."""

    moves: bool
    reason: str
    ratio: float = float("nan")
    lost: bool = False


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
    """Decide whether the state of a weight moves to its cores. `names` are the cores' parameters.

    The gate of `auto` is the energy of probe gradients over that of the moved second moment: it is
    near 1 to 3 where a rewrite lost nothing, and above 8 where it did.
    """
    if asked.policy == "reset":
        return Verdict(False, "policy reset")
    if not dense.moving:
        reason = "its state cannot be moved" if dense.known else "the optimizer kept nothing of it"
        return Verdict(False, reason)
    scaled = [slot for slot in dense.moving if _has_scale(form, slot)]
    scaled.sort(key=lambda slot: form.kinds[slot] is Kind.GRAM)
    kinds = {form.kinds[slot] for slot in dense.moving}
    diagonal = bool(kinds - {Kind.COVECTOR, Kind.GRAM})
    squared = bool(kinds - {Kind.COVECTOR})
    if asked.policy == "pull":
        return Verdict(True, "pulled" + ("; the second moment has no scale" if diagonal else ""))
    if asked.squares is None and diagonal:
        return Verdict(False, "no probe was given: the second moment's scale is unknown")
    if asked.squares is None or not scaled:
        if asked.policy == "auto" and squared and error > LOSSY:
            return Verdict(False, f"the weight lost {error:.2g} of its norm")
        if squared and not diagonal:
            return Verdict(True, "momentum pulled exactly")
        return Verdict(True, "pulled, exactly" if not diagonal else "pulled, without a scale")
    if asked.policy == "auto" and error > LOST:
        return Verdict(False, f"the weight lost {error:.2g} of its norm", lost=True)
    missing = [name for name in names.values() if name not in asked.squares]
    if missing:
        return Verdict(False, f"no probe gradient reached {missing[0]}")
    slot = scaled[0]
    held = form.holds[slot](dense.numbers, options)
    if form.kinds[slot] is Kind.GRAM:
        energies = _traces(move_grams(form, dense.moving, weight, options))
    else:
        moved = pulled(Kind.DIAGONAL, weight, dense.moving[slot])
        energies = [float(part.sum()) for part in moved.values()]
    seen = sum(float(asked.squares[name].sum()) for name in names.values())
    expected = sum(energies) / held if held > 0 else 0.0
    ratio = seen / expected if expected > 0 else float("inf")
    if asked.policy == "probe":
        return Verdict(True, "momentum pulled, second moment from the probe", ratio)
    if not SANE[0] <= ratio <= SANE[1]:
        return Verdict(False, "probe gradients do not fit the moved second moment", ratio)
    if not diagonal:
        return Verdict(True, "momentum pulled exactly, confirmed by the probe", ratio)
    return Verdict(True, "momentum pulled exactly, second moment scaled by the probe", ratio)


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


def state_of(
    form: Form,
    core: nn.Parameter,
    moved: Mapping[str, Tensor],
    numbers: Mapping[str, Any],
    squares: Tensor | None,
    policy: Policy,
    options: Group,
    dtypes: Mapping[str, torch.dtype],
) -> dict[str, Any]:
    """Return the whole state of a core from what moved to it, second moments scaled by the probe.

    One factor a core (`auto`), or the probe's own squares entry by entry (`probe`).
    """
    scaled = dict(moved)
    for slot, value in moved.items():
        if squares is None or not _has_scale(form, slot) or form.kinds[slot] is Kind.GRAM:
            continue
        wanted = squares * form.holds[slot](numbers, options)
        if policy == "probe":
            scaled[slot] = wanted.to(value)
        else:
            scaled[slot] = value * float(wanted.sum() / value.sum().clamp_min(1e-38))
            for other in moved:  # a running maximum is in the same units
                if other == f"max_{slot}":
                    scaled[other] = moved[other] * float(
                        wanted.sum() / value.sum().clamp_min(1e-38)
                    )
    if policy == "auto":
        scaled, numbers = _trusted(form, scaled, numbers, options)
    wide = torch.promote_types(core.dtype, torch.float32)
    typed = {
        slot: value.to(
            dtypes.get(slot, wide if form.kinds[slot] is Kind.GRAM else core.dtype)
        ).contiguous()
        for slot, value in scaled.items()
    }
    clones = {
        slot: value.clone() if isinstance(value, Tensor) else value
        for slot, value in numbers.items()
    }
    return form.initial(core, options) | clones | form.write(typed, core, options)


def _traces(moved: Moved) -> list[float]:
    """Return the energy of each core's gradient: the trace of any of its Gram matrices."""
    return [float(next(iter(slots.values())).trace()) for slots in moved.slots.values() if slots]


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


def with_share(state: dict[str, Any], form: Form, options: Group, cores: int) -> dict[str, Any]:
    """Return a core's state with its share of decoupled weight decay."""
    if cores > 1 and form.decoupled(options):
        return state | {SHARE: 1.0 / cores}
    return state
