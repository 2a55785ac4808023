"""The embedding view: pick output legs by number, contract what is left."""

from __future__ import annotations

from tnc.derive.contraction import Contraction
from tnc.derive.dense import ROWS
from tnc.net import Axis, Network


def gathered(network: Network, rows: int) -> Contraction:
    """Return the look-up of `rows` output entries: `[rows, i..]`.

    A core that carries output legs is indexed by the digits of the row number in the mixed radix of
    the output axis, which turns those legs into one leading `rows`. The other cores stay whole.
    """
    outputs = set(network.equation.output_indices)
    names, operands = [], []
    for core in network.equation.cores:
        picked = any(name in outputs for name in core.indices)
        rest: Axis = tuple(name for name in core.indices if name not in outputs)
        names.append(core.name)
        operands.append((ROWS, *rest) if picked else rest)
    for name in network.equation.shared:
        names.append(f"one-hot:{name}")
        operands.append((ROWS, name))
    sizes = dict(network.sizes) | {ROWS: rows}
    used = {name for operand in operands for name in operand}
    return Contraction(
        tuple(names),
        tuple(operands),
        (ROWS, *network.equation.input_indices),
        tuple((n, s) for n, s in sorted(sizes.items()) if n in used),
    )
