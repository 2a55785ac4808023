"""Structures that are searched for: families whose folding a plan finds by itself."""

from __future__ import annotations

from dataclasses import dataclass

from tnc.net import Signature
from tnc.structures.family import Family, Sought, families
from tnc.structures.template import Template


@families.register("search")
@dataclass(frozen=True)
class Search(Family):
    """One of several families, each with the foldings of the matrix that fit it best.

    For every family the foldings into its number of modes are searched, `evaluations` of them, by
    the error of the site's weight at the share `keep` of its parameters, in the metric of the plan.
    The `best` foldings of each, and the even one, become candidates of the plan like any other.
    `strategy` is a registered search strategy that needs no spectra. Where nothing can be folded
    (convolutions, primes) the families stand as they are.
    """

    families: tuple[Family, ...] = ()
    evaluations: int = 24
    keep: float = 0.5
    best: int = 2
    strategy: str = "tnale"
    fit = "auto"

    @property
    def members(self) -> tuple[Family, ...]:
        """The families; trains of two and three modes and block trains where none is given."""
        train, blocks = families.get("tensor-train"), families.get("block-tensor-train")
        three = {"factors": 3}
        return self.families or (train(), train(**three), blocks())

    def refuses(self, signature: Signature) -> str:
        if not 0 < self.keep < 1:
            return f"keep is {self.keep}, a share of the parameters lies between 0 and 1"
        if self.evaluations < 1 or self.best < 1:
            return f"evaluations ({self.evaluations}) and best ({self.best}) are at least 1"
        return "; ".join(filter(None, (each.refuses(signature) for each in self.members)))

    def sought(self) -> Sought:
        return Sought(self.members, self.evaluations, self.keep, self.best, self.strategy)

    def template(self, signature: Signature) -> Template:
        return self.members[0].template(signature)
