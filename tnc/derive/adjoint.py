"""Adjoints: the network with one core removed.

The weight is linear in each core, `W = J_k(core_k)`. The adjoint `J_k^T` pulls a covector of the
weight (a gradient, a momentum, a residual) back to the core, by the same contraction with the core
removed and the weight put in. Gradients, alternating least squares and the transport of optimizer
state all use it.
"""

from __future__ import annotations

from tnc.derive.contraction import Contraction
from tnc.derive.dense import dense
from tnc.net import Network

WEIGHT = "weight"


def adjoint(network: Network, core: str) -> Contraction:
    """Return `core <- weight, other cores`; operand `weight` comes first.

    >>> from tnc.net import parse_network
    >>> adjoint(parse_network("B[o r] A[r i] : i -> o | i=3 o=2 r=1"), "A").operands
    (('o', 'i'), ('o', 'r'))
    """
    whole = dense(network)
    kept = [(name, operand) for name, operand in zip(whole.names, whole.operands) if name != core]
    return Contraction(
        (WEIGHT, *(name for name, _ in kept)),
        (whole.output, *(operand for _, operand in kept)),
        network.equation.core(core).indices,
        whole.sizes,
    )
