"""Print a program as torch functions of mm, bmm and views.

`forward(x, operands.., bias)` takes rows `[n, inputs]` and operands as the program lays them out,
and returns `[n, outputs]`, and after it the values that are kept for the backward where there are
some. `backward(dy, x, kept.., operands..)` recomputes the others that it needs and returns one
gradient for each thing that needs one. With `tile`, rows are taken so many at a time, and results
between steps stay in buffers that fit the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

from tnc.kernels.emitters.torch_backward import Backward
from tnc.kernels.emitters.torch_forward import Forward
from tnc.kernels.program import Program, recomputed
from tnc.kernels.way import Way


def emit(program: Program, way: Way, *, bias: bool = False, needs: Sequence[str] = ()) -> str:
    """Return the source of `forward`, and of `backward` where anything `needs` a gradient.

    `needs` has names of operands, and 'input'. Without it nothing is kept.
    """
    kept = recomputed(program, needs, way.back.kept)[0]
    parts = [Forward(program, way, bias, kept).text()]
    if needs:
        parts.append(Backward(program, way, frozenset(needs)).text())
    return "\n\n".join(parts)
