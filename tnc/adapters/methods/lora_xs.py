"""LoRA-XS: a small trained matrix between frozen singular vectors of the weight."""

from __future__ import annotations

from dataclasses import dataclass

from tnc.adapters.equations import chain
from tnc.adapters.method import methods
from tnc.adapters.methods.lora import LoRA
from tnc.adapters.spectra import leading
from tnc.adapters.start import Parts, Start
from tnc.decide.site import Site
from tnc.errors import PlanError
from tnc.net import Structure


@methods.register("lora-xs")
@dataclass(frozen=True)
class LoRAXS(LoRA):
    """`W + s B R A` with `B = U_r` and `A = S_r V_r^T` of `W = U S V^T` frozen, R (r, r) trained.

    R starts at zero, so the model starts as the base; the paper draws it with `std=1e-5`, and then
    the start differs from the base by as much. The gradient of R is `s B^T G A^T`. `niter` takes
    the vectors by so many randomised power iterations (the authors use 10). Of a convolution the
    matrix is (o, i kernel): A holds the kernel. Trains r r parameters. (Balazy, Banaei, Aberer,
    Tabor, LoRA-XS, 2024, section 3.)
    """

    std: float = 0.0
    niter: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.std >= 0:
            raise PlanError(f"std is {self.std}", hint="a standard deviation is 0 or more")

    def structure(self, site: Site) -> Structure:
        return chain(
            site.signature, ("B!", "o r"), ("R", "r s"), ("A!", "s i"), r=self.rank, s=self.rank
        )

    def start(self, at: Start) -> Parts:
        matrix = at.matrices(at.weight)
        left, values, right = leading(matrix, self.rank, self.niter, at.generator)
        core = at.normal("R", self.std) if self.std else at.zeros("R")
        return Parts({**at.shaped(B=left, A=values.unsqueeze(-1) * right), "R": core})
