"""GradNormLoRP: lengths and directions of rows, the directions for a projected optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from torch import Tensor

from tnc.adapters.delta import Delta
from tnc.adapters.equations import chain
from tnc.adapters.method import Method, methods, refuses_rows
from tnc.adapters.start import Parts, Start, wide
from tnc.decide.site import Site
from tnc.net import Structure


@methods.register("gradnorm-lorp")
@dataclass(frozen=True)
class GradNormLoRP(Method):
    """`diag(g / |V|_row) V` with `V = W + D`; D (o, i) dense, starting at zero, g (o,) at |W|_row.

    The norm takes part in gradients: that of D is orthogonal to V in every row, that of g moves
    rows along themselves. Meant for D in GaLore (moments of rank r, no more) and g in Adam, which
    together are `tnc.optim`'s rule gradnorm-lorp on the weight itself, step by step. Unlike in the
    release g is a parameter with its own state, and not taken from |V| again at every step. Trains
    o i + o parameters: it saves the optimizer's memory, not the weight's.
    (Huang et al., Gradient Weight-normalized Low-rank Projection, AAAI 2025, section 3.)
    """

    sized_by: ClassVar[str] = ""

    def refuses(self, site: Site) -> str:
        return refuses_rows(site)

    def structure(self, site: Site) -> Structure:
        return chain(site.signature, ("D", "o i"))

    def start(self, at: Start) -> Parts:
        return Parts({"D": at.zeros("D")}, {"magnitude": at.matrix.norm(dim=1)})

    def trained(self, site: Site, weight: Callable[[], Tensor]) -> int:
        return super().trained(site, weight) + prod(site.signature.outputs)

    def rows(self, delta: Delta, weight: Tensor) -> Tensor:
        whole = delta.mapped(wide(weight) + delta.dense())
        ratio: Tensor = delta.extras["magnitude"] / whole.flatten(1).norm(dim=1).clamp_min(1e-12)
        return ratio
