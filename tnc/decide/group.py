"""Groups: sites whose weights are decided and fitted as one tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tnc.decide.site import Site
from tnc.derive.member import member
from tnc.net import Network, Signature, Structure


@dataclass(frozen=True)
class Group:
    """One site, or several.

    Sites that read one tensor are joined along their outputs: `[Wq; Wk; Wv]`, (sum of o | i).
    Sites of one shape anywhere in the model are stacked: (l, o | i), one more output mode.
    """

    sites: tuple[Site, ...]
    stacked: bool = False

    @classmethod
    def of(cls, sites: tuple[Site, ...], structure: Structure | None = None) -> Group:
        """Group sites as the signature of their common structure tells."""
        modes = len(sites[0].signature.outputs)
        more = structure is not None and len(structure.signature.outputs) > modes
        return cls(sites, len(sites) > 1 and more)

    @property
    def name(self) -> str:
        """The site's name; for several, all of them."""
        return " + ".join(site.name for site in self.sites)

    @property
    def signature(self) -> Signature:
        """The dimensions of the weight of the whole group."""
        first = self.sites[0].signature
        if len(self.sites) == 1:
            return first
        if self.stacked:
            return Signature((len(self.sites), *first.outputs), first.inputs)
        return Signature((sum(site.signature.outputs[0] for site in self.sites),), first.inputs)

    @property
    def rows(self) -> list[int]:
        """How many entries of the first output mode belong to each site."""
        if self.stacked:
            return [1] * len(self.sites)
        return [site.signature.outputs[0] for site in self.sites]

    def members(self, structure: Structure) -> Iterator[tuple[Site, Structure, dict[str, Part]]]:
        """Yield every site with its own structure, and what of which core is its own.

        Raises EquationError where the structure cannot be taken apart.
        """
        if len(self.sites) == 1:
            yield self.sites[0], structure, {}
            return
        if self.stacked:
            for number, site in enumerate(self.sites):
                own, cuts = member(structure, number)
                yield site, own, cuts
            return
        name, leg = output_core(structure)
        start = 0
        for site, rows in zip(self.sites, self.rows):
            yield (
                site,
                _with_rows(structure, leg, rows),
                {name: ((leg, slice(start, start + rows)),)},
            )
            start += rows


Part = tuple[tuple[str, int | slice], ...]
"""Where a core is cut: at a place, or to a range, of some of its indices."""


def output_core(structure: Structure) -> tuple[str, str]:
    """Return the core that alone carries the output, and its leg; ('', '') where none does."""
    equation = structure.terms[0].equation
    leg = equation.outputs[0][0]
    holders = [core.name for core in equation.cores if leg in core.indices]
    alone = len(structure.terms) == 1 and len(equation.outputs[0]) == 1 and len(holders) == 1
    return (holders[0], leg) if alone else ("", "")


def _with_rows(structure: Structure, leg: str, rows: int) -> Structure:
    (term,) = structure.terms
    signature = Signature((rows,), structure.signature.inputs)
    return Structure(signature, (Network.of(term.equation, {**term.size, leg: rows}),))
