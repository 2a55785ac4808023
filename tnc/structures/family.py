"""What a family is, and the registry of families."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from tnc.net import Signature
from tnc.registry import Registry
from tnc.structures.template import Template


@dataclass(frozen=True)
class Sought:
    """What a plan is to search for: the foldings of some families; see the structure `search`."""

    families: tuple[Family, ...]
    evaluations: int
    keep: float
    best: int
    strategy: str


class Family(ABC):
    """A parametric family; concrete families are frozen dataclasses whose fields are options."""

    fit: ClassVar[str]
    """The registered fit that serves the family best; 'als' serves every equation, and 'auto' takes
    the first that accepts the equation at hand."""

    @abstractmethod
    def refuses(self, signature: Signature) -> str:
        """Say why a weight does not fit the family; empty when it does."""

    @abstractmethod
    def template(self, signature: Signature) -> Template:
        """Return the equation, leg sizes and rank bounds for a weight that is not refused."""

    def variants(self, signature: Signature) -> tuple[Family, ...]:
        """Return the members that a plan compares; several where an option is left to it."""
        return (self,)

    def sought(self) -> Sought | None:
        """Return what a plan searches for in its place; None where it stands for itself."""
        return None

    @classmethod
    def registry(cls) -> Registry[type[Family]]:
        """Return the registry of families: what an option that is itself a family is chosen of."""
        return families


families: Registry[type[Family]] = Registry("structure", "tnc.structures")
