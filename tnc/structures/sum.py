"""Sums: one weight as several structures together, such as low rank and a sparse rest."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from tnc.net import Signature
from tnc.structures.family import Family, families
from tnc.structures.template import Template


@families.register("sum")
@dataclass(frozen=True)
class Sum(Family):
    """`W = W_1 + W_2 + ...`, each term of a family of its own; text form `low-rank + kronecker`.

    The sum has the ranks of all its terms; where a name repeats it carries the number of its term:
    `r`, `r_2`.
    """

    terms: tuple[Family, ...]
    fit = "sum"

    def refuses(self, signature: Signature) -> str:
        if len(self.terms) < 2:
            return "a sum needs two terms or more"
        reasons = ((n, term.refuses(signature)) for n, term in enumerate(self.terms, 1))
        return "; ".join(f"term {number}: {reason}" for number, reason in reasons if reason)

    def variants(self, signature: Signature) -> tuple[Family, ...]:
        each = product(*(term.variants(signature) for term in self.terms))
        return tuple(Sum(terms) for terms in each)

    def template(self, signature: Signature) -> Template:
        return Template.sum([term.template(signature) for term in self.terms])
