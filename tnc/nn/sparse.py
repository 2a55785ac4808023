"""Sparse cores at run time: values that are trained, positions that are not.

Look-ups find entries by binary search. A linear layer that is one sparse core multiplies by rows of
entries (CSR) where no gradient is asked for and few entries are stored. Everything else scatters
the core into a dense tensor first, which can be traced, exported and differentiated.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from tnc.errors import KernelError
from tnc.nn.generated import is_plain

SPARSE_UP_TO = 0.15
"""Share of stored entries from which a dense product is faster than CSR's, on one CPU thread."""


@dataclass(frozen=True, eq=False)
class Kept:
    """The stored entries of one core: `values (n,)` at flat `positions (n,)`, ascending, int32."""

    values: Tensor
    positions: Tensor
    shape: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """The type of the values."""
        return self.values.dtype

    def dense(self) -> Tensor:
        """Return the whole core, zeros filled in."""
        flat = self.values.new_zeros(prod(self.shape))
        return flat.scatter(0, self.positions.long(), self.values).reshape(self.shape)

    def product(self, x: Tensor) -> Tensor:
        """Return `x S^T` of a matrix, `[.., i]` to `[.., o]`, without making S dense."""
        _hush()
        rows, width = self.shape
        ends = torch.arange(rows + 1, device=x.device, dtype=torch.int32) * width
        begins = torch.searchsorted(self.positions, ends, out_int32=True)
        matrix = torch.sparse_csr_tensor(
            begins, self.positions % width, self.values, self.shape, check_invariants=False
        )
        found: Tensor = (matrix @ x.reshape(-1, width).t()).t()
        return found.reshape(*x.shape[:-1], rows)

    def multiplies(self, x: Tensor) -> bool:
        """Whether `product` is the better way here: no gradient, nobody watching, few entries."""
        return (
            len(self.shape) == 2
            and len(self.values) <= SPARSE_UP_TO * prod(self.shape)
            and x.device.type == "cpu"
            and x.dtype in (torch.float32, torch.float64)
            and x.numel() > 0
            and is_plain(x.device.type)
            and not (torch.is_grad_enabled() and (self.values.requires_grad or x.requires_grad))
        )

    def at(self, wanted: Tensor) -> Tensor:
        """Return the entries at flat positions of any shape, zero where nothing is stored."""
        keys = wanted.to(self.positions.dtype)
        place = torch.searchsorted(self.positions, keys).clamp_max(len(self.positions) - 1)
        found = self.positions[place] == keys
        return torch.where(found, self.values[place], self.values.new_zeros(()))

    def picked(self, places: dict[int, Tensor]) -> Tensor:
        """Return the core at numbers of some dimensions, which lead; the others follow."""
        strides = [prod(self.shape[k + 1 :]) for k in range(len(self.shape))]
        start = sum(number * strides[k] for k, number in places.items())
        assert isinstance(start, Tensor)  # some dimension is picked
        offsets = torch.zeros((), dtype=torch.long, device=start.device)
        for k, size in enumerate(self.shape):
            if k not in places:
                steps = torch.arange(size, device=start.device) * strides[k]
                offsets = offsets.unsqueeze(-1) + steps
        return self.at(start.reshape(*start.shape, *(1,) * offsets.dim()) + offsets)


@lru_cache(maxsize=1)
def _hush() -> None:
    """Let torch say once, unheard, that its CSR tensors are a beta feature."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        empty = torch.zeros(1, dtype=torch.int32)
        torch.sparse_csr_tensor(torch.zeros(2, dtype=torch.int32), empty[:0], empty[:0].float())


def compressed(core: Tensor, count: int, name: str) -> tuple[Tensor, Tensor]:
    """Return the values and positions of a core's nonzero entries, filled up with first zeros.

    Raises KernelError where more than `count` entries are not zero.
    """
    flat = core.detach().flatten()
    if flat.numel() > torch.iinfo(torch.int32).max:
        raise KernelError(f"core {name} has {flat.numel()} entries, positions are 32-bit numbers")
    order = torch.sort((flat != 0).to(torch.uint8), descending=True, stable=True).indices
    if len(order) > count and bool(flat[order[count]] != 0):
        raise KernelError(
            f"core {name} has {int((flat != 0).sum())} entries that are not zero, it stores {count}"
        )
    positions = order[:count].sort().values
    return flat[positions].clone(), positions.to(torch.int32)
