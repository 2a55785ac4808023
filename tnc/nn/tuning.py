"""Choose the kernels of a whole model ahead of time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from tnc.errors import KernelError
from tnc.kernels.applied import tuning
from tnc.kernels.shown import Explained, times
from tnc.nn.given import IMAGES, ROWS, Given, checked
from tnc.nn.kinds import Kind, kinds_of
from tnc.nn.layer import StructuredLayer


@dataclass(frozen=True)
class Tuned:
    """What `tune` chose: every kind of layer with its outcomes, and the seconds that it took.

    `layers` are those with generated kernels; `plain` has the others, whose `reason` says why.
    """

    layers: tuple[tuple[Kind, tuple[Explained, ...]], ...]
    plain: tuple[Kind, ...]
    seconds: float

    def __str__(self) -> str:
        lines: list[str] = []
        notes: dict[str, None] = {}
        for kind, outcomes in self.layers:
            lines.append(f"{_counted(kind)}: {kind.structure}")
            every = [each.shown() for each in outcomes]
            lines += [f"  {each.met}: {times(each)}; {each.used}" for each in every]
            notes |= dict.fromkeys(note for each in every for note in each.notes)
        lines += [f"{_counted(kind)}: no generated kernel; {kind.reason}" for kind in self.plain]
        lines += notes
        return "\n".join([*lines, f"chosen in {self.seconds:.1f} s"])


def tune(
    model: nn.Module,
    rows: Sequence[int] = ROWS,
    how: str = "measure",
    training: bool = False,
    keep: float = 0.0,
    images: Sequence[int] = IMAGES,
    compile: bool = False,
) -> Tuned:
    """Choose the kernels of a model's structured layers now, not at their first call.

    `rows` are numbers of vectors that a layer meets at once: batch x tokens. A kernel serves all
    numbers up to the next power of two from above half of it. `images` are numbers of images that
    convolutions meet; their size is that of the example that the model was compiled with, and ways
    are chosen for both memory formats. `how` is 'model' (predicted from the
    machine's prices, `tnc doctor --calibrate`) or 'measure' (the predicted short list is timed,
    tens of milliseconds a choice; kept in the user's cache). With `training` kernels are chosen for
    forward and backward together, else for inference, where merged cores are kept as long as
    weights do not change. Training keeps the input of a layer for the backward, and recomputes what
    lies between; it may `keep` that many times the bytes of the input beside it, where that is
    predicted, or measured, to be faster. Kernels are chosen for the device that the model is on, on
    the CPU for torch's present number of threads; layers that were used before take the new ones
    from their next call on. Outputs change by rounding only. With `compile`, linear layers through
    `torch.compile` are timed as well, and taken where that saves a tenth: it takes seconds for each
    kernel now, and again in every process that uses the kernel.

    Returns what was chosen, with predicted and measured seconds. Raises KernelError for another
    `how`, for a `keep` below 0, for `compile` without measuring, and for rows or images that are no
    positive whole numbers.

    >>> import torch, tnc
    >>> spec = tnc.Spec(version=1, rules=[{"match": "0", "structure": "low-rank", "keep": 0.5}])
    >>> net = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU())
    >>> made = tnc.compile(net, spec, example=torch.ones(4, 32))
    >>> found = tnc.tune(made.model, rows=(1, 16), how="model")
    >>> [(kind.paths, [each.task.rows for each in outcomes]) for kind, outcomes in found.layers]
    [(('0',), [1, 16])]
    """
    given = Given(checked(rows, "rows"), checked(images, "images"), training, keep, compile)
    if keep and not training:
        raise KernelError(
            "nothing is kept without gradients", where="keep", hint="add training=True"
        )
    started = time.perf_counter()
    found = kinds_of(model)
    tuned = []
    with tuning(how, keep, compile):
        for kind in found:
            if kind.reason:
                continue
            tuned.append((kind, kind.outcomes(given, how)))
            own = replace(given, dtype=kind.dtype, device=kind.device)
            for path in kind.paths:
                layer = model.get_submodule(path)
                assert isinstance(layer, StructuredLayer)
                layer.adopt_kernels(own)
    plain = tuple(kind for kind in found if kind.reason)
    return Tuned(tuple(tuned), plain, time.perf_counter() - started)


def _counted(kind: Kind) -> str:
    more = len(kind.paths) - 1
    return kind.paths[0] + (f" and {more} more" if more else "")
