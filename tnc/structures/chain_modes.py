"""The modes that trains and rings run through: folded matrices, or the modes of a convolution."""

from __future__ import annotations

from tnc.net import Signature
from tnc.structures.folding import Modes, folded


def chain_modes(
    signature: Signature, factors: int, outputs: Modes = (), inputs: Modes = ()
) -> tuple[list[tuple[str, ...]], dict[str, int], str]:
    """Return the legs of each core in order, leg sizes, and the map in text form.

    A linear weight is folded into `factors` pairs of output and input modes, as even as they can
    be where `outputs` and `inputs` do not say. A convolution is the
    chain input, kernel, output.
    """
    (o,), (i, *kernel) = signature.outputs, signature.inputs
    if kernel:
        taps = ["d", "h", "w"][3 - len(kernel) :]
        sizes = {"i": i, **dict(zip(taps, kernel)), "o": o}
        return [(name,) for name in sizes], sizes, f"i {' '.join(taps)} -> o"
    o_legs = [f"o{k + 1}" for k in range(factors)]
    i_legs = [f"i{k + 1}" for k in range(factors)]
    sizes = dict(zip(o_legs, folded(o, factors, outputs)))
    sizes |= dict(zip(i_legs, folded(i, factors, inputs)))
    return list(zip(o_legs, i_legs)), sizes, f"({' '.join(i_legs)}) -> ({' '.join(o_legs)})"
