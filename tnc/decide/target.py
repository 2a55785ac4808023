"""Targets: what is decided at once."""

from __future__ import annotations

from dataclasses import dataclass

from tnc.decide.group import Group
from tnc.decide.site import Site
from tnc.decide.spec_parts import Rule
from tnc.net import Signature


@dataclass(frozen=True)
class Target:
    """What is decided at once: a group of sites, and the rule that matched all of them."""

    group: Group
    rule: Rule
    where: str

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites of the group."""
        return self.group.sites

    @property
    def name(self) -> str:
        """The site's name; for several, all of them."""
        return self.group.name

    @property
    def signature(self) -> Signature:
        """The dimensions of the group's weight."""
        return self.group.signature
