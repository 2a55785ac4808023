"""What a pass is, and the registry of passes (the folder `passes/`, installed as `tnc.passes`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from tnc.decide.pipeline import passes
from tnc.rewrite.contract import Contract
from tnc.rewrite.subject import Subject

__all__ = ["InParts", "Pass", "passes"]


@dataclass(frozen=True)
class InParts:
    """What a pass does with a model whose weights are never all in memory.

    It is `carried` out on one part after another; or left out, with a note, where there is
    something for it to do; or refused, where there always is. It has nothing to do without a link
    or a site of the kinds that it `looks_for`, and, if it `measures`, without calibration data.
    `follows` says that it fits layers to what the rewritten layers before them compute, so that
    the next part reads what this pass made.
    """

    carried: bool = False
    looks_for: tuple[str, ...] = ()
    measures: bool = False
    follows: bool = False


class Pass(ABC):
    """One rewrite. Concrete passes are frozen dataclasses whose fields are their options.

    `stage` is 'prepare' for passes that simplify the model before it is planned, and 'apply' for
    those that carry the plan out. `in_parts` says what becomes of the pass when a model is
    streamed; a pass that does not say is refused there.
    """

    contract: ClassVar[Contract]
    stage: ClassVar[str] = "apply"
    in_parts: ClassVar[InParts] = InParts()

    @abstractmethod
    def apply(self, subject: Subject) -> Subject:
        """Return the rewritten subject; its model may be edited in place."""
