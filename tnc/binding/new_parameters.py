"""Parameters that a pass made, such as a bias: where an optimizer holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tnc.binding.dense_state import DenseState
from tnc.binding.draft import Draft, Spot
from tnc.binding.report import Line
from tnc.binding.weights import Cored


def place_new(
    draft: Draft, held: Mapping[int, Spot], into: Sequence[tuple[Cored, DenseState, Spot]]
) -> None:
    """Hold parameters that a pass made where their module's others are held.

    `held` are the places of the old parameters by identity, `into` the weights that become cores.
    An optimizer of all the model holds every one; one of some parameters those of its modules.
    """
    before, after = draft.before, draft.after
    spots: dict[str, Spot] = {}
    for name, parameter in before.plain.items():
        if id(parameter) in held:
            spots.setdefault(name.rpartition(".")[0], held[id(parameter)])
    for weight, _, spot in into:
        spots.setdefault(weight.name.rpartition(".")[0], spot)
    whole = all(
        id(parameter) in held for parameter in before.plain.values() if parameter.requires_grad
    )
    for name, parameter in after.plain.items():
        made = name not in before.plain and name not in before.cored
        if not made or not parameter.requires_grad or id(parameter) in before.order:
            continue
        found = _nearest(spots, name) or (Spot(0, 0) if whole else None)
        if found is None:
            draft.notes.append(f"{name}: made by a pass; this optimizer does not hold it")
        elif not draft.holds(parameter):
            draft.keep(parameter, found, Line(name, name, "new", "made by a pass"))


def _nearest(spots: Mapping[str, Spot], name: str) -> Spot | None:
    """Return the place of what is held of a parameter's module, or of the nearest around it."""
    owner = name.rpartition(".")[0]
    while owner and owner not in spots:
        owner = owner.rpartition(".")[0]
    return spots.get(owner)
