"""MiniLM without training: tnc plans beside uniform whitened and uniform plain SVD.

The encoder keeps 80, 50 and 30 % of its parameters; the figure is the mean (1 - cosine) of sentence
embeddings to the original's on 512 held-out sentences. Each plan is one of the packaged specs.
With `--minutes N` the first plan is distilled for N minutes at each size, on sentences that are not
held out.
"""

from __future__ import annotations

import time
from statistics import median

import torch
from torch import nn

from benchmarks.outcome import Arguments, Goal, Outcome, table
from benchmarks.sentences import distilled
from tnc import api
from tnc.decide.spec import Resolved, read_spec
from tnc.inputs import Inputs, load
from tnc.recipe import compare

NAME = "minilm"

SHARES = (0.8, 0.5, 0.3)
GOALS = {0.8: 0.5, 0.5: 0.7, 0.3: 0.75}
"""At most these times the figure of uniform whitened SVD."""
PLANS = ("minilm", "svd-llm", "plain-svd")
PLANNING_SECONDS = 180.0
BATCHES = (1, 32)
PAIRS = 15


def run(arguments: Arguments) -> Outcome:
    """Compile MiniLM by three specs at three sizes; `--quick` does one size and 128 sentences."""
    if arguments.minutes:
        return distilled(arguments, SHARES)
    shares = (0.5,) if arguments.quick else SHARES
    rows, goals, figures = [], [], {}
    slowest = 0.0
    for share in shares:
        found = {}
        for name in PLANS:
            resolved = read_spec(name, _overrides(share, arguments.quick))
            inputs = load(resolved.spec)
            figure, kept, seconds, compiled = _compile(resolved, inputs)
            found[name] = figure
            ratios = [float("nan")] * len(BATCHES)
            if name == "minilm":
                slowest = max(slowest, seconds)
                ratios = [_speed(inputs, compiled, size) for size in BATCHES]
                goals += [
                    Goal(f"latency over dense, batch {size}, at {share:.0%}", ratio, 1.0)
                    for size, ratio in zip(BATCHES, ratios)
                ]
            rows.append((f"{share:.0%}", name, f"{kept:.4f}", figure, seconds, *ratios))
        ratio = found["minilm"] / found["svd-llm"]
        goals.append(Goal(f"error over uniform whitened SVD at {share:.0%}", ratio, GOALS[share]))
        figures[f"{share:.0%}"] = {**found, "ratio": ratio}
    goals.append(Goal("seconds to plan and compile", slowest, PLANNING_SECONDS))
    columns = (
        "size",
        "plan",
        "parameters kept",
        "mean 1 - cosine",
        "seconds",
        *(f"latency / dense, batch {size}" for size in BATCHES),
    )
    return Outcome((table(columns, rows),), tuple(goals), figures)


def _overrides(share: float, quick: bool) -> list[str]:
    found = [f"budget.params={share}"]
    if quick:
        found += ["calibration.samples=128", "calibration.held_out=128"]
    return found


def _compile(resolved: Resolved, inputs: Inputs) -> tuple[float, float, float, nn.Module]:
    started = time.perf_counter()
    made = api.compile(
        inputs.loaded.model, resolved.spec, locations=resolved.locations, **inputs.given
    )
    seconds = time.perf_counter() - started
    figure = next(iter(compare(inputs, made.model).values()))
    kept = made.plan.scope.params / made.plan.scope.dense_params
    return figure, kept, seconds, made.model


def _speed(inputs: Inputs, compiled: nn.Module, size: int) -> float:
    """Return the median ratio of latencies, compiled over dense, in interleaved pairs."""
    batch = {name: value[:size] for name, value in inputs.held_out[0].items()}
    ratios = []
    with torch.no_grad():
        for pair in range(PAIRS + 2):
            times = [_seconds(model, batch) for model in (compiled, inputs.loaded.model)]
            if pair >= 2:
                ratios.append(times[0] / times[1])
    return median(ratios)


def _seconds(model: nn.Module, batch: dict[str, torch.Tensor]) -> float:
    repeats = 8 if len(next(iter(batch.values()))) == 1 else 1
    started = time.perf_counter()
    for _ in range(repeats):
        model(**batch)
    return (time.perf_counter() - started) / repeats
