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
from tnc.kernels.choose import DENSE_GAIN, Choice, Task, choose
from tnc.kernels.codec import choice_from, choice_to
from tnc.kernels.compiled import Kernel
from tnc.kernels.device import CPU, precision, standard
from tnc.kernels.layouts import same_memory
from tnc.kernels.machine import current, state
from tnc.kernels.program import Copy, Step, dimensions, extent, made, product_flops, written
from tnc.kernels.shown import Contender, Explained, Shown
from tnc.kernels.way import Way
from tnc.net import Network

COMPILED = {
    "numba": "as loops over memory, compiled by numba",
    "triton": "as one Triton kernel",
    "inductor": "as plain einsums through torch.compile",
}
"""What is compiled in the place of calls of a library, in words."""


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


def libraries(choice: Choice, device: str = CPU) -> tuple[str, ...]:
    """Return the library of every product, or what compiles them where none is called."""
    count = len(choice.program.products)
    if choice.way.emitter != "torch":
        return (choice.way.emitter,) * count
    return choice.way.backends or (standard(device),) * count


def where(task: Task) -> str:
    """Say on what a task runs, and how float32 is rounded there."""
    if task.device == CPU:
        return f"{task.threads} {'thread' if task.threads == 1 else 'threads'}"
    said = precision(task.device, task.dtype)
    return f"CUDA, {said}" if said else "CUDA"


def tiling(way: Way) -> str:
    """Say how many rows are taken at a time, forward and, where it is otherwise, backward."""
    forward, back = (
        f"{tile} rows at a time" if tile else "all rows at once"
        for tile in (way.tile, way.back.tile)
    )
    return forward if forward == back or not way.back.gradients else f"{forward} (backward: {back})"


def kept_share(choice: Choice) -> float:
    """Return the bytes that a way keeps for the backward, as a part of the input's."""
    program = choice.program
    size = dict(program.sizes) | {ROWS: 1}
    held = [step for step in program.steps if written(step) in choice.way.back.kept]
    return sum(extent(made(step), size) for step in held) / extent(program.inputs, size)


def differences(best: Choice, other: Choice) -> tuple[str, ...]:
    """Say in what a way differs from the one that was taken."""
    found = []
    merged, others = _merged(best), _merged(other)
    found += [_merging(cores, other) for cores in others if cores not in merged]
    found += [f"does not merge {' '.join(cores)}" for cores in merged if cores not in others]
    orders = [tuple(frozenset(o.cores) for o in c.program.operands) for c in (best, other)]
    if orders[0] != orders[1] and set(orders[0]) == set(orders[1]):
        found.append("order " + ", ".join(" ".join(o.cores) for o in other.program.operands))
    counts = [sum(isinstance(step, Copy) for step in c.program.steps) for c in (best, other)]
    if counts[0] != counts[1]:
        found.append(f"{counts[1]} {'copy' if counts[1] == 1 else 'copies'} instead of {counts[0]}")
    if not found and best.program != other.program:
        found.append("values lie otherwise in memory")
    found += _tiles(best.way, other.way)
    if best.way.back.kept != other.way.back.kept:
        found.append(f"keeps {', '.join(other.way.back.kept) or 'nothing'} for the backward")
    if best.program == other.program or len(set(libraries(best) + libraries(other))) > 1:
        found += _other_libraries(best, other)
    return tuple(found) or ("nothing but chance",)


def _merging(cores: tuple[str, ...], other: Choice) -> str:
    if len(other.program.operands) == 1:
        return f"the dense weight (where it is kept, its time counts {1 / DENSE_GAIN:.2f} fold)"
    return f"merges {' '.join(cores)} ahead of time"


def _merged(choice: Choice) -> list[tuple[str, ...]]:
    return [tuple(sorted(o.cores)) for o in choice.program.operands if len(o.cores) > 1]


def _tiles(best: Way, other: Way) -> list[str]:
    pairs = [(way.tile, way.back.tile) for way in (best, other)]
    if pairs[0] == pairs[1]:
        return []
    forward, back = pairs[1]
    if forward == back or not (best.back.gradients or other.back.gradients):
        return [_tile(forward)]
    return [f"{_tile(forward)} forward, {_tile(back)} backward"]


def _tile(tile: int) -> str:
    return f"tiles of {tile} rows" if tile else "all rows at once"


def _other_libraries(best: Choice, other: Choice) -> list[str]:
    if libraries(best) == libraries(other):
        gradients = [
            {name for each in way.back.gradients for name in (each.input, each.operand)}
            for way in (best.way, other.way)
        ]
        return [] if gradients[0] == gradients[1] else ["gradients by other libraries"]
    if other.way.emitter in COMPILED:
        return [COMPILED[other.way.emitter]]
    if len(set(libraries(other))) == 1:
        return [] if set(libraries(best)) == set(libraries(other)) else [
            f"by {libraries(other)[0]}"]  # fmt: skip
    return ["by " + ", ".join(libraries(other))]


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
