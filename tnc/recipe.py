"""Run a whole recipe: load, plan, compile, evaluate, time, save."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tnc.decide.options import as_mapping
from tnc.decide.plan import Plan
from tnc.decide.spec import Resolved, Spec
from tnc.decide.spec_parts import Distill
from tnc.errors import PlanError
from tnc.inputs import Inputs, load, timing_batches
from tnc.report.environment import environment
from tnc.report.latency import latency
from tnc.report.page import write_report
from tnc.report.run_report import RunReport, Size
from tnc.sources import models
from tnc.sources.source import as_call, count

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tnc.distilling import Distilled
    from tnc.rewrite import Compiled

Progress = Callable[[str, int, int], None]
EXPORTED = {"onnx": "model.onnx", "torch-export": "model.pt2", "dense": "dense.safetensors"}


def run(
    resolved: Resolved,
    out: Path | None = None,
    plan: Plan | None = None,
    progress: Progress | None = None,
    *,
    force: bool = False,
) -> RunReport:
    """Carry out a spec from loading the model to the artifact in `out`, and report.

    With `plan`, exactly that plan is applied. When the figure on held-out data exceeds the spec's
    quality gate, the report says so in `gate` and nothing is written. Raises PlanError where `plan`
    is above the spec's budget, or the passes leave out what the plan promises.
    """
    from tnc import api
    from tnc.artifact.claims import check_savings

    spec, clock = resolved.spec, Clock(progress)
    if plan is not None:
        _check_budget(spec, plan)
    clock("load", 0, 1)
    inputs = load(spec)
    original = inputs.loaded.model
    if spec.quality and not inputs.held_out:
        raise PlanError(
            "the quality gate needs held-out data",
            where=resolved.locations.get("quality", "quality"),
            hint="add calibration data to the spec, or drop `quality`",
        )
    given = inputs.given | {"locations": resolved.locations, "progress": clock}
    clock("compile", 0, 1)
    compiled = api.compile(original, spec, plan=plan, **given)
    check_savings(compiled)
    compiled = _distilled(inputs, compiled, out, clock)
    figures = compare(inputs, compiled.model, clock)
    timings = latency(original, compiled.model, timing_batches(inputs), clock)
    clock("save", 0, 1)
    report = RunReport(
        before=_size(original, compiled.plan.total.dense_flops),
        after=_size(compiled.model, compiled.plan.total.flops),
        timings=timings,
        figures=tuple(figures.items()),
        held_out=sum(map(count, inputs.held_out)),
        seconds=clock.seconds,
        plan=compiled.plan,
        spec=resolved.digest,
        gate=gate_of(spec, figures),
        environment=environment(),
    )
    if out is None or report.gate:
        return report
    report = _save(inputs, compiled, report, out, resolved.text, force)
    shutil.rmtree(distillation_folder(out), ignore_errors=True)
    return replace(report, seconds=clock.seconds)


def distillation_folder(out: Path) -> Path:
    """Return where the checkpoint of a distillation lies until the artifact is complete."""
    return out.with_name(f"{out.name}.distill")


def distill_on(
    inputs: Inputs,
    model: nn.Module,
    settings: Distill,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Distilled:
    """Distill a compiled model on the training data of a spec; held-out data are left out."""
    from tnc.distilling import distill

    source = settings.data or inputs.spec.calibration
    if source is None:
        raise PlanError(
            "there are no data to distill on",
            where="distill",
            hint="add `data` to distill, or calibration data to the spec",
        )
    if settings.optimizer is None:
        settings = settings.model_copy(update={"optimizer": inputs.spec.optimizer})
    return distill(
        model,
        inputs.loaded.model,
        source.stream(inputs.loaded, inputs.spec.seed),
        settings,
        evaluation=inputs.evaluation,
        seed=inputs.spec.seed,
        checkpoint=checkpoint,
        progress=progress,
    )


def _distilled(
    inputs: Inputs, compiled: Compiled, out: Path | None, progress: Progress
) -> Compiled:
    """Distill where the spec says so, with a checkpoint beside the artifact's folder.

    Of a spec with adapters `distill` is their training.
    """
    from tnc.rewrite import Record

    settings = inputs.spec.distill
    if settings is None or inputs.spec.adapters is not None:
        return compiled
    place = distillation_folder(out) if out is not None else None
    found = distill_on(inputs, compiled.model, settings, place, progress)
    params = sum(p.numel() for p in found.model.parameters())
    record = Record("distill", found.seconds, (str(found),), params, params)
    return replace(compiled, model=found.model, records=(*compiled.records, record))


def compare(inputs: Inputs, model: nn.Module, progress: Progress | None = None) -> dict[str, float]:
    """Return the evaluation's figures of `model` against the original on held-out data."""
    import torch

    compiled: list[Tensor] = []
    original: list[Tensor] = []
    with torch.no_grad():
        for number, batch in enumerate(inputs.held_out):
            if progress:
                progress("evaluate", number, len(inputs.held_out))
            args, kwargs = as_call(batch)
            for side, found in ((model, compiled), (inputs.loaded.model, original)):
                found.append(inputs.evaluation.features(side(*args, **kwargs), batch))
    if not compiled:
        return {}
    return inputs.evaluation.summary(torch.cat(compiled), torch.cat(original))


def _check_budget(spec: Spec, plan: Plan) -> None:
    """Refuse a plan whose parameters or FLOPs in scope are above what the spec allows."""
    dense = {"params": plan.scope.dense_params, "flops": plan.scope.dense_flops}
    planned = {"params": plan.scope.params, "flops": plan.scope.flops}
    for name, wanted in spec.budget.limits if spec.budget else ():
        if name not in planned:
            continue
        limit = wanted if isinstance(wanted, int) else wanted * dense[name]
        if planned[name] > limit:
            raise PlanError(
                f"the given plan has {planned[name]:,} {name} in its budget's scope, the spec "
                f"allows {int(limit):,}",
                where=f"budget.{name}",
                hint="make a plan with this spec, or set the budget that the plan was made for",
            )


def _size(model: nn.Module, flops: int) -> Size:
    held = list(model.parameters())
    stored = sum(p.numel() * p.element_size() for p in held)
    return Size(sum(p.numel() for p in held), stored, flops)


def gate_of(spec: Spec, figures: dict[str, float]) -> str:
    """Say why the quality gate of a spec stops a run; empty where it does not."""
    wrong = [name for name, value in figures.items() if value != value]
    if wrong:
        return f"{wrong[0]} on held-out data is NaN: nothing can be said about the compiled model"
    if spec.quality is None:
        return ""
    name, value = next(iter(figures.items()))
    bound = spec.quality.max_error
    return "" if value <= bound else f"{name} on held-out data is {value:.4g}, above {bound:g}"


def _save(
    inputs: Inputs, compiled: Any, report: RunReport, out: Path, text: str, force: bool
) -> RunReport:
    from tnc.artifact.exporting import export
    from tnc.artifact.saving import save

    source = inputs.spec.model
    assert source is not None
    save(
        compiled,
        out,
        source=as_mapping(models, source),
        files=inputs.loaded.files,
        spec=text,
        report=report.as_json(),
        kernels=inputs.spec.kernels,
        force=force,
    )
    exports = []
    for form in inputs.spec.export:
        file = out / "exported" / EXPORTED[form]
        file.parent.mkdir(exist_ok=True)
        export(out, form, file)
        exports.append(str(file))
    write_report(out)
    return replace(report, artifact=str(out), exports=tuple(exports))


@dataclass
class Clock:
    """Progress that also keeps the seconds of each stage: a stage lasts until the next begins."""

    progress: Progress | None
    _stage: str = ""
    _since: float = 0.0
    _spent: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> tuple[tuple[str, float], ...]:
        """The seconds spent so far, by stage."""
        self._add()
        return tuple((name, round(spent, 3)) for name, spent in self._spent.items())

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Tell how far a stage is."""
        if stage != self._stage:
            self._add()
            self._stage = stage
        if self.progress:
            self.progress(stage, done, total)

    def _add(self) -> None:
        now = time.perf_counter()
        if self._stage:
            self._spent[self._stage] = self._spent.get(self._stage, 0.0) + now - self._since
        self._since = now
