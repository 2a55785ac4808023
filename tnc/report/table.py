"""Tables for the terminal: what a run found, what a plan decided."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tnc.report.run_report import RunReport

if TYPE_CHECKING:
    from tnc.decide.grouping import GroupCount
    from tnc.decide.plan import Entry, Plan


def run_tables(report: RunReport) -> RenderableType:
    """Return what a run found: sizes, measured latency, figures, seconds, where the artifact is."""
    parts: list[RenderableType] = [_sizes(report)]
    if report.figures:
        parts.append(_figures(report))
    parts.extend(
        Text(f"milliseconds at batch {timing.batch} are unreliable: {timing.unreliable}")
        for timing in report.timings
        if timing.unreliable
    )
    spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in report.seconds)
    parts.append(Text(f"seconds: {spent}"))
    parts.extend(Text(f"note: {note}") for note in report.plan.notes)
    if report.artifact:
        parts.append(Text(f"artifact: {report.artifact}, with a page about it: report.html"))
    parts.extend(Text(f"exported: {file}") for file in report.exports)
    return Group(*parts)


def plan_tables(plan: Plan) -> RenderableType:
    """Return what a plan decided about every site, what it skips, and the sums."""
    table = table_of("site", "becomes", ">params", ">before", ">error", "because", "rule")
    for entry in plan.entries:
        table.add_row(
            entry.site,
            _becomes(entry),
            f"{entry.params:,}",
            f"{entry.dense_params:,}",
            "-" if entry.kept else _error(entry.relative),
            entry.reason,
            entry.rule,
        )
    parts: list[RenderableType] = [table]
    if plan.skips:
        skipped = table_of("left alone", "because")
        for skip in plan.skips:
            skipped.add_row(skip.site, skip.reason)
        parts.append(skipped)
    parts.append(Text(_sums(plan)))
    parts.extend(_trained(plan.optimizer))
    parts.extend(Text(f"note: {note}") for note in plan.notes)
    return Group(*parts)


def _trained(groups: Sequence[GroupCount]) -> Iterator[RenderableType]:
    """Yield what an optimizer's groups train and keep, and the sum."""
    if not groups:
        return
    table = table_of("trains", "by", ">parameters", ">entries", ">state bytes")
    for each in groups:
        counts = (each.parameters, each.entries, each.state_bytes)
        table.add_row(each.match, each.rule, *(f"{number:,}" for number in counts))
    yield table
    held, kept = sum(g.entries for g in groups), sum(g.state_bytes for g in groups)
    yield Text(f"the optimizer keeps {kept:,} bytes for {held:,} entries")


def show(content: RenderableType, console: Console) -> None:
    """Print; where nobody sees it on a terminal, tables are as wide as they need to be."""
    if console.is_terminal:
        console.print(content)
    else:
        console.print(content, width=10_000, soft_wrap=True)


def _sizes(report: RunReport) -> Table:
    table = table_of("", ">before", ">after", ">ratio")
    before, after = report.before, report.after
    rows: list[tuple[str, float, float, str]] = [
        ("parameters", before.params, after.params, ",.0f"),
        ("FLOPs of the example", before.flops, after.flops, ",.0f"),
        ("bytes", before.bytes, after.bytes, ",.0f"),
    ]
    rows += [(f"ms, batch {t.batch}", t.before, t.after, ".2f") for t in report.timings]
    for name, old, new, form in rows:
        ratio = f"{new / old:.3f}" if old else "-"
        table.add_row(name, format(old, form), format(new, form), ratio)
    return table


def _figures(report: RunReport) -> Table:
    table = table_of(f"on {report.held_out} held-out samples", ">against the original")
    for name, value in report.figures:
        table.add_row(name, f"{value:.5g}")
    return table


def _error(relative: float | None) -> str:
    return "not known" if relative is None else f"{relative:.3g}"


def _becomes(entry: Entry) -> str:
    """Say what a weight becomes with its ranks: `low-rank r=96`."""
    if entry.structure is None:
        return "dense"
    return " + ".join([f"{entry.family} {_ranks(entry)}".strip()])


def _ranks(entry: Entry) -> str:
    assert entry.structure is not None
    told = []
    for term in entry.structure.terms:
        sizes = dict(term.sizes)
        told += [f"{name}={sizes[name]}" for name in (*term.equation.bonds, *term.equation.counts)]
    return " ".join(told)


def _sums(plan: Plan) -> str:
    def line(name: str, new: int, old: int) -> str:
        share = f" ({new / old:.3f})" if old else ""
        return f"{old:,} -> {new:,} {name}{share}"

    total, scope = plan.total, plan.scope
    lines = [
        "whole model: "
        + ", ".join(
            [
                line("parameters", total.params, total.dense_params),
                line("FLOPs", total.flops, total.dense_flops),
            ]
        )
    ]
    if scope != total:
        lines.append(f"in scope: {line('parameters', scope.params, scope.dense_params)}")
    lines.append(f"plan {plan.digest[:12]}, seed {plan.seed}, passes {', '.join(plan.passes)}")
    return "\n".join(lines)


def table_of(*columns: str) -> Table:
    """Make a table; a column whose name starts with '>' is aligned to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.lstrip(">"), justify="right" if right else "left", overflow="fold")
    return table


def lines_of(pairs: Iterable[tuple[str, str]]) -> Table:
    """Return names and values as two columns without a header."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in pairs:
        table.add_row(name, value)
    return table
