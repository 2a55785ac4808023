"""ResNet-20 on CIFAR-10: compressed without training, and then distilled on unlabelled images.

Needs `--data DIR` with `cifar10/resnet20.safetensors`, `test.npz`, `train.npz` and
`train_jpeg.npz`. Calibration and distillation see training images only and no labels. With
`--minutes N` the model at 30 % of its parameters is distilled for N minutes; `--checkpoint FOLDER`
makes that run resumable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tnc
from benchmarks import rivals
from benchmarks.outcome import Arguments, Goal, Outcome, table
from benchmarks.resnet import MEAN, STD, read_resnet20
from tnc.decide.spec import Spec
from tnc.decide.spec_parts import Distill
from tnc.sources import Loaded, datas, evaluations

NAME = "cifar"

SHARES = (0.75, 0.5, 0.25)
ACCURACY = {0.75: 88.0, 0.5: 75.0}
"""At least this accuracy without training, in percent."""
DISTILLED = 0.3
POINTS = {10.0: 3.0, 60.0: 1.5}
"""At most so many points below the dense model after so many minutes."""
GROUPED = {"structure": "grouped-low-rank"}
MIXED = ["tucker", "low-rank", "grouped-low-rank"]
PLANS: dict[str, dict[str, object]] = {
    "Tucker, knapsack": {"structure": "tucker"},
    "ALDS": GROUPED | {"allocate": "alds"},
    "mixed, rescored": {"structure": MIXED, "allocate": "measured"},
}
FILES = ("resnet20.safetensors", "test.npz", "train.npz", "train_jpeg.npz")


@dataclass(frozen=True)
class Case:
    """The dense model, the images that it is scored on with their labels, and calibration."""

    dense: nn.Module
    images: Tensor
    labels: Tensor
    calibration: tuple[Tensor, ...]
    folder: Path

    def scores(self, model: nn.Module) -> tuple[float, float, float]:
        """Return accuracy and agreement with the dense model in percent, and the mean KL."""
        with torch.no_grad():
            mine, theirs = (
                torch.cat([m(x) for x in self.images.split(128)]).log_softmax(-1)
                for m in (model, self.dense)
            )
        said, wanted = mine.argmax(-1), theirs.argmax(-1)
        accuracy = float((said == self.labels).double().mean())
        agreement = float((said == wanted).double().mean())
        kl = float((theirs.exp() * (theirs - mine)).sum(-1).mean())
        return 100 * accuracy, 100 * agreement, kl


def run(arguments: Arguments) -> Outcome:
    """Compress at three sizes by every plan and rival; `--quick` does one size, tnc alone."""
    case = read_case(arguments)
    if arguments.minutes:
        return _distilled(case, arguments)
    rows, goals, figures = [], [], {}
    dense = case.scores(case.dense)
    rows.append(("100%", "dense", "1.0000", *dense, 0.0))
    for share in (0.5,) if arguments.quick else SHARES:
        best = 0.0
        for name, make in _makers(case, share, arguments.quick).items():
            started = time.perf_counter()
            model, kept = make()
            seconds = time.perf_counter() - started
            found = case.scores(model)
            rows.append((f"{share:.0%}", name, f"{kept:.4f}", *found, seconds))
            figures[f"{name} at {share:.0%}"] = dict(zip(("accuracy", "agreement", "kl"), found))
            if name in PLANS:
                best = max(best, found[0])
            print(f"{share:.0%} {name}: {found[0]:.2f} {found[1]:.2f} {found[2]:.4g}", flush=True)
        if share in ACCURACY:
            goals.append(Goal(f"accuracy at {share:.0%}", best, ACCURACY[share], "at least"))
    columns = ("size", "plan", "kept", "accuracy %", "agreement %", "mean KL", "seconds")
    return Outcome((table(columns, rows),), tuple(goals), figures)


def read_case(arguments: Arguments) -> Case:
    """Read model and images. Ends with one line where something is missing."""
    folder = (arguments.data or Path("nowhere")) / "cifar10"
    missing = [name for name in FILES if not (folder / name).exists()]
    if arguments.data is None or missing:
        raise SystemExit(f"cifar: give --data DIR with DIR/cifar10/{missing[0]}")
    import numpy as np

    with np.load(folder / "test.npz") as archive:
        labels = torch.from_numpy(archive["y"]).long()
    dense = read_resnet20(folder / "resnet20.safetensors")
    source = _images(folder)
    held = source.batches(Loaded(dense), "held-out")
    calibration = source.batches(Loaded(dense), "calibration")
    return Case(
        dense,
        torch.cat([batch[0] for batch in held]),
        labels,
        tuple(batch[0] for batch in calibration),
        folder,
    )


def _images(folder: Path):  # type: ignore[no-untyped-def]
    return datas.get("images")(
        files=(str(folder / "train.npz"), str(folder / "train_jpeg.npz")),
        held_out_file=str(folder / "test.npz"),
        samples=1024,
        held_out=761,
        mean=MEAN,
        std=STD,
    )


def spec_for(share: float, structure: object, allocate: str = "surrogate") -> Spec:
    """Return the spec of a plan: every convolution but the stem may change."""
    return Spec(
        version=1,
        budget={"params": share},
        allocate=allocate,
        round_to=1,
        rules=[
            {"match": "*", "op": "conv", "structure": structure},
            {"match": "*", "op": "linear", "structure": "dense"},
        ],
    )


def compressed(case: Case, spec: Spec) -> tuple[nn.Module, float]:
    """Compile the model without training; the model and the share of parameters kept."""
    logits = evaluations.get("logits")()
    made = tnc.compile(case.dense, spec, calibration=case.calibration, evaluation=logits)
    return made.model, made.plan.scope.params / made.plan.scope.dense_params


def folded(case: Case) -> nn.Module:
    """Return the dense model with its batch norms folded: the same answers, sooner."""
    spec = Spec(version=1, rules=[{"match": "*", "structure": "dense"}])
    return tnc.compile(case.dense, spec, example=case.calibration[0][:2]).model


def _makers(
    case: Case, share: float, quick: bool
) -> dict[str, Callable[[], tuple[nn.Module, float]]]:
    found: dict[str, Callable[[], tuple[nn.Module, float]]] = {}
    for name, options in PLANS.items():
        found[name] = lambda o=options: compressed(case, spec_for(share, **o))  # type: ignore[misc]
    if not quick:
        for name, rival in rivals.CONVOLUTIONS.items():
            found[name] = lambda r=rival: rivals.uniform(case.dense, r, share)  # type: ignore[misc]
    return found


def _distilled(case: Case, arguments: Arguments) -> Outcome:
    """Distill at 30 % of the parameters; the goal is in points below the dense accuracy."""
    torch.manual_seed(0)
    model, kept = compressed(case, spec_for(DISTILLED, ["tucker", "low-rank"]))
    before, dense = case.scores(model), case.scores(case.dense)
    print(f"before: {before[0]:.2f} {before[1]:.2f} {before[2]:.4g}", flush=True)
    settings = Distill(minutes=arguments.minutes, **SETTINGS)
    found = tnc.distill(
        model,
        folded(case),
        _stream(case),
        settings,
        evaluation=evaluations.get("logits")(),
        checkpoint=arguments.checkpoint,
        progress=_printed(),
    )
    after = case.scores(found.model)
    rows = [
        ("dense", "1.0000", *dense, 0, 0.0),
        ("before", f"{kept:.4f}", *before, 0, 0.0),
        ("distilled", f"{kept:.4f}", *after, found.steps, found.seconds),
    ]
    columns = ("model", "kept", "accuracy %", "agreement %", "mean KL", "steps", "seconds")
    wanted = POINTS[min(POINTS, key=lambda minutes: abs(minutes - (arguments.minutes or 0)))]
    goal = Goal(f"points below dense after {arguments.minutes:g} min", dense[0] - after[0], wanted)
    names = ("accuracy", "agreement", "kl")
    figures = {row[0]: dict(zip(names, row[2:5])) for row in rows}
    return Outcome((table(columns, rows),), (goal,), figures | {"steps": found.steps})


def _stream(case: Case) -> Callable[[int], Iterator[Any]]:
    """Return training images by epoch, channels last: chains then train 1.5 times as fast."""
    source = _images(case.folder).stream(Loaded(case.dense))

    def epoch(number: int) -> Iterator[Any]:
        for batch in source(number):
            images, *rest = batch
            yield (images.to(memory_format=torch.channels_last), *rest)

    return epoch


SETTINGS: dict[str, object] = {"rate": 0.01, "temperature": 2.0, "layerwise": 0.1}


def _printed() -> Callable[[str, int, int], None]:
    """Return a progress function that prints each tenth of the run."""
    told = [-1]

    def progress(stage: str, done: int, total: int) -> None:
        if done * 10 // total > told[0]:
            told[0] = done * 10 // total
            print(f"{stage}: {done / total:.0%}", flush=True)

    return progress
