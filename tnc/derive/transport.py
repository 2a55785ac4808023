"""Contractions that move what an optimizer knows of a weight to the cores of its structure.

The weight is linear in each core, `W = J(core)`. What is linear in the gradient moves by the
adjoint `J^T` (`derive.adjoint`); what is quadratic in it moves by two copies of the network with
the core removed, joined by the statistic of the weight: `J^T S J`. All of these are one template,
copies and ties: which legs of the second copy are the first one's.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tnc.derive.adjoint import WEIGHT
from tnc.derive.contraction import Contraction
from tnc.derive.dense import dense
from tnc.net import Axis, Network

OUTPUTS, INPUTS, SECOND = "outputs", "inputs", "second:"
"""Names of the operands that hold a Kronecker statistic; prefix of the second copy's cores."""


def squared(network: Network, core: str) -> Contraction:
    """Return `diag(J^T diag(v) J)` in the core's shape; operand `weight` holds v, one an entry.

    The second moment of the core's gradient where entries of the weight's are uncorrelated. Equal
    to the square of the adjoint's entries, not to the adjoint of squared cores: bonds between
    other cores are summed before the square.

    >>> from tnc.net import parse_network
    >>> found = squared(parse_network("B[o r] A[r i] : i -> o | i=3 o=2 r=1"), "A")
    >>> found.names, found.output
    (('weight', 'B', 'second:B'), ('r', 'i'))
    """
    whole = dense(network)
    legs = network.equation.core(core).indices
    copies = _copies(network, core, tied={*whole.output, *legs})
    return Contraction(
        (WEIGHT, *copies.names), (whole.output, *copies.operands), legs, copies.sizes
    )


def spread(network: Network, core: str) -> Contraction:
    """Return `(J * J) u` in the shape of the weight: the transpose of `squared`.

    Operand `weight` holds u, one number an entry of the core.
    """
    whole = dense(network)
    legs = network.equation.core(core).indices
    copies = _copies(network, core, tied={*whole.output, *legs})
    return Contraction(
        (WEIGHT, *copies.names), (legs, *copies.operands), whole.output, copies.sizes
    )


@dataclass(frozen=True)
class Quadratic:
    """`J^T (L x R) J` for a statistic L of the outputs and R of the inputs.

    `contraction` has the operands `outputs` and `inputs`; `outputs` and `inputs` here say for each
    leg whether the second copy has one of its own. Where it has not, the statistic's diagonal over
    that pair of legs is the operand.
    """

    contraction: Contraction
    outputs: tuple[bool, ...]
    inputs: tuple[bool, ...]


def quadratic(network: Network, core: str, mode: str | Axis = "") -> Quadratic:
    """Return the diagonal of `J^T (L x R) J` in the core's shape, or one mode's Gram matrix.

    With `mode`, a leg of the core or several: `E[G_(mode) G_(mode)^T]` of the core's gradient
    unfolded along it, `[mode, mode']`. Exact where the weight's gradient has covariance `L x R`;
    where `exact_from` names a side also without (Shampoo's rank side).

    >>> from tnc.net import parse_network
    >>> found = quadratic(parse_network("B[o r] A[r i] : i -> o | i=3 o=2 r=1"), "A", "r")
    >>> found.contraction.output, found.outputs, found.inputs
    (('r', "r'"), (True,), (False,))
    """
    whole = dense(network)
    legs = network.equation.core(core).indices
    modes = ((mode,) if mode else ()) if isinstance(mode, str) else mode
    copies = _copies(network, core, tied={name for name in legs if name not in modes})
    second = copies.renamed
    count = len(network.equation.output_indices)
    sides: list[Axis] = []
    own: list[tuple[bool, ...]] = []
    for side in (whole.output[:count], whole.output[count:]):
        fresh = tuple(second.get(name, name) != name for name in side)
        sides.append((*side, *(second[name] for name, two in zip(side, fresh) if two)))
        own.append(fresh)
    found = Contraction(
        (OUTPUTS, INPUTS, *copies.names),
        (*sides, *copies.operands),
        (*modes, *(second[name] for name in modes)) if modes else legs,
        copies.sizes,
    )
    return Quadratic(found, own[0], own[1])


def exact_from(network: Network, core: str, modes: Collection[str]) -> str:
    """Return the side whose statistic alone gives a Gram matrix of a core's gradient, or ''.

    'inputs' where every output leg is the core's own, is not among `modes` and joins no other core:
    the outputs are then summed over, and `E[G^T G]` of the weight is all that is needed, whatever
    the gradient's covariance is. 'outputs' the other way round.

    >>> from tnc.net import parse_network
    >>> network = parse_network("B[o r] A[r i] : i -> o | i=3 o=2 r=1")
    >>> exact_from(network, "B", ("r",)), exact_from(network, "B", ("o",))
    ('inputs', '')
    """
    equation = network.equation
    own = {name for name in equation.core(core).indices if name not in modes}
    for other in equation.cores:
        own -= set() if other.name == core else set(other.indices)
    if own >= set(equation.output_indices):
        return "inputs"
    return "outputs" if own >= set(equation.input_indices) else ""


@dataclass(frozen=True)
class _Copies:
    names: tuple[str, ...]
    operands: tuple[Axis, ...]
    sizes: tuple[tuple[str, int], ...]
    renamed: dict[str, str]


def _copies(network: Network, core: str, tied: Collection[str]) -> _Copies:
    """Write the network without a core twice; legs that are not `tied` get names of their own."""
    whole = dense(network)
    kept = [(name, legs) for name, legs in zip(whole.names, whole.operands) if name != core]
    used = set(whole.size)
    second: dict[str, str] = {}
    for name in whole.size:
        if name not in tied:
            copy = name + "'"
            while copy in used:
                copy += "'"
            used.add(copy)
            second[name] = copy
    names, operands = [], []
    for name, legs in kept:
        names.append(name)
        operands.append(legs)
    for name, legs in kept:
        again = tuple(second.get(leg, leg) for leg in legs)
        if name.startswith("identity:") and again == legs:
            continue  # an identity is its own square
        names.append(SECOND + name)
        operands.append(again)
    sizes = dict(whole.sizes) | {copy: whole.size[name] for name, copy in second.items()}
    return _Copies(tuple(names), tuple(operands), tuple(sorted(sizes.items())), second)
