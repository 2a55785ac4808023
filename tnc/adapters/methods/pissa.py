"""PiSSA: a low-rank delta that starts as the weight's leading part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tnc.adapters.equations import with_start
from tnc.adapters.method import methods
from tnc.adapters.methods.lora import LoRA
from tnc.adapters.spectra import leading
from tnc.adapters.start import Parts, Start
from tnc.decide.site import Site
from tnc.errors import PlanError
from tnc.net import Structure


@methods.register("pissa")
@dataclass(frozen=True)
class PiSSA(LoRA):
    """`W + s (B A - B0 A0)`: B0, A0 the start, whose product is the best rank-r part of W over s.

    With `W = U S V^T`, `A = sqrt(S_r / s) V_r^T` and `B = U_r sqrt(S_r / s)`: what is trained is
    the principal part, what stays is the rest; with `part=minor` the part of the r smallest
    singular values is trained (MiLoRA: Wang et al., 2024). `by=qr` takes `B = Q[:, :r]` and
    `A = R[:r] / s` of `W = Q R` (as OLoRA: Bueyuekakyuez, 2024). The base is not changed: the start
    is kept as frozen factors, so merging is of rank 2r. `niter` takes the leading part by so many
    randomised power iterations; the start is then less exact, the adapted model still is the base.
    Of a convolution the matrix is (o, i kernel): A holds the kernel. Trains r (o + i) parameters.
    (Meng, Wang, Zhang, PiSSA, NeurIPS 2024, equations 2 to 4.)
    """

    part: Literal["principal", "minor"] = "principal"
    by: Literal["svd", "qr"] = "svd"
    niter: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.part == "minor" and (self.by == "qr" or self.niter is not None):
            raise PlanError(
                "the minor part is that of an exact decomposition into singular values",
                hint="leave out niter and by",
            )

    def structure(self, site: Site) -> Structure:
        return with_start(site.signature, self.rank)

    def start(self, at: Start) -> Parts:
        b, a = self._factors(at, at.matrices(at.weight))
        return Parts(at.shaped(B=b, A=a, B0=-b, A0=a))

    def _factors(self, at: Start, matrix: Tensor) -> tuple[Tensor, Tensor]:
        if self.by == "qr":
            basis, rows = torch.linalg.qr(matrix)
            return basis[..., : self.rank], rows[..., : self.rank, :] / self.factor(at.site)
        if self.part == "minor":
            left, values, right = leading(matrix, min(matrix.shape[-2:]))
            left, values = left[..., -self.rank :], values[..., -self.rank :]
            right = right[..., -self.rank :, :]
        else:
            left, values, right = leading(matrix, self.rank, self.niter, at.generator)
        root = (values / self.factor(at.site)).sqrt()
        return left * root.unsqueeze(-2), root.unsqueeze(-1) * right
