"""Structure search: spaces of topologies, strategies, evaluators, engines and records.

No torch. `search` is the loop; everything it is given is registered in a folder of its own.
"""

import tnc.explore.engines  # folders first: each shares its name with the registry that walks it
import tnc.explore.evaluators
import tnc.explore.objectives
import tnc.explore.strategies  # noqa: F401
from tnc.explore.axes import Choice, Places, Point, Rank
from tnc.explore.bounds import Spectra
from tnc.explore.counting import Size, candidates, size_of
from tnc.explore.engine import Engine, Pool, Task, engines
from tnc.explore.evaluator import Evaluator, Fit, evaluators
from tnc.explore.fitting import FitTopology
from tnc.explore.objective import Objective, objectives
from tnc.explore.problem import Problem
from tnc.explore.record import MemoryRecord, Record
from tnc.explore.run import Counts, Found, Limits, search
from tnc.explore.space import Space
from tnc.explore.strategy import Strategy, propose, strategies
from tnc.explore.topology import Topology
from tnc.explore.trial import Batch, Outcome, Scored, Trial

__all__ = [
    "Batch",
    "Choice",
    "Counts",
    "Engine",
    "Evaluator",
    "Fit",
    "FitTopology",
    "Found",
    "Limits",
    "MemoryRecord",
    "Objective",
    "Outcome",
    "Places",
    "Point",
    "Pool",
    "Problem",
    "Rank",
    "Record",
    "Scored",
    "Size",
    "Space",
    "Spectra",
    "Strategy",
    "Task",
    "Topology",
    "Trial",
    "candidates",
    "engines",
    "evaluators",
    "objectives",
    "propose",
    "search",
    "size_of",
    "strategies",
]
