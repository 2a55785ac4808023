"""EoRA: a low-rank delta that gives back what compression lost, where the inputs see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tnc.adapters.method import methods, refuses_inputs
from tnc.adapters.methods.lora import LoRA
from tnc.adapters.start import Parts, Start
from tnc.decide.site import Site
from tnc.fit import Moment
from tnc.rewrite.compensating import residual_branch
from tnc.rewrite.drift import is_one_layer


@methods.register("eora")
@dataclass(frozen=True)
class EoRA(LoRA):
    """`W' + s B A`, with `s B A` nearest to what W' lost of W: no training is needed.

    Minimises `E |(W - W' - s B A) x|^2` over the inputs x that the compressed model sees; with
    `C = E[x x^T]` and the singular values of `(W - W') sqrt(C)` the error that stays is
    `sqrt(sum_{i > r} sigma_i^2)`. The paper's eigenvectors of C give the same product; here nothing
    is inverted, so inputs that never vary break nothing. B and A are of equal norm, column by row.
    `original=` is the model that was compressed; W' may be made of cores, or be dense and pruned or
    rounded. All weights are compensated on the inputs of the compressed model, not one layer after
    another. Of a convolution the matrix is (o, i kernel): A holds the kernel; of an embedding rows
    count as often as they are looked up. Trains r (o + i) parameters, if it is trained. (Liu et
    al., EoRA, 2024, equations 2 to 6.)

    With `toward="output"` it minimises `E |W x + b - (W' + s B A) x' - b'|^2`, with x what the
    layer reads in the original and x' what it reads now, after the deltas of the layers before it:
    reduced-rank regression, one layer after another. A compressed model whose layers were fitted
    to what their predecessors leave (`sequential` refits, distillation) needs this one: to bring W
    back would undo its fit. For linear layers and convolutions that are called once.
    """

    toward: Literal["weight", "output"] = "weight"

    needs: ClassVar[tuple[str, ...]] = ("moment", "original")
    offset: ClassVar[str] = "it starts nearer to the original model than its base is"

    @property
    def sequential(self) -> bool:
        return self.toward == "output"

    def refuses(self, site: Site) -> str:
        if self.sequential and not is_one_layer(site):
            return "toward=output is for linear and convolution layers that are called once"
        return refuses_inputs(site) or super().refuses(site)

    def start(self, at: Start) -> Parts:
        lost = at.matrices(at.given("original").double() - at.weight.double())
        moment = Moment(at.given("moment").to(lost))
        if at.site.op == "embedding":
            a, b = self._branch(lost.mT, moment)
            return Parts(at.shaped(B=b.mT, A=a.mT / self.factor(at.site)))
        if lost.dim() == 2:
            b, a = self._branch(lost, moment)
        else:
            pairs = [self._branch(each, moment) for each in lost]
            b, a = (torch.stack(parts) for parts in zip(*pairs))
        return Parts(at.shaped(B=b, A=a / self.factor(at.site)))

    def _branch(self, lost: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        """Return both factors, each column of the first as long as its row of the second."""
        left, right = residual_branch(lost, moment, self.rank)
        sizes = (right.norm(dim=1) / left.norm(dim=0)).sqrt()
        sizes = torch.where((sizes > 0) & sizes.isfinite(), sizes, 1.0)  # where one of both is zero
        return left * sizes, right / sizes[:, None]
