"""Latency of compiled models over the dense ones: MiniLM at 50 %, ResNet-20 at 30 %, fused or not.

Both sides use one library of matrix products; process CPU time (one thread), interleaved, medians
of ratios. FLOPs are those of all matrix products that run, attention included. Compiled models are
kept in `--checkpoint FOLDER` and used again from there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import tnc
from benchmarks.kernels import timing
from benchmarks.kernels.timing import PRECISION, Side, interleaved, median_ratio
from benchmarks.outcome import Arguments, Goal, Outcome, table
from benchmarks.resnet import resnet20
from tnc.capture import capture
from tnc.decide.pipeline import pipeline
from tnc.decide.spec import Spec, read_spec
from tnc.inputs import load
from tnc.kernels.turns import clock
from tnc.rewrite import Subject, run_passes

NAME = "model-latency"
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}

SHARE_OF_FLOP_RATIO = 0.7
FUSIONS = ("fuse-horizontally",)
"""The passes that are switched on and off."""


@dataclass(frozen=True)
class Case:
    """One model: its dense form, its compiled form, and what both are run on.

    `batches` yields a name and the arguments of every cell; `build` is given a folder in which
    the compiled model is kept. `passes` are those that are switched on and off.
    """

    name: str
    build: Callable[[Path], tuple[nn.Module, nn.Module]]
    batches: Callable[[bool], Iterator[tuple[str, dict[str, Tensor]]]]
    passes: tuple[str, ...] = FUSIONS


def run(arguments: Arguments) -> Outcome:
    """Time every case in every cell; `--only` picks cases, `--quick` the smallest cells."""
    wanted = (arguments.only or "").split()
    rows: list[tuple[object, ...]] = []
    goals: list[Goal] = []
    with TemporaryDirectory() as temporary:
        folder = arguments.checkpoint or Path(temporary)
        for case in CASES:
            if wanted and case.name not in wanted:
                continue
            dense, plain = case.build(folder / case.name)
            models = {"dense": dense, "plain": plain, "fused": fused(dense, plain, case)}
            for cell, given in case.batches(arguments.quick):
                for library in PRECISION:
                    row, found = _cell(f"{case.name}, {cell}", models, given, library, arguments)
                    rows.append(row)
                    goals += found
    columns = (
        "cell",
        "library",
        "dense ms",
        "FLOP ratio",
        "dense / plain",
        "dense / fused",
        "plain / fused",
        "share of FLOP ratio",
    )
    figures = {"rows": [dict(zip(columns, row)) for row in rows]}
    return Outcome((table(columns, rows),), tuple(goals), figures)


def fused(dense: nn.Module, compiled: nn.Module, case: Case) -> nn.Module:
    """Return a copy of a compiled model after the passes that fuse its layers."""
    given = next(iter(case.batches(True)))[1]
    trace = capture(dense, (), given, graph=False)
    subject = Subject(copy.deepcopy(compiled), trace, ((), given))
    return run_passes(subject, pipeline(case.passes)).subject.model


def _cell(
    name: str,
    models: dict[str, nn.Module],
    given: dict[str, Tensor],
    library: str,
    arguments: Arguments,
) -> tuple[tuple[object, ...], list[Goal]]:
    """Time the models on one input with one library of products."""
    now = clock(arguments.threads)
    torch.set_num_threads(arguments.threads)
    with torch.no_grad():
        sides = [Side(key, _call(model, given), library, True) for key, model in models.items()]
        flops = {key: count_flops(model, given) for key, model in models.items()}
        times = interleaved(sides, [timing.probe(side, now) for side in sides], now)
    ratio = flops["dense"] / flops["fused"]
    speed = median_ratio(times, "dense", "fused")
    row = (
        name,
        library,
        1e3 * timing.typical(times, "dense"),
        ratio,
        median_ratio(times, "dense", "plain"),
        speed,
        median_ratio(times, "plain", "fused"),
        speed / ratio,
    )
    goals = [
        Goal(f"dense over fused, {name}, {library}", speed, 1.0, "at least"),
        Goal(
            f"of the FLOP ratio, {name}, {library}", speed / ratio, SHARE_OF_FLOP_RATIO, "at least"
        ),
    ]
    return row, goals


def _call(model: nn.Module, given: dict[str, Tensor]) -> Callable[[], object]:
    return lambda: model(**given)


def count_flops(model: nn.Module, given: dict[str, Tensor]) -> int:
    """Count the FLOPs of the matrix products of one forward pass, attention included."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={attention: _attention_flops})
    with counter:
        model(**given)
    return int(counter.get_total_flops())


def _attention_flops(q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(sdpa_flop_count(q, k, v))


def _minilm(**overrides: str) -> Callable[[Path], tuple[nn.Module, nn.Module]]:
    """Build MiniLM by its packaged spec; the cores are not refitted, only their sizes matter."""
    overrides = {
        "passes": '["find-sites", "factorize{refit=0}", "share-input-factors"]'
    } | overrides

    def build(folder: Path) -> tuple[nn.Module, nn.Module]:
        resolved = read_spec("minilm", [f"{key}={value}" for key, value in overrides.items()])
        inputs = load(resolved.spec)
        dense: Any = inputs.loaded.model
        if not (folder / "tnc.json").is_file():
            made = tnc.compile(dense, resolved.spec, locations=resolved.locations, **inputs.given)
            folder.parent.mkdir(parents=True, exist_ok=True)
            tnc.save(made, folder)
        return dense.eval(), tnc.load(folder, model=dense).eval()

    return build


def _sentences(quick: bool) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield random tokens for each batch and sequence; the mask keeps them all."""
    generator = torch.Generator().manual_seed(0)
    for batch in (1, 8) if quick else (1, 8, 32):
        for tokens in (32,) if quick else (32, 128):
            ids = torch.randint(1000, 30000, (batch, tokens), generator=generator)
            mask = torch.ones_like(ids)
            yield f"batch {batch}, {tokens} tokens", {"input_ids": ids, "attention_mask": mask}


def _resnet20(budget: str) -> Callable[[Path], tuple[nn.Module, nn.Module]]:
    """Build ResNet-20 with random weights, Tucker-2 at 30 % of a budget; norms folded in both."""

    def build(folder: Path) -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(0)
        model, image = resnet20().eval(), torch.zeros(1, 3, 32, 32)
        rules = [
            {"match": "conv1", "structure": "dense"},
            {"match": "linear*", "structure": "dense"},
            {"match": "*", "op": "conv", "structure": "tucker"},
        ]
        steps = ["fold-batch-norm", "find-sites", "factorize{refit=0}", "keep-ties"]
        spec = Spec(version=1, rules=rules, metric="none", budget={budget: 0.3}, passes=steps)
        made = tnc.compile(model, spec, example=image)
        trace = capture(model, (image,), {}, graph=False)
        folded = run_passes(Subject(model, trace, ((image,), {})), pipeline(steps[:1]))
        return folded.subject.model.eval(), made.model.eval()

    return build


def _images(quick: bool) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield random images for each batch."""
    generator = torch.Generator().manual_seed(0)
    for batch in (1, 8) if quick else (1, 8, 32):
        yield f"batch {batch}", {"x": torch.randn(batch, 3, 32, 32, generator=generator)}


CASES = (
    Case("minilm", _minilm(), _sentences),
    Case("resnet20", _resnet20("params"), _images, ("channels-last",)),
    Case("resnet20-flops", _resnet20("flops"), _images, ("channels-last",)),
    Case("minilm-shares", _minilm(shares="true"), _sentences),
)
