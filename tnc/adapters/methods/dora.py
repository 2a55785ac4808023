"""DoRA: a low-rank delta of the direction, and a magnitude for every row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from tnc.adapters.delta import Delta
from tnc.adapters.method import Call, Parts, Start, methods, wide
from tnc.adapters.methods.lora import LoRA
from tnc.decide.site import Site


@methods.register("dora")
@dataclass(frozen=True)
class DoRA(LoRA):
    """`diag(m / |W + s B A|_row) (W + s B A)`, m (o,) starting at the row norms of W.

    The norm in the denominator is a constant for gradients, as in the paper's section 4.3. Trains
    r (o + i) + o parameters. (Liu et al., DoRA, ICML 2024.)
    """

    def refuses(self, site: Site) -> str:
        ops = {use.op for use in site.uses}
        if not ops <= {"linear", "conv"}:
            return f"row magnitudes are for linear and convolution weights, not for {min(ops)}"
        if site.groups > 1 and site.transposed:
            return "the rows of a transposed convolution in groups are not those of its weight"
        return super().refuses(site)

    def start(self, at: Start) -> Parts:
        return Parts(super().start(at).cores, {"magnitude": at.matrix.norm(dim=1)})

    def trained(self, site: Site, weight: Callable[[], Tensor]) -> int:
        return super().trained(site, weight) + prod(site.signature.outputs)

    def added(self, delta: Delta, call: Call) -> Tensor:
        y, bias, ratio = call.y, call.bias, self.ratio(delta, call.read())
        shape = [1] * y.dim()
        shape[-1 if delta.site.op == "linear" else -len(delta.site.signature.inputs)] = -1
        ratio = ratio.reshape(shape).to(y.dtype)
        plain = y if bias is None else y - bias.reshape(shape)
        return (ratio - 1) * plain + ratio * delta.applied(call.x)

    def change(self, delta: Delta, weight: Tensor) -> Tensor:
        ratio = self.ratio(delta, weight)
        mapped = delta.mapped(weight + delta.dense())
        scaled = ratio.reshape(-1, *[1] * (mapped.dim() - 1)).to(mapped.dtype) * mapped
        return scaled.permute(delta.site.unordered) - weight

    def ratio(self, delta: Delta, weight: Tensor) -> Tensor:
        """Return magnitude over row norm; the norm is a constant."""
        with torch.no_grad():
            whole = delta.mapped(wide(weight) + delta.dense())
            norm = whole.flatten(1).norm(dim=1).clamp_min(1e-12)
        ratio: Tensor = delta.extras["magnitude"] / norm
        return ratio
