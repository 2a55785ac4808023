"""Why rows are looked up in one way: its steps, and what the others would have cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tnc.derive.dense import ROWS
from tnc.errors import KernelError
from tnc.kernels.device import CPU, DEFAULT
from tnc.kernels.lookups.choose import (
    GATHER,
    ITEM,
    LookUpChoice,
    LookUpTask,
    choice_from,
    choice_to,
    flops,
    ranked,
)
from tnc.kernels.machine import current, state
from tnc.kernels.program import Multiply, dimensions
from tnc.kernels.shown import Contender, Explained, Shown, counted
from tnc.net import Structure


@dataclass(frozen=True)
class LookUpOutcome(Explained):
    """What was chosen for a number of row numbers, and the contenders, fastest first."""

    task: LookUpTask
    choice: LookUpChoice
    others: tuple[LookUpChoice, ...]

    def shown(self) -> Shown:
        task, choice = self.task, self.choice
        machine = current(task.dtype, task.threads)
        (rows,), (width,) = task.network.signature.outputs, task.network.signature.inputs
        moved, held = ITEM[task.dtype] * task.rows * width, ITEM[task.dtype] * rows * width
        dense = machine.statement * GATHER + 2 * moved / machine.bandwidth(held + moved)
        fewest = task.rows // 2 + 1
        threads = counted(task.threads, "thread")
        return Shown(
            equation=str(task.network),
            met=f"{fewest} to {task.rows} rows" if task.rows > 1 else "1 row",
            manner="all rows at once",
            used=f"gathers {_pieces(choice)}; by {', '.join(_libraries(choice)) or 'no library'}",
            dtype=task.dtype,
            threads=task.threads,
            device=CPU,
            training=task.training,
            predicted=choice.seconds,
            measured=choice.measured,
            dense=dense,
            flops=flops(choice, task.rows),
            dense_flops=0,
            steps=tuple(_steps(task, choice)),
            libraries=tuple(_libraries(choice)),
            contenders=tuple(
                Contender(
                    other.seconds, other.measured, flops(other, task.rows), unlike(choice, other)
                )
                for other in self.others
            ),
            source=choice.source(task.rows),
            name=f"{'training' if task.training else 'rows'}-{task.rows}",
            prices=f"{task.dtype}, {threads}: {state(task.dtype, task.threads)}",
            figures={
                "rows": [fewest, task.rows],
                "steps": [{"text": text, "note": note} for text, note in _steps(task, choice)],
            },
        )

    def entry(self) -> dict[str, Any]:
        task = self.task
        names = ("rows", "dtype", "threads", "training")
        return {
            "network": str(task.network),
            **{name: getattr(task, name) for name in names},
            "device": CPU,
            "machine": current(task.dtype, task.threads).key,
            "choice": choice_to(self.choice),
        }

    def again(self) -> bool:
        here, own = ranked(self.task)[0], self.choice
        return (here.program, here.backends, here.looped) == (
            own.program, own.backends, own.looped
        )  # fmt: skip


def recorded(structure: Structure, entry: Mapping[str, Any]) -> LookUpOutcome:
    """Return the outcome that was written down. Raises KernelError where it does not fit."""
    for term in structure.terms:
        if str(term) == entry["network"]:
            try:
                choice = choice_from(entry["choice"], term)
            except ValueError as error:
                raise KernelError(str(error)) from None
            names = ("rows", "dtype", "threads", "training")
            task = LookUpTask(term, *(entry[name] for name in names))
            return LookUpOutcome(task, choice, ())
    raise KernelError(f"no layer of the artifact has the equation {entry['network']}")


def _pieces(choice: LookUpChoice) -> str:
    return ", ".join("*".join(table.operand.cores) for table in choice.program.tables)


def _libraries(choice: LookUpChoice) -> list[str]:
    """Return the library of every product, or what compiles them where none is called."""
    count = len(choice.program.products)
    return ["numba"] * count if choice.looped else list(choice.backends or (DEFAULT,) * count)


def _steps(task: LookUpTask, choice: LookUpChoice) -> list[tuple[str, str]]:
    size = dict(task.network.sizes) | {ROWS: task.rows}
    heads = str(choice.program).splitlines()[: -len(choice.program.steps) or None]
    found = [(line, "") for line in heads]
    names = iter(_libraries(choice))
    for step in choice.program.steps:
        note = ""
        if isinstance(step, Multiply):
            batch, m, n, k = dimensions(step, size)
            sizes = " x ".join(map(str, (batch, m, n, k) if batch > 1 else (m, n, k)))
            note = f"{sizes}, {next(names)}"
        found.append((str(step), note))
    return found


def unlike(best: LookUpChoice, other: LookUpChoice) -> tuple[str, ...]:
    """Say in what a way differs from the one that was taken."""
    found = []
    if _pieces(best) != _pieces(other):
        found.append(f"gathers {_pieces(other)}")
    elif best.program != other.program:
        found.append("values lie otherwise in memory")
    if best.looped != other.looped:
        how = "as loops over memory, compiled by numba" if other.looped else "by torch's calls"
        found.append(how)
    elif best.backends != other.backends:
        found.append("by " + ", ".join(dict.fromkeys(_libraries(other))))
    return tuple(found) or ("nothing but chance",)
