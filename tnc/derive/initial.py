"""Initialisation and learning rates of cores, from the equation.

With independent zero-mean cores every entry of the dense weight is a sum of `prod(bonds)` products,
so its variance is `prod(bonds) * prod_k var_k`. Solving for equal core variances gives the wanted
standard deviation exactly, whatever the structure. Legs that are input and output at once leave
zero blocks, and sparse cores zero entries; the root mean square over all entries is what is
matched, since it sets the scale of the output.
"""

from __future__ import annotations

from math import prod

from tnc.derive.contraction import Order
from tnc.derive.dense import ROWS, forward
from tnc.net import Network, Structure


def core_std(structure: Structure, std: float) -> dict[str, float]:
    """Return the standard deviation of every core for a dense weight of root mean square `std`.

    Terms of a sum share the variance equally. Constant cores are left out of the solution and
    count as entries of unit mean square.

    >>> from tnc.net import Structure, parse_network
    >>> s = Structure.of(parse_network("B[o r] A[r i] : i -> o | i=8 o=8 r=4"))
    >>> {name: round(value, 6) for name, value in core_std(s, 0.02).items()}
    {'B': 0.1, 'A': 0.1}
    """
    found: dict[str, float] = {}
    for term in structure.terms:
        free = [core for core in term.equation.cores if core.kind != "constant"]
        terms_summed = prod(term.size[name] for name in term.equation.bonds)
        density = prod(term.density(core) for core in free if core.stored)
        zero_blocks = prod(term.size[name] for name in term.equation.shared)
        variance = std**2 * zero_blocks / (len(structure.terms) * terms_summed * density)
        each = variance ** (1 / (2 * max(1, len(free))))
        found.update({core.name: each for core in free})
    return found


def learning_rate_factors(network: Network) -> dict[str, float]:
    """Return the Adam learning-rate factor of every core, relative to the dense weight's.

    `factor = (d_in / d_in_core) / cores`, where `d_in_core` is the fan-in of the core: the number
    of terms summed when it is applied (Potapczynski et al., Compute Better Spent, 2024).
    """
    order = forward(network, 1).order
    fan_in = _fan_in(order, network)
    d_in = prod(network.size[name] for name in network.equation.input_indices)
    cores = [core for core in network.equation.cores if core.kind == "trainable"]
    return {core.name: d_in / fan_in[core.name] / len(cores) for core in cores}


def _fan_in(order: Order, network: Network) -> dict[str, int]:
    slots = list(order.operands)
    names = ["", *(core.name for core in network.equation.cores)]
    found = dict.fromkeys(names[1:], 1)
    members = [{name} if name else set() for name in names]
    size = network.size | {ROWS: 1}
    for step in order.steps:
        summed = ({*slots[step.left], *slots[step.right]}) - set(step.indices)
        for name in members[step.left] | members[step.right]:
            carried = set(network.equation.core(name).indices)
            found[name] *= prod(size[index] for index in summed & carried)
        slots.append(step.indices)
        members.append(members[step.left] | members[step.right])
    return found
