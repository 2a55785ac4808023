"""CorDA: what is trained is the part of the weight that the inputs use most, or least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tnc.adapters.equations import with_start
from tnc.adapters.method import methods, refuses_inputs
from tnc.adapters.methods.lora import LoRA
from tnc.adapters.spectra import leading
from tnc.adapters.start import Parts, Start
from tnc.decide.site import Site
from tnc.net import Structure


@methods.register("corda")
@dataclass(frozen=True)
class CorDA(LoRA):
    """`W + s (B A - B0 A0)` with B0, A0 the start: `s B0 A0 = U_r U_r^T W`, `W C = U S V^T`.

    C is `E[x x^T]` of the inputs. `part=principal` trains the directions of the r largest singular
    values of W C, what the inputs use most (the paper's instruction-previewed mode);
    `part=minor` those of the smallest and keeps the others (knowledge-preserved mode). The paper
    writes `S V^T C^-1` for `U^T W`: C is not inverted here, so inputs that never vary break
    nothing. B and A are of equal norm, column by row. The base is not changed: the start is kept as
    frozen factors. Of a convolution the matrix is (o, i kernel): A holds the kernel. Trains
    r (o + i) parameters. (Yang et al., CorDA, NeurIPS 2024, equations 2 to 6.)
    """

    needs: ClassVar[tuple[str, ...]] = ("moment",)

    part: Literal["principal", "minor"] = "principal"

    def refuses(self, site: Site) -> str:
        if site.op == "embedding":
            return "the inputs of an embedding are numbers of rows, they have no directions"
        return refuses_inputs(site) or super().refuses(site)

    def structure(self, site: Site) -> Structure:
        return with_start(site.signature, self.rank)

    def start(self, at: Start) -> Parts:
        matrix = at.matrices(at.weight).double()
        moment = at.given("moment").to(matrix)
        seen = matrix * moment if moment.dim() == 1 else matrix @ moment
        left, _, _ = leading(seen, min(seen.shape[-2:]))
        left = left[..., -self.rank :] if self.part == "minor" else left[..., : self.rank]
        b, a = _balanced(left, left.mT @ matrix / self.factor(at.site))
        return Parts(at.shaped(B=b, A=a, B0=-b, A0=a))


def _balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Give each column on the left, of length one, the norm of its row on the right."""
    sizes = right.norm(dim=-1).sqrt()
    sizes = torch.where(sizes > 0, sizes, 1.0)
    return left * sizes.unsqueeze(-2), right / sizes.unsqueeze(-1)
