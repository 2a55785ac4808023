"""What a structure costs: parameters, FLOPs, bytes, peak memory.

FLOPs count a multiply-add as two. Constant cores are no parameters and are not stored. Sparse cores
count their stored entries; in bytes, the positions too.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tnc.derive.chain import Chain, chain
from tnc.derive.contraction import Contraction, step_flops
from tnc.derive.dense import dense, forward, modewise
from tnc.derive.grouped import grouped
from tnc.net import Network, Signature, Structure

POSITION_BYTES = 4
"""What the position of one entry of a sparse core takes: an int32."""


@dataclass(frozen=True)
class Work:
    """What a weight has to do for one sample of the model's input.

    `op` is 'linear', 'conv', 'embedding', 'experts' or 'spectral'; `rows` is the number of vectors
    (tokens, samples) or, for convolutions, of output pixels; `rows_in` the number of input pixels.
    A `transposed` convolution multiplies its input pixels. Multiply-adds of a `complex` weight
    count as four real ones.
    """

    op: str = "linear"
    rows: int = 1
    rows_in: int = 1
    groups: int = 1
    transposed: bool = False
    complex: bool = False

    @property
    def factor(self) -> int:
        """How many real multiply-adds one of the weight is."""
        return 4 if self.complex else 1


@dataclass(frozen=True)
class Cost:
    """Parameters, FLOPs and peak intermediate elements a sample, bytes of storage."""

    params: int
    flops: int
    bytes: int
    peak: int


def parameters(structure: Structure) -> int:
    """Count the entries of all cores that are stored."""
    kinds, stored = structure.kinds, structure.stored
    return sum(
        stored.get(name, prod(shape))
        for name, shape in structure.shapes.items()
        if kinds[name] != "constant"
    )


def dense_cost(signature: Signature, work: Work, itemsize: int = 4) -> Cost:
    """Return the cost of the dense weight itself."""
    params = signature.parameters
    rows = work.rows_in if work.transposed else work.rows
    flops = 0 if work.op == "embedding" else 2 * rows * params * work.factor
    return Cost(params, flops, params * itemsize, 0)


def cost(structure: Structure, work: Work, itemsize: int = 4) -> Cost:
    """Return the cost of a structure doing `work`, each term by the cheaper of its two ways.

    The ways are to contract the input with the cores, or to rebuild the dense weight and use that.
    """
    params = parameters(structure)
    flops, peak = 0, 0
    for term in structure.terms:
        used, alive = _term_cost(term, structure.signature, work)
        flops, peak = flops + used, max(peak, alive)
    positions = POSITION_BYTES * sum(structure.stored.values())
    return Cost(params, flops, params * itemsize + positions, peak)


def order_flops(contraction: Contraction, term: Network) -> int:
    """Count a contraction's order; steps that meet a sparse core count its stored entries only."""
    if not term.equation.counts:
        return contraction.order.flops
    density = {core.name: term.density(core) for core in term.equation.cores if core.stored}
    slots, total = list(contraction.operands), 0
    shares = [density.get(name, 1.0) for name in contraction.names]
    for step in contraction.order.steps:
        flops = step_flops(slots[step.left], slots[step.right], step.indices, contraction.size)
        total += round(flops * min(shares[step.left], shares[step.right]))
        slots.append(step.indices)
        shares.append(1.0)
    return total


def rebuild_flops(term: Network, signature: Signature, work: Work) -> int:
    """Count rebuilding the dense weight and applying it."""
    return order_flops(dense(term), term) * work.factor + dense_cost(signature, work).flops


def conv_chain(term: Network, signature: Signature, work: Work) -> tuple[Network, Chain] | None:
    """Return the chain of a convolution with the network that it is of; None where none pays.

    None: a kernel axis is padded or spread over cores, a group is cut by no leg or by padding, or
    rebuilding the weight is cheaper.
    """
    covers = term.signature
    side = "inputs" if work.transposed else "outputs"
    cut = work.groups > 1 and getattr(covers, side) != getattr(signature, side)
    if covers.inputs[1:] != signature.inputs[1:] or cut:
        return None
    whole = grouped(term, work.groups, work.transposed)
    stages = whole and chain(whole, work.rows_in, work.rows, work.transposed)
    if not whole or not stages or rebuild_flops(term, signature, work) < stages.flops:
        return None
    return whole, stages


def _term_cost(term: Network, signature: Signature, work: Work) -> tuple[int, int]:
    if work.op == "embedding":
        return gather_flops(term, work.rows) * work.factor, 0
    if work.op == "conv":
        stages = conv_chain(term, signature, work)
        return (stages[1].flops if stages else rebuild_flops(term, signature, work)), 0
    apply = modewise if work.op == "spectral" else forward
    contraction = apply(term, work.rows)
    used = order_flops(contraction, term) * work.factor
    rebuilt = rebuild_flops(term, signature, work)
    if rebuilt < used:
        return rebuilt, signature.parameters
    return used, contraction.order.peak


def gather_flops(term: Network, rows: int) -> int:
    """Count looking up `rows` entries: output legs are gathered, the cores contracted by row."""
    from tnc.derive.gather import gathered

    return order_flops(gathered(term, rows), term)
