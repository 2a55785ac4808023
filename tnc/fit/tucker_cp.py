"""Tucker bases, then CP of the core."""

from __future__ import annotations

from math import prod

from torch import Tensor

from tnc.fit.als import polish
from tnc.fit.canonical_starts import decompose, reaches_all
from tnc.fit.canonical_taming import tamed
from tnc.fit.hosvd import orthogonal_iteration
from tnc.fit.method import DirectFit, Outcome, fits
from tnc.fit.metric import Metric
from tnc.fit.modes import merge, own_legs, shaped
from tnc.net import Core, Network, Structure

_SWEEPS = 20


class TuckerCP(DirectFit):
    """`W = sum_r (U A_r) (x) (V B_r) (x) C_r ..` (Phan et al., Stable CPD, 2020, TKD-CPD).

    Higher-order orthogonal iteration gives the bases, error-preserving CP the core, and a few
    sweeps of alternating least squares join the two.
    """

    name = "tucker-cp"
    order = 7

    def refuses(self, network: Network) -> str:
        found = _parts(network)
        return found if isinstance(found, str) else ""

    def complete(self, network: Network) -> bool:
        bases, inner, bond = _checked(network)
        ranks = [prod(network.shape(core)) // network.size[bond] for core in inner]
        modes = [prod(network.size[n] for n in own_legs(network, core)) for core in bases]
        rest = [prod(modes) * prod(ranks[len(bases) :]) // mode for mode in modes]
        enough = all(rank >= min(m, other) for rank, m, other in zip(ranks, modes, rest))
        return enough and reaches_all(tuple(ranks), network.size[bond])

    def solve(self, folded: Tensor, network: Network, seed: int) -> Outcome:
        bases, inner, bond = _checked(network)
        plain = inner[len(bases) :]
        tensor = merge(folded, network, [*bases, *plain])
        ranks = [prod(network.shape(core)) // network.size[bond] for core in inner[: len(bases)]]
        found, sweeps, _ = orthogonal_iteration(tensor, ranks)
        middle = tensor
        for mode, basis in enumerate(found):
            middle = (middle.movedim(mode, -1) @ basis).movedim(-1, mode)
        inside = tamed(middle, decompose(middle, network.size[bond], seed))
        cores = {}
        for basis, core in zip(found, bases):
            up = tuple(n for n in core.indices if n in network.equation.bonds)
            cores[core.name] = shaped(basis, network, core, (*own_legs(network, core), *up))
        for factor, core in zip(inside.balanced(), inner):
            axes = (*(n for n in core.indices if n != bond), bond)
            cores[core.name] = shaped(factor, network, core, axes)
        if self.complete(network):
            return Outcome(cores, sweeps + inside.sweeps, True, inside.remark())
        structure = Structure.of(network)
        weight = folded.reshape(structure.signature.shape)
        better = polish(weight, structure, cores, Metric(), _SWEEPS)
        total = sweeps + inside.sweeps + better.iterations
        return Outcome(better.cores, total, better.converged, inside.remark())


def _checked(network: Network) -> tuple[list[Core], list[Core], str]:
    parts = _parts(network)
    assert not isinstance(parts, str)  # accepted
    return parts


def _parts(network: Network) -> tuple[list[Core], list[Core], str] | str:
    """Return bases, the cores that share one bond (those of the bases first), and that bond."""
    equation = network.equation
    if equation.shared:
        return f"leg {equation.shared[0]} is input and output at once"
    ends = {bond: [c for c in equation.cores if bond in c.indices] for bond in equation.bonds}
    counts = sorted(ends, key=lambda bond: -len(ends[bond]))
    if not counts or len(ends[counts[0]]) < 2:
        return "it has no bond"
    bond = counts[0]
    bases = [core for core in equation.cores if bond not in core.indices]
    hung: list[Core] = []
    for base in bases:
        ups = [n for n in base.indices if n in ends]
        near = {c.name for up in ups for c in ends[up] if c.name != base.name}
        if len(near) != 1 or any(len(ends[up]) != 2 for up in ups):
            return f"core {base.name} does not hang on one core of bond {bond}"
        holder = equation.core(near.pop())
        if {*holder.indices} != {*ups, bond} or not own_legs(network, base):
            return f"core {holder.name} is not between {base.name} and bond {bond} alone"
        hung.append(holder)
    if not bases:
        return f"all cores meet bond {bond}, none is a basis"
    plain = [core for core in ends[bond] if core not in hung]
    if any({*core.indices} - {bond} != {*own_legs(network, core)} for core in plain):
        return f"a core joins bond {bond} and others"
    legs = [n for core in equation.cores for n in own_legs(network, core)]
    wanted = (*equation.output_indices, *equation.input_indices)
    if sorted(legs) != sorted(wanted) or any(not own_legs(network, c) for c in plain):
        return "not every leg hangs on one core"
    return bases, [*hung, *plain], bond


fits.register(TuckerCP.name)(TuckerCP())
