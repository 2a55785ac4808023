"""Measure latency: two models in turns, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING

from tnc.report.disturbance import Disturbance
from tnc.report.run_report import Timing
from tnc.sources import Batch
from tnc.sources.source import as_call, count

if TYPE_CHECKING:
    from torch import nn

Progress = Callable[[str, int, int], None]


def latency(
    before: nn.Module,
    after: nn.Module,
    batches: Sequence[Batch],
    progress: Progress | None = None,
    *,
    seconds: float = 4.0,
) -> tuple[Timing, ...]:
    """Time two models on each batch, in turns within one process, so that both meet the same noise.

    Medians of 5 to 100 rounds, as many as fit into `seconds` for each batch. Where threads had to
    wait for processors, each says so in `unreliable`.
    """
    import torch

    found = []
    with torch.inference_mode():
        for number, batch in enumerate(batches):
            if progress:
                progress("time", number, len(batches))
            for model in (before, after) * 2:
                _milliseconds(model, batch)
            rows: list[tuple[float, float]] = []
            meanwhile = Disturbance(torch.get_num_threads())
            until = time.perf_counter() + seconds
            while len(rows) < 5 or (len(rows) < 100 and time.perf_counter() < until):
                start = time.thread_time()
                row = (_milliseconds(before, batch), _milliseconds(after, batch))
                meanwhile.add(sum(row) / 1000, time.thread_time() - start)
                rows.append(row)
            medians = [median(side) for side in zip(*rows)]
            reason = meanwhile.reason()
            found.append(Timing(count(batch), medians[0], medians[1], len(rows), reason))
    return tuple(found)


def _milliseconds(model: nn.Module, batch: Batch) -> float:
    args, kwargs = as_call(batch)
    start = time.perf_counter()
    model(*args, **kwargs)
    return 1000 * (time.perf_counter() - start)
