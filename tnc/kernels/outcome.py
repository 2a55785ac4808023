"""Why a kernel was chosen: its products in numbers, and what the others would have cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tnc.derive.dense import ROWS
from tnc.errors import KernelError
from tnc.kernels import fused, inductor
from tnc.kernels.check import wrong
from tnc.kernels.choose import Choice, Task, choose
from tnc.kernels.codec import choice_from, choice_to
from tnc.kernels.compiled import Kernel
from tnc.kernels.device import CPU
from tnc.kernels.in_words import differences, kept_share, libraries, tiling, where
from tnc.kernels.layouts import same_memory
from tnc.kernels.machine import current, state
from tnc.kernels.program import Copy, Step, dimensions, extent, product_flops
from tnc.kernels.shown import Contender, Explained, Shown
from tnc.net import Network


@dataclass(frozen=True)
class Line:
    """One step in words; of a product also (batch, m, n, k), its FLOPs and its library."""

    text: str
    shape: tuple[int, ...] = ()
    flops: int = 0
    backend: str = ""


@dataclass(frozen=True)
class Outcome(Explained):
    """What was chosen for a task, and the contenders, fastest first.

    `dense` are the predicted seconds of a dense layer of the same shape; FLOPs count a multiply-add
    as two, of the forward alone.
    """

    task: Task
    choice: Choice
    lines: tuple[Line, ...]
    contenders: tuple[Contender, ...]
    dense: float
    bias: bool = False
    """Whether a bias is added with it."""
    notes: tuple[str, ...] = ()
    """What could not take part, and why."""

    @property
    def flops(self) -> int:
        """FLOPs of the forward, without merging cores."""
        return sum(line.flops for line in self.lines)

    @property
    def fewest(self) -> int:
        """The smallest number of rows that this is used for; `task.rows` is the largest."""
        return self.task.rows // 2 + 1

    def shown(self) -> Shown:
        task, choice = self.task, self.choice
        used = libraries(choice, task.device)
        kept = choice.way.back.kept
        return Shown(
            equation=str(task.network),
            met=f"{self.fewest} to {task.rows} rows" if task.rows > 1 else "1 row",
            manner=tiling(choice.way),
            used="; ".join(
                [
                    "absorbs " + ", ".join("*".join(o.cores) for o in choice.program.operands),
                    *([tiling(choice.way)] if choice.way.tile or choice.way.back.tile else []),
                    *([f"keeps {', '.join(kept)}"] if kept else []),
                    "by " + ", ".join(dict.fromkeys(used)),
                ]
            ),
            dtype=task.dtype,
            threads=task.threads,
            device=task.device,
            training=task.training,
            predicted=choice.seconds,
            measured=choice.measured,
            dense=self.dense,
            flops=self.flops,
            dense_flops=2 * task.rows * task.network.signature.parameters,
            steps=tuple((line.text, _note(line)) for line in self.lines),
            libraries=used,
            contenders=self.contenders,
            source=self.source(self.bias),
            name=f"{'training' if task.training else 'rows'}-{task.rows}",
            prices=f"{task.dtype}, {where(task)}: {state(task.dtype, task.threads, task.device)}",
            figures=self._figures(),
            kept=kept,
            kept_share=kept_share(choice),
            notes=self.notes,
        )

    def _figures(self) -> dict[str, Any]:
        steps = [
            {"text": line.text, "shape": list(line.shape), "flops": line.flops}
            | ({"library": line.backend} if line.backend else {})
            for line in self.lines
        ]
        way = self.choice.way
        return {
            "rows": [self.fewest, self.task.rows],
            "tile": way.tile,
            "backward tile": way.back.tile,
            "kept": list(way.back.kept),
            "steps": steps,
        }

    def entry(self) -> dict[str, Any]:
        task = self.task
        names = ("rows", "dtype", "threads", "device", "training", "keep", "compiled")
        return {
            "network": str(task.network),
            **{name: getattr(task, name) for name in names},
            "library": task.backend,
            "bias": self.bias,
            "machine": current(task.dtype, task.threads, task.device).key,
            "choice": choice_to(self.choice),
        }

    def again(self) -> bool:
        here = choose(self.task)[0]
        return (here.program, here.way) == (self.choice.program, self.choice.way)

    def source(self, bias: bool = False) -> str:
        """Return the source that runs; with `backward` of all gradients where training."""
        names = [step.right.value for step in self.choice.program.products]
        needs = ("input", *names) if self.task.training else ()
        return Kernel(self.choice).source(bias=bias, needs=needs)


def outcome(task: Task, choices: Sequence[Choice], bias: bool = False) -> Outcome:
    """Explain the choices of a task, of which the first is taken."""
    best = choices[0]
    contenders = tuple(
        Contender(other.seconds, other.measured, _flops(other, task), differences(best, other))
        for other in choices[1:]
    )
    return Outcome(
        task,
        best,
        _lines(best, task),
        contenders,
        _dense_seconds(task),
        bias,
        (*fused.notes(task, choices), *inductor.notes(task, choices)),
    )


def recorded(network: Network, entry: Mapping[str, Any]) -> Outcome:
    """Return the outcome that `Outcome.entry` wrote for a network.

    Raises KernelError where its program does not compute the network.
    """
    choice = choice_from(entry["choice"])
    if choice.program.sizes != network.sizes or wrong(network, choice.program):
        raise KernelError("its program does not compute the equation of its layers")
    task = Task(
        network,
        entry["rows"],
        entry["dtype"],
        entry["threads"],
        entry["training"],
        entry["library"],
        entry.get("device", CPU),
        entry.get("keep", 0.0),
        entry.get("compiled", False),
    )
    return outcome(task, (choice,), entry["bias"])


def _note(line: Line) -> str:
    if not line.shape:
        return ""
    if not line.backend:
        return f"{line.shape[0]:,} entries moved" if line.shape[0] else "memory stays as it is"
    sizes = " x ".join(map(str, line.shape if line.shape[0] > 1 else line.shape[1:]))
    return f"{sizes}, {line.flops:,} FLOPs, {line.backend}"


def _lines(choice: Choice, task: Task) -> tuple[Line, ...]:
    program, size = choice.program, dict(task.network.sizes) | {ROWS: task.rows}
    heads = str(program).splitlines()[: -len(program.steps) or None]
    names = iter(libraries(choice, task.device))
    return (*map(Line, heads), *(_line(step, size, names) for step in program.steps))


def _line(step: Step, size: dict[str, int], names: Iterator[str]) -> Line:
    if isinstance(step, Copy):
        moved = 0 if same_memory(step.before, step.after, size) else extent(step.before, size)
        return Line(str(step), (moved,))
    library = next(names)
    return Line(str(step), dimensions(step, size), product_flops(step, size), library)


def _flops(choice: Choice, task: Task) -> int:
    size = dict(task.network.sizes) | {ROWS: task.rows}
    return sum(product_flops(step, size) for step in choice.program.products)


def _dense_seconds(task: Task) -> float:
    """Seconds of a dense layer: one product, and the two of its gradients where training."""
    machine = current(task.dtype, task.threads, task.device)
    names = (task.backend,) if task.backend else machine.backends
    signature = task.network.signature
    n, k = prod(signature.outputs), prod(signature.inputs)
    shapes = [(task.rows, n, k)]
    if task.training:
        shapes += [(task.rows, k, n), (n, k, task.rows)]
    return sum(min(machine.gemm(name, 1, *shape) for name in names) for shape in shapes)
