"""The cells of the kernel benchmarks: two shapes, 15 structures each, four batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from tnc.derive.cost import Work, cost, parameters
from tnc.net import Network, Signature, Structure
from tnc.structures import families

BATCHES = (1, 16, 128, 1024)

Options = dict[str, object]
Ranks = tuple[int, ...]
TRAINS = ("tensor-train",)

SHAPES: dict[str, tuple[int, int]] = {"768x3072": (768, 3072), "4096x4096": (4096, 4096)}
"""Inputs and outputs by name."""

STRUCTURES: dict[str, tuple[tuple[str, str, Options, Ranks], ...]] = {
    "768x3072": (
        ("lr-r152", "low-rank", {}, (152,)),
        ("lr-r76", "low-rank", {}, (76,)),
        ("lr-r40", "low-rank", {}, (40,)),
        ("tt2-r4", "tensor-train", {"factors": 2}, (4,)),
        ("tt2-r8", "tensor-train", {"factors": 2}, (8,)),
        ("tt2-r16", "tensor-train", {"factors": 2}, (16,)),
        ("tt3-r8", "tensor-train", {"factors": 3}, (8, 8)),
        ("tt3-r32", "tensor-train", {"factors": 3}, (32, 32)),
        ("tt4-r8", "tensor-train", {"factors": 4}, (8, 8, 8)),
        ("tucker-r70", "tucker", {}, (70, 70)),
        ("tucker2-r19", "tucker", {"factors": 2}, (20, 24, 16, 16)),
        ("btt-r1", "block-tensor-train", {}, (1,)),
        ("btt-r2", "block-tensor-train", {}, (2,)),
        ("btt-r4", "block-tensor-train", {}, (4,)),
        ("cp-r128", "cp", {"factors": 2}, (128,)),
    ),
    "4096x4096": (
        ("lr-r512", "low-rank", {}, (512,)),
        ("lr-r256", "low-rank", {}, (256,)),
        ("lr-r128", "low-rank", {}, (128,)),
        ("tt2-r8", "tensor-train", {"factors": 2}, (8,)),
        ("tt2-r16", "tensor-train", {"factors": 2}, (16,)),
        ("tt2-r32", "tensor-train", {"factors": 2}, (32,)),
        ("tt3-r12", "tensor-train", {"factors": 3}, (12, 12)),
        ("tt3-r16", "tensor-train", {"factors": 3}, (16, 16)),
        ("tt4-r16", "tensor-train", {"factors": 4}, (16, 16, 16)),
        ("tucker-r256", "tucker", {}, (256, 256)),
        ("tucker2-r32", "tucker", {"factors": 2}, (32, 32, 32, 32)),
        ("btt-r1", "block-tensor-train", {}, (1,)),
        ("btt-r2", "block-tensor-train", {}, (2,)),
        ("btt-r4", "block-tensor-train", {}, (4,)),
        ("cp-r160", "cp", {"factors": 2}, (160,)),
    ),
}
"""Label, family, options and ranks (in the order of the template's bounds): 4 to 500 times fewer
parameters than dense. Trains of high rank need as many FLOPs as dense, or more."""

QUICK = ("lr-r76", "tt3-r8")


@dataclass(frozen=True)
class Cell:
    """Hold one layer and batch."""

    shape: str
    label: str
    family: str
    options: Options = field(hash=False)
    ranks: Ranks
    batch: int

    @property
    def name(self) -> str:
        """Name the cell, as in `768x3072 tt3-r8 b=128`."""
        return f"{self.shape} {self.label} b={self.batch}"

    @cached_property
    def structure(self) -> Structure:
        """The structure at its ranks."""
        (i, o) = SHAPES[self.shape]
        template = families.get(self.family)(**self.options).template(Signature((o,), (i,)))
        return template.at(dict(zip((name for name, _ in template.bounds), self.ranks)))

    @property
    def term(self) -> Network:
        """The one network of the structure."""
        (term,) = self.structure.terms
        return term

    @cached_property
    def flops(self) -> int:
        """FLOPs of the order with the fewest, rebuilding the dense weight among them."""
        return cost(self.structure, Work("linear", self.batch)).flops

    @property
    def flop_ratio(self) -> float:
        """FLOPs of the dense layer by those of the structure."""
        i, o = SHAPES[self.shape]
        return 2 * self.batch * i * o / self.flops

    @property
    def compression(self) -> float:
        """Parameters of the dense layer by those of the structure."""
        i, o = SHAPES[self.shape]
        return i * o / parameters(self.structure)

    @property
    def bytes(self) -> int:
        """Bytes of cores, input and output in float32."""
        return self.bytes_of(4)

    def bytes_of(self, item: int) -> int:
        """Return the bytes of cores, input and output with entries of so many bytes."""
        i, o = SHAPES[self.shape]
        return item * (parameters(self.structure) + self.batch * (i + o))


def cells(
    quick: bool = False, only: str | None = None, batches: tuple[int, ...] = BATCHES
) -> list[Cell]:
    """Return the cells that pass the filter, shape by shape. Raises SystemExit for none.

    Every word of the filter must meet a word of the cell's name: `b=1` exactly, others at its
    start; alternatives are parted by commas. `4096 tt,btt b=1,b=16` is six trains and three block
    trains at two batches.
    """
    found = [cell for cell in _all(quick, batches) if only is None or _meets(cell.name, only)]
    if not found:
        known = next(_all(False, BATCHES)).name
        raise SystemExit(f"no cell meets {only!r}; one is named {known!r}")
    return found


def _all(quick: bool, batches: tuple[int, ...]) -> Iterator[Cell]:
    for shape, rows in STRUCTURES.items():
        for label, family, options, ranks in rows:
            for batch in batches:
                if quick and (shape != "768x3072" or label not in QUICK or batch not in (1, 128)):
                    continue
                yield Cell(shape, label, family, options, ranks, batch)


def _meets(name: str, only: str) -> bool:
    def met(pattern: str) -> bool:
        return any(
            word == pattern or (not pattern.startswith("b=") and word.startswith(pattern))
            for word in name.split()
        )

    return all(any(map(met, word.split(","))) for word in only.split())
