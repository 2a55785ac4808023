"""A choice in words: its libraries, its tiles, and in what it differs from another."""

from __future__ import annotations

from tnc.derive.dense import ROWS
from tnc.kernels.choose import DENSE_GAIN, Choice, Task
from tnc.kernels.device import CPU, precision, standard
from tnc.kernels.program import Copy, extent, made, written
from tnc.kernels.way import Way

COMPILED = {
    "numba": "as loops over memory, compiled by numba",
    "triton": "as one Triton kernel",
    "inductor": "as plain einsums through torch.compile",
}
"""What is compiled in the place of calls of a library, in words."""


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
