"""Train a compressed model on its original's answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tnc.capture.batches import call
from tnc.capture.undisturbed import copied
from tnc.decide.spec_parts import Distill
from tnc.distilling import checkpoint
from tnc.distilling.answers import Answers
from tnc.distilling.attending import Attended, has_adapters
from tnc.distilling.checkpoint import Position
from tnc.distilling.matching import inner_distance, matched_paths, recorded
from tnc.distilling.schedule import freeze_, parameter_groups, progress, rate_factor
from tnc.errors import FitError, Interrupted, PlanError
from tnc.interrupts import deferred
from tnc.optim.building import assemble
from tnc.sources import Evaluation, evaluations

Stream = Callable[[int], Iterable[Any]]
"""The batches of an epoch, by its number; the same number gives the same batches."""

Report = Callable[[str, int, int], None]
SAVE_SECONDS = 30.0
NORMS = (nn.modules.batchnorm._BatchNorm,)


@dataclass(frozen=True)
class Distilled:
    """A model after distillation, with the steps, seconds and the last mean loss.

    `events` counts what the methods of its adapters did to their deltas on the way.
    """

    model: nn.Module
    steps: int
    epochs: int
    seconds: float
    loss: float
    events: int = 0

    def __str__(self) -> str:
        return f"{self.steps} steps in {self.seconds:.0f} s, loss {self.loss:.4g}"


def distill(
    model: nn.Module,
    teacher: nn.Module,
    data: Sequence[Any] | Stream,
    settings: Distill | None = None,
    *,
    evaluation: Evaluation | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: Report | None = None,
    **options: Any,
) -> Distilled:
    """Train a copy of `model` to answer as `teacher` does; neither of the two is changed.

    First every block is matched to the teacher's (`layerwise` of the run), then the loss is the
    `evaluation`'s distance of the outputs plus `blocks` times the blocks' distance. `data` are
    batches, or a function of the epoch's number that returns some; with `blocks` 0 the teacher is
    asked only once about each batch of a list. Frozen parameters stay as they are. Of a model with
    adapters these alone are trained, with what their methods do in training; batch norms are then
    fixed. `options` are the fields of `Distill`: minutes, steps, rate, temperature and so on.

    With a `checkpoint` folder the run can be killed at any time and goes on from there when called
    again with the same arguments; with `steps` the result is the same to the bit. SIGINT and
    SIGTERM end it after the step, with a checkpoint. Raises Interrupted, ArtifactError for a
    checkpoint of another run, FitError when the loss is no longer finite, PlanError without data.

    >>> import torch, tnc
    >>> net = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    >>> spec = tnc.Spec(version=1, rules=[{"match": "*", "structure": "low-rank", "keep": 0.5}])
    >>> small = tnc.compile(net, spec, example=torch.ones(2, 16)).model
    >>> tnc.distill(small, net, [torch.randn(32, 16)], steps=5).steps
    5
    """
    chosen = settings or Distill.of(**options)
    if settings is not None and options:
        chosen = Distill.of(**(settings.model_dump(exclude_none=True) | options))
    held = () if callable(data) else tuple(data)
    stream = data if callable(data) else _shuffled(held, seed)
    run = _Run(model, teacher, stream, chosen, evaluation, seed, progress, held)
    return run.go(Path(checkpoint) if checkpoint is not None else None)


def _shuffled(held: Sequence[Any], seed: int) -> Stream:
    """Return the batches in an order of their own for every epoch. Raises PlanError."""
    if not held:
        raise PlanError("there is no batch to distill on", hint="give at least one batch")

    def epoch(number: int) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        for place in torch.randperm(len(held), generator=generator).tolist():
            yield held[place]

    return epoch


class _Run:
    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        stream: Stream,
        settings: Distill,
        evaluation: Evaluation | None,
        seed: int,
        report: Report | None,
        held: Sequence[Any],
    ) -> None:
        self.settings, self.stream, self.report = settings, stream, report
        self.evaluation = evaluation or evaluations.get("output")()
        described = settings.model_dump(mode="json", exclude={"data"})
        described |= {"seed": seed, "evaluation": repr(self.evaluation)}
        self.identity = checkpoint.identity(described, model, teacher)
        self.student, self.teacher = copied(model), copied(teacher).eval()
        self.modes = [module.training for module in model.modules()]
        self.teacher.requires_grad_(False)
        self.student.eval()
        if settings.batch_norm == "train" and not has_adapters(model):
            for module in self.student.modules():
                module.training = isinstance(module, NORMS)
        self.learning = {n: p.requires_grad for n, p in self.student.named_parameters()}
        freeze_(self.student, settings.freeze)
        self.optimizer = assemble(self.student, parameter_groups(self.student, settings))
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.attended = Attended(self.student, self.optimizer, seed)
        self.paths = matched_paths(self.student, self.teacher, settings.match)
        self.answers = Answers(self._asked, held)
        self.position, self.mark = Position(), 0.0

    def go(self, folder: Path | None) -> Distilled:
        """Train until the limit is reached."""
        if folder is not None:
            self._resume(folder)
        saved, self.mark = time.monotonic(), time.perf_counter()
        with deferred() as interrupted:
            while self._share() < 1:
                used = self.position.batch
                for number, batch in enumerate(self.stream(self.position.epoch)):
                    if number < used:
                        self.mark = time.perf_counter()
                        continue
                    self._timed_step(batch, number)
                    if folder is not None and time.monotonic() - saved > SAVE_SECONDS:
                        self._save(folder)
                        saved = time.monotonic()
                    if interrupted():
                        self._interrupt(folder)
                    if self._share() >= 1:
                        break
                else:
                    if not self.position.batch:
                        raise PlanError(f"epoch {self.position.epoch} has no batch to distill on")
                    self.position = replace(self.position, epoch=self.position.epoch + 1, batch=0)
            if folder is not None:
                self._save(folder)
        return self._result()

    def _share(self) -> float:
        return progress(self.settings, self.position)

    def _timed_step(self, batch: Any, number: int) -> None:
        loss = self._step(batch)
        old = self.position
        mean = loss if old.loss != old.loss else 0.98 * old.loss + 0.02 * loss
        now = time.perf_counter()
        spent, self.mark = old.seconds + now - self.mark, now
        self.position = replace(old, step=old.step + 1, batch=number + 1, seconds=spent, loss=mean)
        if self.report:
            self.report("distill", round(1000 * self._share()), 1000)

    def _step(self, batch: Any) -> float:
        done, settings = self._share(), self.settings
        factor = rate_factor(settings, done)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * factor
        layerwise = done < settings.layerwise
        watched = self.paths if layerwise or settings.blocks > 0 else []
        with recorded(self.teacher, watched) as theirs:
            answer = self._asked(batch) if watched else self.answers(batch)
        with recorded(self.student, watched) as mine, self._precision():
            output = call(self.student, batch)
        loss = torch.zeros(()) if not watched else inner_distance(mine, theirs, batch)
        if not layerwise or not watched:
            features = self.evaluation.features(output, batch)
            outer = self.evaluation.loss(features.to(answer.dtype), answer, settings.temperature)
            loss = outer + settings.blocks * loss
        value = float(loss.detach())
        if value != value or value == float("inf"):
            raise FitError(
                f"the loss is {value} after {self.position.step} steps of distillation",
                hint=f"lower distill.rate (now {settings.rate:g}) or distill.clip",
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if settings.clip:
            nn.utils.clip_grad_norm_(self.trained, settings.clip)
        self.optimizer.step()
        return value

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """Call the student in the asked precision.

        On a CPU attention then takes the products of its equation: the gradient of torch's fused
        one in bfloat16 has no fast path (315 ms against 33 in float32, torch 2.13).
        """
        if self.settings.precision == "float32":
            yield
            return
        kind = next(iter(self.trained)).device.type
        attention = sdpa_kernel(SDPBackend.MATH) if kind == "cpu" else nullcontext()
        with torch.autocast(kind, torch.bfloat16), attention:
            yield

    @torch.no_grad()
    def _asked(self, batch: Any) -> Tensor:
        return self.evaluation.features(call(self.teacher, batch), batch)

    def _tensors(self) -> dict[str, Tensor]:
        found = {f"model.{k}": v for k, v in _state(self.student).items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    found[f"optimizer.{index}.{key}"] = value
                elif value is not None:
                    found[f"number.{index}.{key}"] = torch.tensor(value, dtype=_exact(value))
        return found | self.attended.tensors()

    def _save(self, folder: Path) -> None:
        checkpoint.write(folder, self.identity, self.position, self._tensors())

    def _resume(self, folder: Path) -> None:
        found = checkpoint.read(folder, self.identity)
        if found is None:
            return
        self.position, tensors = found
        with torch.no_grad():
            for name, tensor in _state(self.student).items():
                tensor.copy_(tensors[f"model.{name}"])
        state: dict[int, dict[str, Any]] = {}
        for name, tensor in tensors.items():
            if name.startswith(("optimizer.", "number.")):
                kind, index, key = name.split(".", 2)
                value = tensor if kind == "optimizer" else tensor.item()
                state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        self.attended.resume(tensors)

    def _interrupt(self, folder: Path | None) -> None:
        step = self.position.step
        if folder is None:
            raise Interrupted(
                f"interrupted after {step} steps of distillation; nothing was kept",
                hint="give a checkpoint folder, then a run can be resumed",
            )
        self._save(folder)
        raise Interrupted(
            f"interrupted after {step} steps of distillation",
            where=str(folder),
            hint="run the same again: it goes on from its checkpoint",
        )

    def _result(self) -> Distilled:
        self.attended.close()
        for module, training in zip(self.student.modules(), self.modes):
            module.training = training
        for name, parameter in self.student.named_parameters():
            parameter.requires_grad_(self.learning[name])
        place = self.position
        told = place.step, place.epoch, place.seconds, place.loss
        return Distilled(self.student, *told, self.attended.events)


def _exact(number: bool | int | float) -> torch.dtype:
    if isinstance(number, bool):
        return torch.bool
    return torch.int64 if isinstance(number, int) else torch.float64


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer once, tied ones under their first name."""
    return dict(model.named_parameters()) | dict(model.named_buffers())
