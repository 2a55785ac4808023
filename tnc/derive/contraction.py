"""Contractions of named operands and their pairwise order.

A contraction is an einsum with words for letters. Its order comes from opt_einsum, is searched
once, and is a value: it can be printed, costed and reused. Only pairwise steps are ever emitted,
since an einsum of three operands freezes the batch size under `torch.export`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod

import opt_einsum

from tnc.errors import EquationError
from tnc.net import Axis

_OPTIMAL_UP_TO = 7  # beyond it, the exhaustive search costs more than it saves


@dataclass(frozen=True)
class Step:
    """Contract two slots into a new one, which takes the next slot number."""

    left: int
    right: int
    indices: Axis


@dataclass(frozen=True)
class Order:
    """Pairwise steps over slots; slots 0..n-1 are the operands, then one a step.

    `flops` counts a multiply-add as two; `peak` is the largest total size, in elements, of
    intermediates alive at once.
    """

    operands: tuple[Axis, ...]
    output: Axis
    steps: tuple[Step, ...]
    flops: int
    peak: int

    def __str__(self) -> str:
        slots = list(self.operands)
        lines = []
        for step in self.steps:
            left, right = slots[step.left], slots[step.right]
            slots.append(step.indices)
            lines.append(f"[{' '.join(left)}] * [{' '.join(right)}] -> [{' '.join(step.indices)}]")
        return "\n".join([*lines, f"{self.flops:,} FLOPs, peak {self.peak:,} elements"])


@dataclass(frozen=True)
class Contraction:
    """Named operands, an output, and sizes: everything that an einsum needs.

    An index in no output and one operand only is summed. Raises EquationError for an output index
    that no operand carries.
    """

    names: tuple[str, ...]
    operands: tuple[Axis, ...]
    output: Axis
    sizes: tuple[tuple[str, int], ...]

    def __post_init__(self) -> None:
        carried = {name for operand in self.operands for name in operand}
        lost = [name for name in self.output if name not in carried]
        if lost:
            raise EquationError(f"output index {lost[0]} is carried by no operand")

    @cached_property
    def size(self) -> dict[str, int]:
        """Size by index name."""
        return dict(self.sizes)

    @cached_property
    def order(self) -> Order:
        """The cheapest pairwise order by FLOPs, searched once and cached."""
        return _search(self.operands, self.output, self.sizes)


def index_letters(operands: tuple[Axis, ...]) -> dict[str, str]:
    """Give every index a letter, in order of first sight: only emitted code has letters."""
    seen = dict.fromkeys(name for operand in operands for name in operand)
    return {name: opt_einsum.get_symbol(position) for position, name in enumerate(seen)}


def step_flops(left: Axis, right: Axis, result: Axis, size: dict[str, int]) -> int:
    """Count one pairwise step: two for each multiply-add, one for each product without a sum."""
    union = {*left, *right}
    return (2 if union - set(result) else 1) * prod(size[name] for name in union)


@lru_cache(maxsize=16384)
def _search(operands: tuple[Axis, ...], output: Axis, sizes: tuple[tuple[str, int], ...]) -> Order:
    size = dict(sizes)
    slots = list(operands)
    steps: list[Step] = []
    flops = 0
    alive = list(range(len(operands)))
    peak = 0
    for left, right in _pairs(operands, output, size):
        first, second = alive[left], alive[right]
        rest = [slot for position, slot in enumerate(alive) if position not in (left, right)]
        needed = set(output).union(*(slots[slot] for slot in rest))
        a, b = slots[first], slots[second]
        kept = tuple(name for name in dict.fromkeys((*a, *b)) if name in needed)
        if not rest:
            kept = output
        flops += step_flops(a, b, kept, size)
        steps.append(Step(first, second, kept))
        slots.append(kept)
        alive = [*rest, len(slots) - 1]
        made = [slots[slot] for slot in alive if slot >= len(operands)]
        peak = max(peak, sum(prod(size[n] for n in indices) for indices in made))
    return Order(operands, output, tuple(steps), flops, peak)


def _pairs(operands: tuple[Axis, ...], output: Axis, size: dict[str, int]) -> list[tuple[int, int]]:
    """Return positions to contract, in a list where the result is appended at the end."""
    if len(operands) == 1:
        return []
    letters = index_letters((*operands, output))
    inputs = ",".join("".join(letters[name] for name in operand) for operand in operands)
    shapes = [tuple(size[name] for name in operand) for operand in operands]
    path, _ = opt_einsum.contract_path(
        f"{inputs}->{''.join(letters[name] for name in output)}",
        *shapes,
        shapes=True,
        optimize="optimal" if len(operands) <= _OPTIMAL_UP_TO else "auto",
    )
    pairs: list[tuple[int, int]] = []
    count = len(operands)
    for group in path:
        left, right = sorted(group)[:2] if len(group) > 1 else (group[0], group[0])
        if left == right:
            continue
        pairs.append((left, right))
        count -= 1
        for extra in range(len(group) - 2):  # a group of three and more: fold one by one
            pairs.append((sorted(group)[2 + extra] - 2 - extra, count - 1))
            count -= 1
    return pairs
