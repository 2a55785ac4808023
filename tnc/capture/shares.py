"""How a forward pass spends its time and FLOPs over the sites."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn

from tnc.capture.batches import call
from tnc.capture.observe import Event, observe, synchronise
from tnc.capture.reads import reads
from tnc.capture.record import own_names
from tnc.capture.undisturbed import evaluating
from tnc.capture.weights import Weights
from tnc.decide.site import Site


@dataclass(frozen=True)
class Share:
    """Seconds in the operations that read a weight, its FLOPs, and their shares.

    `time` is of the whole forward pass, `work` of the FLOPs of all sites (`Site.cost`).
    """

    site: str
    seconds: float
    flops: int
    time: float
    work: float


class _Stopwatch:
    def __init__(self, model: nn.Module, weights: Weights) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._weights = weights
        self._own = {path: own_names(module, weights) for path, module in model.named_modules()}

    def before(self) -> None:
        """Nothing to do."""

    def step(self, event: Event) -> None:
        own = self._own.get(event.place, frozenset())
        for read in reads(event.op, event.args, event.kwargs, self._weights, own):
            if read.kind:
                self.seconds[read.name] += event.seconds


def shares(
    model: nn.Module, sites: Sequence[Site], batch: Any, *, repeats: int = 5
) -> tuple[Share, ...]:
    """Return the share of every site, in the order given; medians over `repeats` runs.

    The kernels alone are timed, whatever way the weight is read; the whole is timed by runs of its
    own, without observation. Raises CaptureError when the forward pass fails.
    """
    weights = Weights(model)
    runs, wholes = [], []
    with evaluating(model), torch.no_grad():
        for _ in range(repeats + 1):
            watch = _Stopwatch(model, weights)
            observe(model, weights, watch, lambda: call(model, batch))
            runs.append(watch.seconds)
            wholes.append(_whole(model, batch))
    whole = median(wholes[1:])  # the first run warms up
    flops = sum(site.cost.flops for site in sites)
    found = []
    for site in sites:
        seconds = median(run.get(site.name, 0.0) for run in runs[1:])
        work = site.cost.flops
        found.append(Share(site.name, seconds, work, seconds / whole, work / flops if flops else 0))
    return tuple(found)


def _whole(model: nn.Module, batch: Any) -> float:
    on_gpu = any(p.is_cuda for p in model.parameters())
    synchronise(on_gpu)
    started = perf_counter()
    call(model, batch)
    synchronise(on_gpu)
    return perf_counter() - started
