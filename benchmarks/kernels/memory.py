"""What structured linear layers keep for the backward at 1024 rows, and what that costs in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.kernels import judging, running, sides
from benchmarks.kernels.cells import TRAINS, Cell, cells
from benchmarks.kernels.judging import Held
from benchmarks.kernels.measuring import IMPLEMENTATIONS, Row, Settings
from benchmarks.kernels.saving import growing_bytes, saved_bytes
from benchmarks.kernels.timing import PRECISION
from benchmarks.outcome import Arguments, Goal, Outcome, Table, table
from tnc.kernels.applied import tuning

NAME = "kernels-memory"
ENVIRONMENT = running.MALLOC

ROWS = 1024
QUICK_ROWS = 128
SLOWER = 1.3
"""The most times the seconds of the version that keeps its intermediates."""
FASTER = 4.0
"""The least times tensorly-torch is slower on trains, forward and backward, as shipped."""
MIB = 2**20
VERSIONS = (
    ["kept", "pairwise einsums in the order of the fewest FLOPs, all kept by autograd"],
    ["keeping", "the layer's own kernels, with keep=inf"],
)


@dataclass(frozen=True)
class Kept:
    """Hold bytes kept for the backward by contender, and those of ours that grow with the rows."""

    cell: Cell
    saved: dict[str, int]
    activations: float


def run(arguments: Arguments) -> Outcome:
    """Count what is kept by every structure; time ours by its kept version, trains by rivals."""
    batch = QUICK_ROWS if arguments.quick else ROWS
    chosen = cells(arguments.quick, arguments.only, (batch,))
    counts = [_counted(cell) for cell in chosen]
    rows: list[Row] = []
    for rivals in (True, False):
        own = [cell for cell in chosen if (cell.family in TRAINS) == rivals]
        settings = Settings(True, arguments.threads, arguments.compiled, kept=True, rivals=rivals)
        with tuning(arguments.tune):
            rows += running.measured(own, settings)
    held = _held(rows)
    most = max(count.activations for count in counts)
    goals = (Goal("most-activation-bytes-kept", most, 0.0), *(one.result() for one in held))
    tables = (_bytes(counts), _seconds(rows), judging.means(rows), judging.worst(held))
    figures = running.figures(rows, arguments)
    figures["kept bytes"] = {c.cell.name: c.saved | {"growing": c.activations} for c in counts}
    said = table(("version", ""), VERSIONS)
    return Outcome((*tables, said, running.setting(rows)), goals, figures)


def _counted(cell: Cell) -> Kept:
    numbers = sides.numbers(cell, train=False)
    ours = sides.ours(cell, numbers)
    contenders = {"ours": ours, "kept version": sides.kept(cell, numbers)}
    own = sides.ours(cell, numbers)
    with sides.keeping(), torch.enable_grad():
        own.function(numbers.x)
    contenders["own kept version"] = own
    for implementation in IMPLEMENTATIONS:
        rival = sides.tensorly_torch(cell, numbers, implementation)
        if rival is not None:
            contenders[f"tensorly {implementation}"] = rival
    contenders["einsum"] = sides.einsum(cell, numbers)
    with torch.enable_grad():
        saved = {
            name: saved_bytes(one.function, numbers.x, one.parameters)
            for name, one in contenders.items()
        }
        return Kept(cell, saved, growing_bytes(ours.function, numbers.x, ours.parameters))


def _held(rows: Sequence[Row]) -> list[Held]:
    trains = [row for row in rows if "tensorly shipped" in row.ratios]
    name = "tensorly-as-shipped-trains-forward-backward"
    goals = [Held(name, FASTER, trains, lambda r: r.ratios["tensorly shipped"], mean=True)]
    for against, version in (("kept", "kept-version"), ("keeping", "own-kept-version")):
        for backend in PRECISION:
            name = f"{against} {backend}"
            own = [row for row in rows if name in row.ratios]
            goals.append(
                Held(
                    f"seconds-by-{version}-{backend}",
                    SLOWER,
                    own,
                    lambda r, name=name: 1 / r.ratios[name],  # type: ignore[misc]
                    most=True,
                )
            )
    return [goal for goal in goals if goal.rows]


def _bytes(counts: Sequence[Kept]) -> Table:
    names = list(dict.fromkeys(name for count in counts for name in count.saved))
    lines = [
        [
            count.cell.name,
            f"{count.activations / MIB:.2f}",
            *(f"{count.saved[n] / MIB:.2f}" if n in count.saved else "-" for n in names),
        ]
        for count in counts
    ]
    return table(("MiB kept", "ours, growing with rows", *names), lines)


def _seconds(rows: Sequence[Row]) -> Table:
    names = list(dict.fromkeys(name for row in rows for name in row.seconds))
    lines = [
        [
            row.cell.name,
            *(f"{1e3 * row.seconds[name]:.2f}" if name in row.seconds else "-" for name in names),
        ]
        for row in rows
    ]
    return table(("ms", *names), lines)
