"""What a report says by itself: budgets met or not, warnings, differences between runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tnc.decide.plan import Plan
from tnc.report.subject import Reported


def budget_rows(plan: Plan) -> list[dict[str, Any]]:
    """Return each budget with its limit, what the plan uses of it, and the dense value.

    `used` is None where a plan does not tell (bytes, latency).
    """
    rows = []
    for name, limit in plan.budgets:
        known = name in ("params", "flops")
        rows.append(
            {
                "name": name,
                "limit": limit,
                "used": getattr(plan.scope, name) if known else None,
                "dense": getattr(plan.scope, f"dense_{name}") if known else None,
            }
        )
    return rows


def gate_of(spec: str) -> float | None:
    """Return the quality gate of a resolved spec; None where it has none."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        gate = YAML(typ="safe").load(spec)["quality"]["max_error"]
        return float(gate)
    except (YAMLError, KeyError, TypeError, ValueError):
        return None


def warnings_of(one: Reported) -> Iterator[str]:
    """Yield what a reader should know before trusting the figures."""
    plan, metrics = one.plan, one.metrics
    for row in budget_rows(plan):
        if row["used"] is not None and row["used"] > row["limit"]:
            used, limit = f"{row['used']:,} {row['name']}", f"{row['limit']:,.0f}"
            yield f"The plan uses {used}, above the {limit} allowed."
    if metrics.get("gate"):
        yield f"The quality gate stopped the run: {metrics['gate']}."
    for timing in metrics.get("timings", ()):
        if timing.get("unreliable"):
            yield f"Times at batch {timing['batch']} are unreliable: {timing['unreliable']}."
        if timing["after"] > timing["before"]:
            slower = timing["after"] / timing["before"]
            yield (
                f"At batch {timing['batch']} the compiled model is {slower:.2f} times slower than "
                "the dense one, although it is smaller."
            )
    if plan.total.flops > plan.total.dense_flops:
        yield "FLOPs rise although parameters fall: the structures share parameters."
    if one.artifact and not metrics.get("timings"):
        yield "Latency was not measured."
    if one.artifact and not metrics.get("figures"):
        yield "Quality was not measured: there was no held-out data."
    if plan.entries and all(entry.kept for entry in plan.entries):
        yield "Every layer stays dense: nothing was compressed."
    if not plan.background.curves and plan.entries:
        yield "The plan holds no error curves: it was made by an earlier version, or by hand."


def differences(reported: Sequence[Reported]) -> Iterator[str]:
    """Yield why runs cannot be compared without care."""
    if len(reported) < 2:
        return
    if len({one.plan.fingerprint for one in reported}) > 1:
        yield "The runs are of different models: their fingerprints differ."
    measured = [dict(one.metrics.get("environment", {})) for one in reported]
    for name in ("machine", "processor", "cores", "threads", "torch"):
        if len({found.get(name) for found in measured if found}) > 1:
            yield f"Latencies were measured under another {name}: they do not compare."
    figures = [tuple(one.metrics.get("figures", {})) for one in reported]
    if len({names for names in figures if names}) > 1:
        yield "Quality was evaluated by different figures."
    held = {one.metrics["held_out"] for one in reported if one.metrics.get("held_out")}
    if len(held) > 1:
        yield "Quality was evaluated on different numbers of held-out samples."
