"""MiniLM at half its encoder's parameters, recovered by every adaptation method at equal size.

The compressed model is that of the packaged spec `minilm`; what is added are deltas of its encoder
with as many parameters as LoRA of rank 4 has, or the most below. EoRA's start is measured as it is,
without training: toward the lost weights as in its paper, and toward the original's outputs, since
layers of that spec are fitted to what those before them leave. Then every method is trained for 40
steps on 16 sentences that are not held out, to the embeddings of the original model, by AdamW
without decay; of three rates the one with the least training loss in the last steps counts. The
figure is the mean (1 - cosine) of embeddings of 128 held-out sentences to the original's, before
and after. The starts that need gradients take those of the same loss, moments and gradients over
all of the calibration data.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

import tnc
from benchmarks.adapted import Sized, at_rate, sized, train
from benchmarks.outcome import Arguments, Goal, Outcome, table
from benchmarks.sentences import training
from tnc.adapters import Adapters, of
from tnc.adapters.method import Method
from tnc.decide.spec import read_spec
from tnc.errors import TncError
from tnc.inputs import Inputs, load
from tnc.recipe import compare

NAME = "adapter-recovery"
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}

SPEC = "minilm"
SMALL = ("calibration.samples=256", "calibration.held_out=128", "calibration.max_length=48")
QUICK = ("calibration.samples=32", "calibration.held_out=32", "calibration.max_length=24")
MATCH = "encoder.layer.*"
STEPS, LAST = 40, 10
TOWARD = "eora toward the output"
RATES = (3e-4, 1e-3, 3e-3)


@dataclass(frozen=True, eq=False)
class Task:
    """The compressed model, the data, and what the original answers to training sentences."""

    inputs: Inputs
    compressed: nn.Module
    batches: Sequence[dict[str, Tensor]]
    answers: dict[int, Tensor]

    def loss(self, output: Any, batch: Any) -> Tensor:
        """Return the mean distance of embeddings to the original's."""
        evaluation = self.inputs.evaluation
        found = evaluation.features(output, batch)
        return evaluation.distance(found, self.answers[id(batch["input_ids"])]).mean()

    def adapted(self, method: Method) -> Adapters:
        """Return the compressed model with first values of a method."""
        return tnc.adapt(
            self.compressed,
            method,
            match=MATCH,
            example=((), self.batches[0]),
            calibration=self.inputs.calibration,
            loss=self.loss,
            original=self.inputs.loaded.model,
        )

    def error(self, model: nn.Module) -> float:
        """Return the mean (1 - cosine) on held-out sentences."""
        return next(iter(compare(self.inputs, model).values()))


def run(arguments: Arguments) -> Outcome:
    """Recover by every method; `--quick` trains two of them for two steps on a small calibration.

    What is compiled and every run are kept in `--checkpoint`. Goals: EoRA lowers the error without
    training, and trained adapters lower it further than EoRA alone.
    """
    torch.set_num_threads(1)
    quick = arguments.quick
    task = prepared(arguments.checkpoint, QUICK if quick else SMALL, 2 if quick else STEPS)
    only = ("lora", TOWARD) if quick else tuple((arguments.only or "").split(","))
    known = sized(task.compressed, ((), task.batches[0]), MATCH)
    before = task.error(task.compressed)
    rows, figures = [], {"before": before}
    for name, one in known.items():
        if only != ("",) and name not in only:
            continue
        found = recovered(task, name, one, arguments.checkpoint, RATES[1:2] if quick else RATES)
        figures[name] = found
        rows.append(_row(name, before, found))
        print(rows[-1], flush=True)
    columns = ("method", "added", "rate", "error at its start", "after training", "over before")
    done = {name: f for name, f in figures.items() if isinstance(f, dict) and "trained" in f}
    goals = []
    if TOWARD in done:
        untrained = done[TOWARD]["start"]
        goals.append(
            Goal("error with EoRA without training, over that before", untrained / before, 1.0)
        )
        best = min(f["trained"] for f in done.values())
        goals.append(
            Goal("error of the best trained adapter over EoRA's without", best / untrained, 1.0)
        )
    return Outcome((table(columns, rows),), tuple(goals), figures)


def recovered(
    task: Task, name: str, one: Sized, folder: Path | None, rates: Sequence[float]
) -> dict[str, Any]:
    """Return a method's errors at its start and after training at the best rate, or the reason."""
    file = None if folder is None else folder / f"{name}.json"
    if file is not None and file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    if one.method is None:
        return {"left out": one.reason}
    try:
        found = _recovered(task, name, one, rates)
    except TncError as error:
        found = {"left out": error.message}
    if file is not None:
        file.write_text(json.dumps(found), encoding="utf-8")
    return found


def _recovered(task: Task, name: str, one: Sized, rates: Sequence[float]) -> dict[str, Any]:
    assert one.method is not None
    best: dict[str, Any] = {}
    started: dict[Method, Adapters] = {}
    start = float("nan")
    for rate in rates:
        method = at_rate(name, one.method, rate)
        if method not in started:
            started[method] = task.adapted(method)
        if rate == rates[0]:
            start = task.error(started[method].model)
        adapters = of(copy.deepcopy(started[method].model))

        def loss(step: int, model: nn.Module = adapters.model) -> Tensor:
            batch = task.batches[step]
            return task.loss(model(**batch), batch)

        losses = train(adapters, method, rate, len(task.batches), loss)
        last = mean(losses[-LAST:])
        if last == last and last < best.get("last", float("inf")):
            best = {"last": last, "rate": rate, "trained": task.error(adapters.model)}
    if not best:
        return {"left out": "no rate of the grid trains it"}
    return {"method": str(method), "added": one.trained, "start": start, **best}


def _row(name: str, before: float, found: dict[str, Any]) -> tuple[object, ...]:
    if "left out" in found:
        return (name, "-", "-", "-", "-", found["left out"])
    ratio = found["trained"] / before
    return (name, found["added"], found["rate"], found["start"], found["trained"], ratio)


def prepared(folder: Path | None, changes: Sequence[str], steps: int) -> Task:
    """Compile the model, or take it from the folder, and ask the original about the sentences."""
    resolved = read_spec(SPEC, list(changes))
    inputs = load(resolved.spec)
    file = None if folder is None else folder / "compressed.pt"
    if file is not None and file.is_file():
        compressed = torch.load(file, weights_only=False)
    else:
        compressed = tnc.compile(
            inputs.loaded.model, resolved.spec, locations=resolved.locations, **inputs.given
        ).model
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(compressed, file)
    compressed = compressed.eval()
    every = training(inputs)
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[:steps]
    batches = [every[int(place)] for place in order]
    answers = {}
    with torch.no_grad():
        for batch in (*batches, *inputs.calibration):
            found = inputs.evaluation.features(inputs.loaded.model(**batch), batch)
            answers[id(batch["input_ids"])] = found
    return Task(inputs, compressed, batches, answers)
