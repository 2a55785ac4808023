"""What a pass is, and the registry of passes (the folder `passes/`, installed as `tnc.passes`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from tnc.decide.pipeline import passes
from tnc.rewrite.contract import Contract
from tnc.rewrite.subject import Subject

__all__ = ["Pass", "passes"]


class Pass(ABC):
    """One rewrite. Concrete passes are frozen dataclasses whose fields are their options.

    `stage` is 'prepare' for passes that simplify the model before it is planned, and 'apply' for
    those that carry the plan out.
    """

    contract: ClassVar[Contract]
    stage: ClassVar[str] = "apply"

    @abstractmethod
    def apply(self, subject: Subject) -> Subject:
        """Return the rewritten subject; its model may be edited in place."""
