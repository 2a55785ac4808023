"""Tables about adapters for the terminal: what is decided, what a run and a merge found."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from tnc.decide.adapter_plan import AdapterPlan
from tnc.report.adapt_report import AdaptReport, MergeReport
from tnc.report.table import table_of


def adapter_tables(plan: AdapterPlan) -> RenderableType:
    """Return which weight gets which delta, what is left alone and why, and the sums."""
    several = len(plan.names) > 1
    named = ("adapter",) if several else ()
    table = table_of(
        *named, "weight", "method", "structure", ">trained", ">of weight", ">of model", "because"
    )
    for entry in plan.entries:
        table.add_row(
            *((entry.adapter,) if several else ()),
            entry.weight,
            entry.method,
            entry.structure,
            f"{entry.trained:,}",
            f"{entry.trained / max(1, entry.weight_params):.3%}",
            f"{entry.trained / max(1, plan.model_params):.3%}",
            " ".join(filter(None, (entry.reason, f"({entry.rule})" if entry.rule else ""))),
        )
    parts: list[RenderableType] = [table]
    if plan.skips:
        skipped = table_of(*named, "left alone", "because")
        for name, skip in plan.skips:
            skipped.add_row(*((name,) if several else ()), skip.site, skip.reason)
        parts.append(skipped)
    if plan.beside:
        beside = table_of("trained as it is", ">parameters")
        for name, count in plan.beside:
            beside.add_row(name, f"{count:,}")
        parts.append(beside)
    for name in plan.names:
        parts.append(Text(_sum(plan, name)))
    parts.extend(Text(f"note: {note}") for note in plan.notes)
    parts.append(Text(f"plan {plan.digest[:12]}, seed {plan.seed}"))
    return Group(*parts)


def adapt_tables(report: AdaptReport) -> RenderableType:
    """Return what adapting found: figures before and after, seconds, where the adapters are."""
    parts: list[RenderableType] = [adapter_tables(report.plan)]
    if report.before:
        trained = dict(report.trained)
        figures = table_of(
            f"on {report.held_out} held-out samples",
            ">base",
            ">with adapters",
            *((f">after {report.steps:,} steps",) if trained else ()),
        )
        attached = dict(report.attached)
        for name, value in report.before:
            values = [value, attached[name], *([trained[name]] if trained else [])]
            figures.add_row(name, *(f"{each:.5g}" for each in values))
        parts.append(figures)
    if report.events:
        parts.append(Text(f"events of methods in training: {report.events:,}"))
    spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in report.seconds)
    parts.append(Text(f"seconds: {spent}"))
    if report.folder:
        parts.append(Text(f"adapters: {report.folder}"))
    elif not report.peft and not report.gate:
        parts.append(Text("the adapters were not kept: --out FOLDER keeps them"))
    for each in report.peft:
        told = f"{each.adapter} for PEFT: {each.folder}, {each.weights} weights, relative error"
        parts.append(Text(f"{told} {each.error:.3g}"))
        parts.extend(Text(f"note: {note}") for note in each.notes)
    return Group(*parts)


def merge_tables(report: MergeReport) -> RenderableType:
    """Return how exact a merge is, and where the merged model is."""
    table = table_of("merged", ">value")
    table.add_row("adapters", ", ".join(report.adapters))
    table.add_row("weights", f"{report.weights:,}")
    table.add_row("parameters of the model", f"{report.params:,}")
    table.add_row("max |difference| of outputs on the probe", f"{report.difference:.3g}")
    table.add_row("max |output|", f"{report.scale:.3g}")
    if report.drifted:
        table.add_row(f"max |rounding| of a weight ({report.drifted})", f"{report.drift:.3g}")
    parts: list[RenderableType] = [table]
    if report.folder:
        parts.append(Text(f"artifact: {report.folder}"))
    return Group(*parts)


def _sum(plan: AdapterPlan, name: str) -> str:
    entries = [entry for entry in plan.entries if entry.adapter == name]
    return (
        f"{name}: {plan.trained(name):,} trained parameters beside {len(entries)} weights, "
        f"{plan.share(name):.3%} of the model's {plan.model_params:,}"
    )
