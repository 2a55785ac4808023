"""Budgets: what a spec allows, minus what the plan cannot change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import inf

from torch import nn

from tnc.decide.plan import Total
from tnc.decide.site import Site
from tnc.decide.spec import Spec
from tnc.decide.target import Target
from tnc.derive.cost import Cost
from tnc.errors import PlanError

NAMES = ("params", "flops", "bytes", "latency")


@dataclass(frozen=True)
class Budget:
    """Limits on the targets alone: `limits[name]` is what all targets in scope may cost together.

    `fixed` is what the rest of the scope costs, `dense` what the whole scope costs uncompressed.
    """

    limits: dict[str, float]
    fixed: dict[str, float]
    dense: dict[str, float]
    scope: str

    def counts(self, target: Target) -> bool:
        """Whether a target lies in the scope."""
        return in_scope(self.scope, target.sites[0])


def in_scope(scope: str, site: Site) -> bool:
    """Whether a site lies in a scope, by any of its names."""
    return any(fnmatchcase(alias, scope) for alias in site.aliases)


def budget_of(
    model: nn.Module,
    sites: Sequence[Site],
    targets: Sequence[Target],
    spec: Spec,
    seconds: dict[str, float] | None = None,
) -> Budget:
    """Turn the fractions and numbers of a spec into limits. Raises PlanError for an empty scope.

    FLOPs are those of the weights in scope on the example input; parameters and bytes are of all
    parameters in scope. `seconds` are the measured times of the targets, for a latency budget.
    """
    scope = spec.budget.scope if spec.budget else "*"
    dense = _dense(model, sites, scope)
    if not dense["params"]:
        raise PlanError(
            f"no parameter lies in the budget's scope {scope!r}",
            where="budget.scope",
            hint="scopes are patterns of parameter names, such as 'encoder.*'",
        )
    inside = [t for t in targets if in_scope(scope, t.sites[0])]
    dense["latency"] = sum(seconds[target.name] for target in inside) if seconds else 0.0
    fixed = {
        "params": dense["params"] - sum(s.cost.params for t in inside for s in t.sites),
        "flops": dense["flops"] - sum(s.cost.flops for t in inside for s in t.sites),
        "bytes": dense["bytes"] - sum(s.cost.bytes for t in inside for s in t.sites),
        "latency": 0.0,
    }
    limits = {}
    for name in NAMES:
        wanted = getattr(spec.budget, name, None) if spec.budget else None
        if wanted is not None:
            whole = wanted if isinstance(wanted, int) and wanted > 1 else wanted * dense[name]
            limits[name] = whole - fixed[name]
    return Budget(limits, fixed, dense, scope)


def cost_vector(
    cost: Cost, seconds: float, names: Sequence[str], counted: bool
) -> tuple[float, ...]:
    """Return the entries of a cost that budgets name; zero outside of the scope."""
    values = {
        "params": float(cost.params),
        "flops": float(cost.flops),
        "bytes": float(cost.bytes),
        "latency": seconds,
    }
    return tuple(values[name] if counted else 0.0 for name in names)


def totals(
    model: nn.Module,
    sites: Sequence[Site],
    scope: str,
    chosen: Sequence[tuple[Target, Cost]],
) -> Total:
    """Sum up parameters and FLOPs in a scope before and after."""
    dense = _dense(model, sites, scope)
    params, flops = dense["params"], dense["flops"]
    for target, cost in chosen:
        if in_scope(scope, target.sites[0]):
            params += cost.params - sum(site.cost.params for site in target.sites)
            flops += cost.flops - sum(site.cost.flops for site in target.sites)
    return Total(int(params), int(dense["params"]), int(flops), int(dense["flops"]))


def open_names(limits: dict[str, float], extra: str | None) -> dict[str, float]:
    """Return budgets for the solver: the limits, and an open one for a cost to minimise."""
    return limits if extra is None or extra in limits else {**limits, extra: inf}


def _dense(model: nn.Module, sites: Sequence[Site], scope: str) -> dict[str, float]:
    params, size, seen = 0, 0, set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if fnmatchcase(name, scope) and id(parameter) not in seen:
            seen.add(id(parameter))
            params += parameter.numel()
            size += parameter.numel() * parameter.element_size()
    flops = sum(site.cost.flops for site in sites if in_scope(scope, site))
    return {"params": float(params), "flops": float(flops), "bytes": float(size)}
