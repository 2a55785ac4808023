"""Safe edits of a user's model, passes, contracts, and the manager that runs them."""

from tnc.rewrite.compiled import Compiled
from tnc.rewrite.contract import Analysis, Approximate, Contract, Exact, ZeroDelta
from tnc.rewrite.manager import Outcome, Record, run_passes
from tnc.rewrite.passes import InParts, Pass, passes
from tnc.rewrite.reparam import Reparam
from tnc.rewrite.subject import Subject

__all__ = [
    "Analysis",
    "Approximate",
    "Compiled",
    "Contract",
    "Exact",
    "InParts",
    "Outcome",
    "Pass",
    "Record",
    "Reparam",
    "Subject",
    "ZeroDelta",
    "passes",
    "run_passes",
]
