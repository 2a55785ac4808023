"""Choose the kernels of a whole model ahead of time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from tnc.errors import KernelError
from tnc.kernels.applied import tuning
from tnc.kernels.outcome import Outcome, libraries, tiling
from tnc.nn.generated import kernels_of
from tnc.nn.kinds import Kind, kinds_of


@dataclass(frozen=True)
class Tuned:
    """What `tune` chose: every kind of layer with its outcomes, and the seconds that it took.

    `layers` are those with generated kernels; `plain` has the others, whose `reason` says why.
    """

    layers: tuple[tuple[Kind, tuple[Outcome, ...]], ...]
    plain: tuple[Kind, ...]
    seconds: float

    def __str__(self) -> str:
        lines = []
        for kind, outcomes in self.layers:
            lines.append(f"{_counted(kind)}: {kind.structure}")
            lines += [f"  {_told(each)}" for each in outcomes]
        lines += [f"{_counted(kind)}: no generated kernel; {kind.reason}" for kind in self.plain]
        return "\n".join([*lines, f"chosen in {self.seconds:.1f} s"])


def tune(
    model: nn.Module,
    rows: Sequence[int] = (1, 32, 1024),
    how: str = "measure",
    training: bool = False,
    keep: float = 0.0,
) -> Tuned:
    """Choose the kernels of a model's structured linear layers now, not at their first call.

    `rows` are numbers of vectors that a layer meets at once: batch x tokens. A kernel serves all
    numbers up to the next power of two from above half of it. `how` is 'model' (predicted from the
    machine's prices, `tnc doctor --calibrate`) or 'measure' (the predicted short list is timed,
    tens of milliseconds a choice; kept in the user's cache). With `training` kernels are chosen for
    forward and backward together, else for inference, where merged cores are kept as long as
    weights do not change. Training keeps the input of a layer for the backward, and recomputes what
    lies between; it may `keep` that many times the bytes of the input beside it, where that is
    predicted, or measured, to be faster. Kernels are chosen for the device that the model is on, on
    the CPU for torch's present number of threads; layers that were used before take the new ones
    from their next call on. Outputs change by rounding only.

    Returns what was chosen, with predicted and measured seconds. Raises KernelError for another
    `how`, for a `keep` below 0, and for rows that are no positive whole numbers.

    >>> import torch, tnc
    >>> spec = tnc.Spec(version=1, rules=[{"match": "0", "structure": "low-rank", "keep": 0.5}])
    >>> net = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU())
    >>> made = tnc.compile(net, spec, example=torch.ones(4, 32))
    >>> found = tnc.tune(made.model, rows=(1, 16), how="model")
    >>> [(kind.paths, [each.task.rows for each in outcomes]) for kind, outcomes in found.layers]
    [(('0',), [1, 16])]
    """
    check_rows(rows)
    if keep and not training:
        raise KernelError(
            "nothing is kept without gradients", where="keep", hint="add training=True"
        )
    started = time.perf_counter()
    found = kinds_of(model)
    tuned = []
    with tuning(how, keep):
        for kind in found:
            if kind.reason:
                continue
            outcomes = kind.outcomes(rows, training, how, keep)
            tuned.append((kind, tuple(each for each, _ in outcomes)))
            for path in kind.paths:
                for applied in kernels_of(model.get_submodule(path)):
                    for count in rows:
                        applied.prepare(count, training, kind.dtype, kind.device)
    plain = tuple(kind for kind in found if kind.reason)
    return Tuned(tuple(tuned), plain, time.perf_counter() - started)


def check_rows(rows: Sequence[int]) -> None:
    """Raise KernelError unless there are rows, all of them positive whole numbers."""
    for count in rows:
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise KernelError(
                f"kernels cannot be chosen for {count!r} rows",
                where="rows",
                hint="numbers of vectors that a layer meets at once, such as (1, 32, 1024)",
            )
    if not rows:
        raise KernelError("there are no rows to choose kernels for", where="rows", hint="give some")


def _counted(kind: Kind) -> str:
    more = len(kind.paths) - 1
    return kind.paths[0] + (f" and {more} more" if more else "")


def _told(found: Outcome) -> str:
    choice = found.choice
    measured = f", measured {1e6 * choice.measured:.1f} us" if choice.measured else ""
    used = "; ".join(
        [
            "absorbs " + ", ".join("*".join(o.cores) for o in choice.program.operands),
            *([tiling(choice.way)] if choice.way.tile or choice.way.back.tile else []),
            *([f"keeps {', '.join(choice.way.back.kept)}"] if choice.way.back.kept else []),
            "by " + ", ".join(dict.fromkeys(libraries(choice, found.task.device))),
        ]
    )
    return f"rows {found.task.rows}: predicted {1e6 * choice.seconds:.1f} us{measured}; {used}"
