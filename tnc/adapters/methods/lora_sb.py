"""LoRA-SB: the start is the best low-rank part of the first full step, in its own directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tnc.adapters.equations import chain
from tnc.adapters.method import methods
from tnc.adapters.methods.lora import LoRA
from tnc.adapters.spectra import leading
from tnc.adapters.start import Parts, Start
from tnc.decide.site import Site
from tnc.errors import PlanError
from tnc.net import Structure


@methods.register("lora-sb")
@dataclass(frozen=True)
class LoRASB(LoRA):
    """`W + s B R A` with frozen orthonormal B and A, R (r, r) trained, starting at a first step.

    `T = -step sign(G)`, G the sum of gradients over calibration, is what the first step of Adam at
    the rate `step` would do to all of W. With `T = U S V^T`, `B = U_r`, `A = V_r^T` and
    `R = S_r / s`: the model starts at `W + T[r]`, the best rank-r part of that step, and not at the
    base. With s = 1 the gradient of R is `B^T G A^T`, the least-squares fit of G by `B X A`, so
    there is no scale to choose. `step` is the authors' `lr / (warm-up steps)`; `niter` takes the
    vectors by so many randomised power iterations. Of a convolution the matrix is (o, i kernel): A
    holds the kernel. Trains r r parameters. (Ponkshe et al., Initialization using Update
    Approximation is a Silver Bullet for LoRA fine-tuning, 2024, algorithm 1.)
    """

    needs: ClassVar[tuple[str, ...]] = ("gradient",)
    offset: ClassVar[str] = "it starts at the best low-rank part of a first full step"

    step: float = 1e-5
    niter: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.step > 0:
            raise PlanError(f"step is {self.step}", hint="give the rate of a first step, above 0")

    def structure(self, site: Site) -> Structure:
        return chain(
            site.signature, ("B!", "o r"), ("R", "r s"), ("A!", "s i"), r=self.rank, s=self.rank
        )

    def start(self, at: Start) -> Parts:
        first = -self.step * at.matrices(at.given("gradient")).sgn()
        left, values, right = leading(first, self.rank, self.niter, at.generator)
        core = (values / self.factor(at.site)).diag_embed()
        return Parts(at.shaped(B=left, A=right, R=core))
