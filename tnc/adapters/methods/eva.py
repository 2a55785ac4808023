"""EVA: A starts as the directions in which the inputs vary most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tnc.adapters.method import methods, refuses_inputs
from tnc.adapters.methods.lora import LoRA
from tnc.adapters.start import Parts, Start
from tnc.decide.site import Site


@methods.register("eva")
@dataclass(frozen=True)
class EVA(LoRA):
    """`W + s B A`, B zero, the rows of A the leading eigenvectors of `E[x x^T]` of the inputs.

    Of all orthonormal A this one keeps most of the inputs, so that the first gradient of B, which
    is `s G A^T`, has the most to go by. Of wide inputs only the diagonal is measured: then rows are
    unit vectors. Experts start from one A. Ranks by explained variance are left to a budget. Of a
    convolution the matrix is (o, i kernel): A holds the kernel. Trains r (o + i) parameters.
    (Paischer et al., One Initialization to Rule them All, 2024, section 3.1.)
    """

    needs: ClassVar[tuple[str, ...]] = ("moment",)

    def refuses(self, site: Site) -> str:
        if site.op == "embedding":
            return "the inputs of an embedding are numbers of rows, they have no directions"
        return refuses_inputs(site) or super().refuses(site)

    def start(self, at: Start) -> Parts:
        moment = at.given("moment")
        if moment.dim() == 1:
            places = moment.topk(self.rank).indices
            a = moment.new_zeros(self.rank, len(moment))
            a[torch.arange(self.rank), places] = 1
        else:
            a = torch.linalg.eigh((moment + moment.mT) / 2)[1][:, -self.rank :].flip(1).mT
        stack = at.site.signature.outputs[:-1]
        return Parts({"B": at.zeros("B"), **at.shaped(A=a.expand(*stack, *a.shape))})
