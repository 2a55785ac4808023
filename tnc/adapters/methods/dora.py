"""DoRA: a low-rank delta of the direction, and a magnitude for every row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from torch import Tensor

from tnc.adapters.delta import Delta
from tnc.adapters.method import methods, refuses_rows
from tnc.adapters.methods.lora import LoRA
from tnc.adapters.start import Parts, Start
from tnc.decide.site import Site


@methods.register("dora")
@dataclass(frozen=True)
class DoRA(LoRA):
    """`diag(m / |W + s B A|_row) (W + s B A)`, m (o,) starting at the row norms of W.

    The norm in the denominator is a constant for gradients, as in the paper's section 4.3. A row is
    what makes one output: of a convolution the matrix is (o, i kernel), A holds the kernel, and the
    norm is over input channels and kernel. Trains r (o + i) + o parameters. (Liu et al., DoRA, ICML
    2024, equations 5 and 11.)
    """

    def refuses(self, site: Site) -> str:
        return refuses_rows(site) or super().refuses(site)

    def start(self, at: Start) -> Parts:
        return Parts(super().start(at).cores, {"magnitude": at.matrix.norm(dim=1)})

    def trained(self, site: Site, weight: Callable[[], Tensor]) -> int:
        return super().trained(site, weight) + prod(site.signature.outputs)

    def rows(self, delta: Delta, weight: Tensor) -> Tensor:
        ratio: Tensor = delta.extras["magnitude"] / delta.norms(weight).clamp_min(1e-12)
        return ratio
