"""Layers of float16 that compute in float32: their cores are kept cast, inputs are cast at calls.

Few processors multiply float16 fast, and between products it would round and overflow. What runs
is the kernel of a float32 layer, and its result is rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tnc.kernels.compiled import Kernel
from tnc.kernels.kept import Kept, can_watch
from tnc.kernels.machine import current

Cores = Mapping[str, Tensor]


class Runs(Protocol):
    """What runs a kernel, without gradients and with them."""

    @property
    def kernel(self) -> Kernel: ...

    def run(self, cores: Cores, x: Tensor, bias: Tensor | None) -> Tensor: ...

    def train(self, cores: Cores, x: Tensor, bias: Tensor | None) -> Tensor: ...

    def forget(self) -> None: ...


def computed(dtype: str, threads: int) -> str:
    """Return the dtype that products of a dtype are taken in on the CPU.

    float16 is where this machine was measured to multiply it faster than float32, else float32.
    """
    if dtype != "float16":
        return dtype
    half, single = (max(current(name, threads).peak.values()) for name in (dtype, "float32"))
    return dtype if half > single else "float32"


@dataclass(eq=False)
class Wide:
    """Cores and a bias cast to float32, kept while they do not change."""

    kept: Kept[tuple[dict[str, Tensor], Tensor | None]] | None = None

    def take(self, cores: Cores, bias: Tensor | None) -> tuple[Cores, Tensor | None]:
        """Return them cast, without gradients."""
        own = [*cores.values(), *(() if bias is None else (bias,))]
        if self.kept is not None and self.kept.holds(own):
            return self.kept.made
        with torch.no_grad():
            made = ({name: core.float() for name, core in cores.items()}, _single(bias))
        self.kept = Kept.of(made, own, own) if can_watch(own) else None
        return made

    def forget(self) -> None:
        """Drop them."""
        self.kept = None


@dataclass(eq=False)
class Widened:
    """A kernel of float32 for a layer of float16."""

    inner: Runs
    wide: Wide

    @property
    def kernel(self) -> Kernel:
        """The kernel that runs."""
        return self.inner.kernel

    def run(self, cores: Cores, x: Tensor, bias: Tensor | None) -> Tensor:
        """Apply to rows `[n, inputs]` without gradients."""
        cast, own = self.wide.take(cores, bias)
        return self.inner.run(cast, x.float(), own).to(x.dtype)

    def train(self, cores: Cores, x: Tensor, bias: Tensor | None) -> Tensor:
        """Apply with gradients, which come in the dtype of what they are of.

        The input is kept for the backward as it is computed with, in float32.
        """
        cast = {name: core.float() for name, core in cores.items()}
        return self.inner.train(cast, x.float(), _single(bias)).to(x.dtype)

    def forget(self) -> None:
        """Drop what is kept."""
        self.inner.forget()
        self.wide.forget()


def _single(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float()
