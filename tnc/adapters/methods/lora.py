"""LoRA: a low-rank delta that starts at zero."""

from __future__ import annotations

from dataclasses import dataclass

from tnc.adapters.equations import chain, most
from tnc.adapters.method import Method, methods
from tnc.adapters.start import Parts, Start
from tnc.decide.site import Site
from tnc.errors import PlanError
from tnc.net import Structure


@methods.register("lora")
@dataclass(frozen=True)
class LoRA(Method):
    """`W + (alpha / rank) B A`, B (o, r) zero, A (r, i) drawn as `nn.Linear` draws its weight.

    `alpha` is the rank where it is not given, so that the factor is 1; with `stabilised` the factor
    is `alpha / sqrt(rank)` (rsLoRA: Kalajdzievski, 2023). Of a convolution the matrix is (o, i
    kernel): A holds the kernel and B is pointwise. Of an embedding, which picks rows of B, A is
    standard normal. Trains r (o + i) parameters. (Hu et al., LoRA, ICLR 2022, section 4.1.)
    """

    rank: int = 8
    alpha: float | None = None
    stabilised: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise PlanError(f"rank is {self.rank}", hint="a low-rank delta has a rank from 1")
        if self.alpha is not None and not self.alpha > 0:
            raise PlanError(f"alpha is {self.alpha}", hint="the delta's scale is above 0")
        if not 0 <= self.dropout < 1:
            raise PlanError(f"dropout is {self.dropout}", hint="give a share from 0 to below 1")

    def refuses(self, site: Site) -> str:
        top = most(site.signature)
        if self.rank > top:
            return f"rank {self.rank} is above {top}, the most that {site.signature} has"
        return ""

    def structure(self, site: Site) -> Structure:
        return chain(site.signature, ("B", "o r"), ("A", "r i"), r=self.rank)

    def start(self, at: Start) -> Parts:
        looked_up = at.site.op == "embedding"
        return Parts({"B": at.zeros("B"), "A": at.normal("A") if looked_up else at.kaiming("A")})

    def factor(self, site: Site) -> float:
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (self.rank**0.5 if self.stabilised else self.rank)
