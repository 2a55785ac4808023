"""LoLDU: the diagonal of a triangular decomposition of the weight is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tnc.adapters.equations import chain
from tnc.adapters.method import methods
from tnc.adapters.methods.lora import LoRA
from tnc.adapters.start import Parts, Start
from tnc.adapters.triangular import completely, in_rows
from tnc.decide.site import Site
from tnc.net import Structure


@methods.register("loldu")
@dataclass(frozen=True)
class LoLDU(LoRA):
    """`W + s P L[:, :r] diag(z) U[:r]`, with `W = P L D U`: the trained diagonal is `D + s z`.

    L and U have ones on the diagonal; P is folded into the rows of L. z (r,) starts at zero, so the
    model starts as the base. With `pivoting=rows`, the paper's, P sorts rows; a pivot that is tiny
    beside its row of U, or beside the largest, is an error, as that row would drown the others.
    `pivoting=complete` sorts columns too, so that the largest entry left is the pivot: no entry of
    L and U is above one. Slices are directions, no approximation: W less its first r of them is
    often larger than W itself. `svfit` trains as many parameters along the best directions. Of a
    convolution the matrix is (o, i kernel). Trains r parameters. (Shi et al., LoLDU, 2024,
    equations 3 to 6.)
    """

    pivoting: Literal["rows", "complete"] = "rows"

    def structure(self, site: Site) -> Structure:
        return chain(site.signature, ("L!", "o r"), ("z", "r"), ("U!", "r i"), r=self.rank)

    def start(self, at: Start) -> Parts:
        matrix = at.matrices(at.weight)
        stack = matrix if matrix.dim() == 3 else matrix.unsqueeze(0)
        pairs = [self._slices(each, at) for each in stack]
        lower, upper = (torch.stack(parts) for parts in zip(*pairs))
        return Parts({**at.shaped(L=lower, U=upper), "z": at.zeros("z")})

    def _slices(self, matrix: Tensor, at: Start) -> tuple[Tensor, Tensor]:
        if self.pivoting == "complete":
            lower, _, upper = completely(matrix, self.rank)
        else:
            lower, _, upper = in_rows(matrix, self.rank, at.site.name)
        return lower, upper
