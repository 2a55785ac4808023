"""Carry out what a spec asks of adapters: load, attach, train, measure, save."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tnc.artifact.foreign import adapters_in
from tnc.decide.adapter_plan import AdapterPlan
from tnc.decide.options import build
from tnc.decide.spec import Resolved, Spec
from tnc.errors import ArtifactError, CaptureError, PlanError
from tnc.inputs import Inputs, load
from tnc.recipe import Clock, Progress, compare, distill_on, distillation_folder, gate_of
from tnc.registry import normalise
from tnc.report.adapt_report import AdaptReport, Figures, ForPeft
from tnc.report.environment import environment
from tnc.sources import Loaded, models
from tnc.sources.outputs import labels_of
from tnc.sources.source import as_call, count

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tnc.adapters import Adapters
    from tnc.distilling import Distilled


BASES = "give an artifact's folder, a folder of transformers, or a source such as hf{path=...}"


@dataclass(frozen=True)
class PeftForm:
    """Where adapters are written for PEFT, and how: see `tnc.adapters.export_peft`.

    Several adapters get a folder each in `folder`.
    """

    folder: Path
    rank: int | None = None
    energy: float | None = None
    out_proj_times: int | None = None

    def place(self, name: str, several: int) -> Path:
        """Return the folder of one of several adapters."""
        return self.folder if several == 1 else self.folder / name


@dataclass(frozen=True, eq=False)
class Subject:
    """What is adapted: what the spec's sources gave, the base model, and how it is called."""

    inputs: Inputs
    base: nn.Module
    told: str

    @property
    def compressed(self) -> bool:
        """Whether the base is another model than the original."""
        return self.base is not self.inputs.loaded.model

    @property
    def given(self) -> dict[str, Any]:
        """The keyword arguments of `tnc.adapt` and `tnc.adapters.plan`."""
        given = self.inputs.given
        return {
            "example": given["example"],
            "calibration": given["calibration"],
            "loss": self.loss,
            "original": self.inputs.loaded.model if self.compressed else None,
        }

    def loss(self, output: Any, batch: Any) -> Tensor:
        """Return what starts and budgets take gradients of.

        On another base than the original it is the evaluation's distance from the original's
        answers. Else it is the loss that the model's output carries, or minus the log-likelihood of
        the batch's labels where the evaluation has one.
        """
        import torch

        evaluation = self.inputs.evaluation
        if self.compressed:
            args, kwargs = as_call(batch)
            with torch.no_grad():
                answer = evaluation.features(self.inputs.loaded.model(*args, **kwargs), batch)
            features = evaluation.features(output, batch)
            return evaluation.loss(features.to(answer.dtype), answer)
        likelihood = getattr(evaluation, "likelihood", None)
        if getattr(output, "loss", None) is None and likelihood and labels_of(batch) is not None:
            found: Tensor = -likelihood(output, batch, torch.Generator()) / count(batch)
            return found
        from tnc.adapters.calibration import output_loss

        try:
            return output_loss(output, batch)
        except CaptureError:
            raise PlanError(
                "gradients are asked for, and there is no loss: the model's output carries none, "
                f"and {self._unlike(batch)}",
                where="calibration",
                hint="name the labels of the data (npz has `labels`) with `evaluation: logits`; or "
                "give --base, whose loss is the distance from the original; or take a method that "
                "starts without gradients, such as lora, with a rank instead of a budget",
            ) from None

    def _unlike(self, batch: Any) -> str:
        """Say why labels give no loss."""
        if labels_of(batch) is None:
            return "the data has no labels"
        return f"the evaluation {type(self.inputs.evaluation).__name__} has no likelihood of labels"


def subject_of(resolved: Resolved, base: str = "") -> Subject:
    """Load what a spec names, and the base: an artifact's folder, or a model source as text.

    Raises SourceError, ArtifactError, and PlanError where the spec's own rules make the base.
    """
    spec = resolved.spec
    inputs = load(spec)
    original = inputs.loaded.model
    if base:
        return Subject(inputs, load_base(base, original).model, base)
    if spec.rules:
        raise PlanError(
            "the spec compresses its model by `rules`, and adapters come after that",
            where=resolved.locations.get("rules", "rules"),
            hint="`tnc compile SPEC --out BASE`, then give --base BASE; or drop the rules",
        )
    return Subject(inputs, original, "the original")


def load_base(text: str, original: nn.Module | None = None) -> Loaded:
    """Load a base: an artifact, a folder of transformers, or a model source in its text form.

    An artifact whose source is not said is put into a copy of `original`. Raises ArtifactError and
    SourceError.
    """
    path = Path(text)
    if path.is_dir() and (path / "tnc.json").is_file():
        from tnc.artifact import load as load_artifact

        return Loaded(load_artifact(path, original, check=True))
    if path.is_dir() and (path / "config.json").is_file():
        return build(models, {"kind": "hf", "path": str(path)}).load()
    held = adapters_in(path)
    if path.exists():
        raise ArtifactError(
            f"{path} holds {held}" if held else f"{path} holds no model",
            where="the base",
            hint=f"{BASES}; the adapters of a merge come after it" if held else BASES,
        )
    if "{" not in text and normalise(text) not in models.all():
        raise ArtifactError(
            f"there is no folder {text}, and no model source of that name",
            where="the base",
            hint=f"{BASES}; sources are {', '.join(models.all())}",
        )
    return build(models, text).load()


def plan(resolved: Resolved, base: str = "") -> AdapterPlan:
    """Say what `run` would attach; nothing is trained or written.

    A spec with rules and no base is planned on its original model, and a note says so.
    """
    from tnc import adapters

    spec = resolved.spec
    notes: tuple[str, ...] = ()
    if spec.rules and not base:
        resolved = replace(resolved, spec=without_rules(spec))
        notes = ("planned beside the original's weights; --base BASE plans beside compiled ones",)
    subject = subject_of(resolved, base)
    found = adapters.plan(
        subject.base, resolved.spec, locations=resolved.locations, **subject.given
    )
    return replace(found, notes=notes)


def without_rules(spec: Spec) -> Spec:
    """Return a spec that asks for adapters alone."""
    return spec.model_copy(update={"rules": ()})


def run(
    resolved: Resolved,
    out: Path | None = None,
    base: str = "",
    progress: Progress | None = None,
    *,
    force: bool = False,
    peft: PeftForm | None = None,
) -> AdaptReport:
    """Attach the adapters of a spec, train them where it says `distill`, write them to `out`.

    With `peft` they are written for PEFT too; what PEFT has no form for is refused before anything
    is trained.

    Training lets the adapters, and what is trained beside them, answer as the original does; a
    checkpoint beside `out` lets it go on after an interruption. When the figure on held-out data
    exceeds the spec's quality gate, the report says so in `gate` and nothing is written.
    """
    import tnc
    from tnc import adapters
    from tnc.adapters import storing

    spec, clock = resolved.spec, Clock(progress)
    if peft is not None:
        _check_peft(spec, peft, force)
    clock("load", 0, 1)
    subject = subject_of(resolved, base)
    inputs = subject.inputs
    _check(resolved, subject)
    given = subject.given | {"locations": resolved.locations}
    clock("plan", 0, 1)
    decided = adapters.plan(subject.base, spec, **given)
    before = _figures(inputs, subject.base, clock)
    clock("adapt", 0, 1)
    made = tnc.adapt(subject.base, spec, progress=clock, **given)
    if peft is not None:
        with TemporaryDirectory() as place:
            _for_peft(made, replace(peft, folder=Path(place)), force)
    attached = _figures(inputs, made.model, clock)
    done = _trained(inputs, made, out, clock)
    trained: Figures = ()
    if done is not None:
        made = adapters.of(done.model)
        trained = _figures(inputs, made.model, clock)
    clock("save", 0, 1)
    report = AdaptReport(
        plan=decided,
        base=subject.told,
        before=before,
        attached=attached,
        trained=trained,
        held_out=sum(map(count, inputs.held_out)),
        seconds=clock.seconds,
        spec=resolved.digest,
        steps=done.steps if done else 0,
        events=done.events if done else 0,
        gate=gate_of(spec, dict(trained or attached)),
        environment=environment(),
    )
    if peft is not None and not report.gate:
        report = replace(report, peft=_for_peft(made, peft, force))
    if out is None or report.gate:
        return report
    report = replace(report, folder=str(out))
    example = inputs.given["example"]
    storing.save(made, out, probe=example, spec=resolved.text, report=report.as_json(), force=force)
    shutil.rmtree(distillation_folder(out), ignore_errors=True)
    return replace(report, seconds=clock.seconds)


def _for_peft(made: Adapters, form: PeftForm, force: bool) -> tuple[ForPeft, ...]:
    """Write every adapter for PEFT."""
    from tnc.adapters import export_peft

    found = []
    for name in made.names:
        place = form.place(name, len(made.names))
        written = export_peft(
            made,
            place,
            name,
            rank=form.rank,
            energy=form.energy,
            out_proj_times=form.out_proj_times,
            force=force,
        )
        found.append(ForPeft(name, str(place), len(written.rows), written.error, written.notes))
    return tuple(found)


def _check_peft(spec: Spec, form: PeftForm, force: bool) -> None:
    """Refuse before the training what writing for PEFT would refuse after it."""
    from tnc.adapters.converting import check_asked
    from tnc.adapters.peft.checkpoint import check_free

    check_asked(form.rank, form.energy)
    names = [adapter.name for adapter in spec.adapters or ()]
    for name in names:
        check_free(form.place(name, len(names)), force)


def _check(resolved: Resolved, subject: Subject) -> None:
    """Raise PlanError for what the spec asks and the inputs do not allow, before any work."""
    spec, places = resolved.spec, resolved.locations
    if spec.quality and not subject.inputs.held_out:
        raise PlanError(
            "the quality gate needs held-out data",
            where=places.get("quality", "quality"),
            hint="add calibration data to the spec, or drop `quality`",
        )
    if spec.distill and not subject.compressed:
        raise PlanError(
            "`distill` trains adapters to answer as the original does, which the base does already",
            where=places.get("distill", "distill"),
            hint="give --base, a compiled model of it; or drop `distill`, and train in Python",
        )


def _figures(inputs: Inputs, model: nn.Module, progress: Callable[..., None]) -> Figures:
    return tuple(compare(inputs, model, progress).items())


def _trained(
    inputs: Inputs, made: Adapters, out: Path | None, progress: Progress
) -> Distilled | None:
    """Train the adapters alone where the spec says so, with a checkpoint beside the folder."""
    settings = inputs.spec.distill
    if settings is None:
        return None
    place = distillation_folder(out) if out is not None else None
    return distill_on(inputs, made.model, settings, place, progress)
