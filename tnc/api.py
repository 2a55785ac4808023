"""The compile-a-model API: capture, measure, plan, compile, densify.

Models are run by plain kernels here: what is decided does not depend on the machine.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from tnc.artifact.loading import guard_saving_
from tnc.artifact.modules import classes_of
from tnc.capture import Measurements, Trace, capture
from tnc.capture import measure as _measure
from tnc.capture.batches import batches_of
from tnc.decide.plan import Plan
from tnc.decide.spec import Spec
from tnc.errors import PlanError
from tnc.nn.adapted import refusal
from tnc.nn.generated import plain_kernels
from tnc.planner import Evaluator
from tnc.planner.preparing import Example, Progress, example_of, prepare
from tnc.rewrite import Compiled, run_passes

__all__ = [
    "Compiled",
    "compensate",
    "compile",
    "densify",
    "measure",
    "plan",
    "trace",
]


@plain_kernels()
def trace(model: nn.Module, *args: Any, **kwargs: Any) -> Trace:
    """Trace a model on an example input and list the weights that could be rewritten.

    >>> import torch, tnc
    >>> found = tnc.trace(torch.nn.Linear(8, 4), torch.ones(2, 8))
    >>> [(site.path, site.op, str(site.signature)) for site in found.sites]
    [('weight', 'linear', '4 <- 8')]
    """
    return capture(model, args, kwargs)


@plain_kernels()
def measure(
    model: nn.Module,
    trace: Trace,
    batches: Iterable[Any],
    evaluation: Evaluator | None = None,
    progress: Progress | None = None,
) -> Measurements:
    """Stream calibration batches through a model and keep the second moments of every site.

    With an `evaluation` also the weights of every layer's output in the model's features.
    """
    return _measure(
        model,
        trace.sites,
        batches,
        gradients=evaluation.probe if evaluation is not None else None,
        progress=progress,
    )


@plain_kernels()
def plan(
    model: nn.Module,
    spec: Spec,
    *,
    example: Example | Tensor | None = None,
    calibration: Iterable[Any] | None = None,
    evaluation: Evaluator | None = None,
    locations: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Decide what every weight of a model becomes; the model is not touched.

    `example` is one input: a tensor, or (args, kwargs); the first calibration batch serves where it
    is not given. `calibration` is an iterable of batches (a mapping is keyword arguments, a tuple
    positional ones). Raises PlanError, InfeasibleBudget, CaptureError.
    """
    work = prepare(model, spec, example, calibration, evaluation, locations, progress)
    return work.plan


@plain_kernels()
def compile(
    model: nn.Module,
    spec: Spec,
    *,
    plan: Plan | None = None,
    example: Example | Tensor | None = None,
    calibration: Iterable[Any] | None = None,
    evaluation: Evaluator | None = None,
    locations: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Compiled:
    """Return a compiled copy of a model; the model that is given stays as it is.

    With a `plan`, exactly that plan is carried out; it must carry the model's fingerprint. Without,
    one is made from the spec. Further arguments as for `plan`.

    >>> import torch, tnc
    >>> net = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))
    >>> spec = tnc.Spec(version=1, rules=[{"match": "0", "structure": "low-rank", "keep": 0.5}])
    >>> made = tnc.compile(net, spec, example=torch.ones(4, 32))
    >>> made.model[0].structure.shapes
    {'B': (32, 8), 'A': (8, 32)}
    """
    work = prepare(model, spec, example, calibration, evaluation, locations, progress, plan)
    steps = [(name, step) for name, step in work.passes if step.stage == "apply"]
    outcome = run_passes(
        replace(work.subject, plan=work.plan, original=work.subject.model), steps, progress
    )
    done = outcome.subject
    guard_saving_(done.model)
    return Compiled(
        done.model,
        work.plan,
        done.trace,
        work.records + outcome.records,
        done.reparams,
        done.probe,
        classes_of(model),
        done.measurements,
    )


@plain_kernels()
def compensate(
    model: nn.Module,
    original: nn.Module,
    calibration: Iterable[Any],
    *,
    rank: int = 16,
    match: Sequence[str] = ("*",),
    example: Example | Tensor | None = None,
) -> Compiled:
    """Give a model that another tool pruned or rounded low-rank branches for what it lost.

    `model` and `original` have the same modules; the weights of `model` are kept, frozen, and each
    linear one that differs gets `B A` of `rank`, the best for its inputs on `calibration` (EoRA:
    Liu et al., 2024). Structures of tnc have this within a plan's budget: `X + low-rank`. The
    result is saved, verified and loaded as any compiled model, with `model` as its source.

    >>> import torch, tnc
    >>> original = torch.nn.Sequential(torch.nn.Linear(16, 16))
    >>> pruned = torch.nn.Sequential(torch.nn.Linear(16, 16))
    >>> rounded = {name: v.round(decimals=1) for name, v in original.state_dict().items()}
    >>> _ = pruned.load_state_dict(rounded)
    >>> made = tnc.compensate(pruned, original, [torch.randn(64, 16)], rank=2)
    >>> made.model[0].structure.shapes
    {'W': (16, 16), 'B': (16, 2), 'A': (2, 16)}
    """
    from tnc.rewrite.compensating import compensate as run

    if rank < 1:
        raise PlanError(f"rank is {rank}", hint="a branch has a rank of 1 or more")
    batches = batches_of(calibration)
    probe = example_of(example, batches)
    return run(model, original, batches, probe, rank, tuple(match), classes_of(model))


def densify(model: nn.Module) -> nn.Module:
    """Return a copy of a model with every structured layer rebuilt as the library's dense layer.

    Raises PlanError for a model with adapters.
    """
    from tnc.passes.densify import densify_

    reason = refusal(model, "a model with adapters is not made dense")
    if reason:
        raise PlanError(
            reason,
            where="model",
            hint="tnc.adapters.of(model).unload() merges them, or leaves them out (merge=False)",
        )
    dense = copy.deepcopy(model)
    densify_(dense)
    guard_saving_(dense, False)
    return dense
