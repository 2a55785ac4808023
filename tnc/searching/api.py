"""`tnc.search`: search for the structure of a tensor from Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tnc.explore import Found
from tnc.searching.result import Result
from tnc.searching.running import begin, given, in_memory, prepare


def search(
    target: Any,
    *,
    space: Mapping[str, Any] | None = None,
    objective: Any = None,
    strategy: Any = None,
    evaluator: Any = None,
    engine: Any = None,
    limits: Mapping[str, Any],
    seed: int = 0,
    out: str | Path | None = None,
    watch: Callable[[Found], None] = lambda found: None,
) -> Result:
    """Search for the tensor network that fits a tensor best.

    `target` is a tensor of real numbers (NumPy or torch) or what a spec has for a target; the
    other arguments are the keys of a search spec, in its words or as instances. With `out` the
    search runs in that folder, where it survives a kill: `tnc search resume DIR`.

    >>> import tnc
    >>> target = {"ring": [3, 3, 3, 3], "ranks": [2, 2, 2, 2]}
    >>> found = tnc.search(
    ...     target, space={"rank": 3}, engine="serial", limits={"evaluations": 60, "target": 0.6}
    ... )
    >>> found.best.metrics["params"], found.best.metrics["rse"] < 1e-4
    (48.0, True)

    Raises SpecProblems, SourceError, SearchError, and Interrupted where a run goes on from `out`.
    """
    prepared = prepare(
        given(
            target,
            space=space,
            objective=objective,
            strategy=strategy,
            evaluator=evaluator,
            engine=engine,
            limits=limits,
            seed=seed,
        )
    )
    return in_memory(prepared, watch) if out is None else begin(prepared, Path(out), watch=watch)
