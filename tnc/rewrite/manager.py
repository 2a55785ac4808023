"""The pass manager: verify, run, verify, record."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from tnc.capture.undisturbed import copied
from tnc.errors import PassError, TncError
from tnc.rewrite.contract import outputs_of
from tnc.rewrite.passes import Pass
from tnc.rewrite.subject import Subject

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Record:
    """What one pass did: seconds, edits, parameters before and after.

    `changed` names the parameters that a preparing pass made others of, with another gradient;
    what passes of the plan change are approximations of what they were.
    """

    name: str
    seconds: float
    edits: tuple[str, ...]
    params_before: int
    params_after: int
    changed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """The subject after all passes, and a record for each."""

    subject: Subject
    records: tuple[Record, ...]


class BrokenContract(PassError):
    """A pass broke its contract; `last_good` is the subject before it ran."""

    last_good: Subject | None = None


def run_passes(
    subject: Subject, pipeline: Sequence[tuple[str, Pass]], progress: Progress | None = None
) -> Outcome:
    """Run named passes one after another on a copy of the model.

    Raises BrokenContract, which names the pass, the clause and the site, and hands back the last
    good subject. The subject that was given is not touched.
    """
    current = replace(subject, model=copied(subject.model))
    records: list[Record] = []
    before = outputs_of(current.model, current.probe)
    for number, (name, step) in enumerate(pipeline):
        if progress:
            progress(f"pass {name}", number, len(pipeline))
        started, params = time.perf_counter(), count_parameters(current.model)
        good = current
        current = replace(current, model=copied(current.model))
        try:
            result = step.apply(replace(current, edits=()))
        except TncError as error:
            error.where = f"{error.where}, pass {name}" if error.where else f"pass {name}"
            raise
        after = outputs_of(result.model, result.probe)
        reason = step.contract.breach(before, after, good, result)
        if reason:
            broken = BrokenContract(
                f"pass {name} broke its contract {step.contract}: {reason}",
                where=f"pass {name}",
                hint="the model was left as it was before this pass; drop it from `passes`",
            )
            broken.last_good = good
            raise broken
        records.append(
            Record(
                name,
                time.perf_counter() - started,
                result.edits,
                params,
                count_parameters(result.model),
                _changed(good.model, result.model) if step.stage == "prepare" else (),
            )
        )
        current, before = result, after
    return Outcome(current, tuple(records))


def count_parameters(model: nn.Module) -> int:
    """Count parameter entries, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _changed(old: nn.Module, new: nn.Module) -> tuple[str, ...]:
    now = dict(new.named_parameters(remove_duplicate=False))
    return tuple(
        name
        for name, parameter in old.named_parameters(remove_duplicate=False)
        if name in now and not _same(parameter, now[name])
    )


def _same(old: nn.Parameter, new: nn.Parameter) -> bool:
    if old.shape != new.shape or old.dtype != new.dtype:
        return False
    return old is new or old.is_meta or new.is_meta or torch.equal(old, new)
