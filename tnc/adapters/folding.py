"""Fold adapters into a compiled model: a compiled model again, with a plan that tells of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from math import nan

from torch import nn

from tnc.adapters.adapters import Adapters
from tnc.adapters.storing import outside_of
from tnc.decide.plan import Entry, Plan
from tnc.derive.cost import Work, cost, dense_cost
from tnc.derive.dense import dense
from tnc.errors import PlanError
from tnc.net import Structure
from tnc.nn import StructuredLayer
from tnc.nn.rebuilt import SUFFIX
from tnc.rewrite import Compiled
from tnc.rewrite.reparam import Reparam


def folded(made: Compiled, adapters: Adapters) -> Compiled:
    """Return a compiled model that has what the adapters in use add to it, for `tnc.save`.

    `adapters` are those of `made.model`; they stay as they are, and so does it. Structured weights
    become sums of networks, and the plan has their parameters and FLOPs. The errors of changed
    weights are not known any more: None in the plan, NaN in `reparams`. What `made` trains is
    trained, and so are the new cores. Memory is shared where nothing changed. Raises PlanError
    where no adapter is in use, where they are those of another model, and as `Adapters.unload`.

    >>> import torch, tnc
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
    >>> spec = tnc.Spec(version=1, rules=[{"match": "*", "structure": "low-rank", "keep": 0.5}])
    >>> made = tnc.compile(net, spec, example=torch.ones(1, 8))
    >>> tuned = tnc.adapt(made.model, "lora{rank=1}", example=torch.ones(1, 8))
    >>> whole = tnc.adapters.folded(made, tuned)
    >>> made.plan.total.params, whole.plan.total.params
    (40, 56)
    """
    used = tuple(adapters.active)
    if not used:
        held = adapters.names
        raise PlanError(
            "none of the adapters is in use" if held else "the model has no adapters",
            where="adapters",
            hint=f"switch to one: adapters.use({held[0]!r})" if held else "tnc.adapt adds some",
        )
    _check(made.model, adapters)
    weights = changed_by(adapters)
    trained = {name: p.requires_grad for name, p in made.model.named_parameters()}
    model = adapters.unloaded()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained.get(name, True))
    plan = folded_plan(made.plan, model, weights, f"merged with {', '.join(used)}")
    reparams = tuple(_followed(model, each, weights) for each in made.reparams)
    return replace(made, model=model, plan=plan, reparams=reparams)


def changed_by(adapters: Adapters) -> set[str]:
    """Return the names of the weights that adapters in use change, or that are trained beside
    them; of tied weights all."""
    changed = {
        alias
        for name in adapters.active
        for delta in adapters.deltas(name).values()
        for alias in delta.site.aliases
    }
    for name, tensor in outside_of(adapters.model).items():
        if tensor.requires_grad:
            layer, cores, _ = name.rpartition("cores.")
            changed.add(f"{layer}weight" if cores else name)
    return {_planned(name) for name in changed}


def _planned(name: str) -> str:
    """Return how a plan names a weight: of a rebuilt one, as the code that reads it does."""
    layer = name.removesuffix(".weight")
    return layer.removesuffix(SUFFIX) if layer.endswith(SUFFIX) else name


def _check(base: nn.Module, adapters: Adapters) -> None:
    mine, theirs = outside_of(base), outside_of(adapters.model)
    wrong = sorted(
        name
        for name in {*mine, *theirs}
        if name not in mine or name not in theirs or mine[name].shape != theirs[name].shape
    )
    if wrong:
        raise PlanError(
            "the adapters are those of another model than the compiled one",
            where=wrong[0],
            hint="give adapters of the compiled model itself: tnc.adapt(made.model, ...)",
        )


def folded_plan(plan: Plan, model: nn.Module, weights: Iterable[str], reason: str) -> Plan:
    """Return a compiled model's plan as it is once adapters are merged into the model.

    `model` is merged, `weights` name those that changed. Entries have the structures, parameters
    and FLOPs of now, and no error where their weight changed. Raises PlanError where a weight that
    the plan gives a structure has none.
    """
    touched = set(weights)
    entries = tuple(
        _entry(model, entry, reason) if touched & set(entry.members) else entry
        for entry in plan.entries
    )
    flops = sum(entry.flops for entry in entries) - sum(entry.flops for entry in plan.entries)
    params = sum(entry.params for entry in entries) - sum(entry.params for entry in plan.entries)
    count = sum(parameter.numel() for parameter in model.parameters())
    scope = replace(plan.scope, params=plan.scope.params + params, flops=plan.scope.flops + flops)
    total = replace(plan.total, params=count, flops=plan.total.flops + flops)
    notes = (*plan.notes, reason)
    return replace(plan, entries=entries, total=total, scope=scope, notes=notes)


def _entry(model: nn.Module, entry: Entry, reason: str) -> Entry:
    told = replace(
        entry,
        error=None,
        relative=None,
        reason=f"{reason}, its error is not known since; compiled because {entry.reason}",
    )
    if entry.structure is None:
        return told
    layers = [_layer(model, member) for member in entry.members]
    cores = {id(core): core.numel() for layer in layers for core in layer.cores.values()}
    params, flops = sum(cores.values()), _flops(entry, layers)
    if len(layers) > 1:
        return replace(told, params=params, flops=flops)
    return replace(told, structure=layers[0].structure, params=params, flops=flops)


def _layer(model: nn.Module, name: str) -> StructuredLayer:
    """Return the layer that stands for a weight. Raises PlanError where there is none."""
    path, _, attribute = name.rpartition(".")
    try:
        owner = model.get_submodule(path)
        found = owner if attribute == "weight" else owner._modules.get(attribute + SUFFIX)
    except AttributeError:
        found = None
    if isinstance(found, StructuredLayer):
        return found
    raise PlanError(
        f"the plan gives {name} a structure, but the model with the adapters has none there",
        where=name,
        hint="give adapters of the compiled model itself: tnc.adapt(made.model, ...)",
    )


def _flops(entry: Entry, layers: list[StructuredLayer]) -> int:
    """Return the FLOPs of an entry's layers, in proportion to those that it was planned with.

    What layers with a common input share is counted for each of them.
    """
    assert entry.structure is not None
    work = _work(entry, layers[0])
    if len(layers) > 1:
        return sum(_called(layer.structure, work) for layer in layers)
    rebuilt = _rebuilt(entry.structure, work) == entry.flops
    ways: Callable[[Structure, Work], int] = _rebuilt if rebuilt else _called
    before, now = ways(entry.structure, work), ways(layers[0].structure, work)
    return round(entry.flops * now / before) if before else now


def _work(entry: Entry, layer: StructuredLayer) -> Work:
    """Return what a weight does for the example input, read off its dense FLOPs; of a table, for
    one row."""
    view = layer.view
    is_complex = next(iter(layer.cores.values())).is_complex()
    if view.name == "conv":
        turned = bool(view.transposed)  # type: ignore[attr-defined]
        groups, rows = view.groups, view.pixels_out  # type: ignore[attr-defined]
        return Work("conv", rows, view.pixels_in, groups, turned, is_complex)  # type: ignore[attr-defined]
    if not entry.dense_flops:
        return Work("embedding", complex=is_complex)
    op = {"stack": "experts", "stored": "spectral"}.get(view.name, "linear")
    rows = entry.dense_flops // (entry.dense_params * (8 if is_complex else 2))
    return Work(op, max(1, rows), complex=is_complex)


def _called(structure: Structure, work: Work) -> int:
    return cost(structure, work).flops


def _rebuilt(structure: Structure, work: Work) -> int:
    """Count rebuilding the weight for code that reads it, and applying it."""
    made = sum(dense(term).order.flops for term in structure.terms) * work.factor
    return dense_cost(structure.signature, work).flops + made


def _followed(model: nn.Module, reparam: Reparam, weights: set[str]) -> Reparam:
    if not weights & set(reparam.old):
        return reparam
    path = reparam.new[0][1].rpartition("cores.")[0]
    layer = model.get_submodule(path.removesuffix("."))
    assert isinstance(layer, StructuredLayer)
    new = tuple((name, f"{path}cores.{name}") for name in layer.cores)
    return replace(
        reparam,
        structure=layer.structure,
        new=new,
        residual=nan,
        promised=nan,
        plain=nan,
        note="; ".join(filter(None, (reparam.note, "adapters were merged into it"))),
    )
