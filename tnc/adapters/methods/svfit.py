"""SVFit: the weight's leading singular values are trained, its singular vectors stay."""

from __future__ import annotations

from dataclasses import dataclass

from tnc.adapters.equations import chain
from tnc.adapters.method import methods
from tnc.adapters.methods.lora import LoRA
from tnc.adapters.spectra import leading
from tnc.adapters.start import Parts, Start
from tnc.decide.site import Site
from tnc.net import Structure


@methods.register("svfit")
@dataclass(frozen=True)
class SVFit(LoRA):
    """`W + s U_r diag(z) V_r^T`, with `W = U S V^T`: the trained values are `S_r + s z`.

    z (r,) starts at zero, so the model starts as the base, and decay of z is decay towards it. The
    gradient of z is `s diag(U_r^T G V_r)`. `niter` takes the vectors by so many randomised power
    iterations. Of a convolution the matrix is (o, i kernel). Trains r parameters, so ranks may be
    large: up to min(o, i). (Sun et al., SVFit, 2024, section 3.)
    """

    niter: int | None = None

    def structure(self, site: Site) -> Structure:
        return chain(site.signature, ("U!", "o r"), ("z", "r"), ("V!", "r i"), r=self.rank)

    def start(self, at: Start) -> Parts:
        matrix = at.matrices(at.weight)
        left, _, right = leading(matrix, self.rank, self.niter, at.generator)
        return Parts({**at.shaped(U=left, V=right), "z": at.zeros("z")})
