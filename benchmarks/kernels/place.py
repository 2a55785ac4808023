"""Where and in which dtype contenders are measured, and how far they may be off there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from benchmarks.kernels.timing import PRECISION
from tnc.kernels.device import CPU, CUBLAS, CUDA

LIMITS = {"float32": 1e-4, "tf32": 2e-2, "bfloat16": 1e-1, "float16": 2e-2}
"""Relative error (Frobenius) from the dense oracle at which a contender is wrong; results between
products are rounded, too."""


@dataclass(frozen=True)
class Place:
    """A type of device, and a dtype; `tf32` is float32 whose factors cuBLAS may round to tf32."""

    device: str = CPU
    kind: str = "float32"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of tensors."""
        found: torch.dtype = getattr(torch, "float32" if self.kind == "tf32" else self.kind)
        return found

    @property
    def backends(self) -> tuple[str, ...]:
        """The libraries that all sides are held to, one after another."""
        return tuple(PRECISION) if self.device == CPU else (CUBLAS,)

    @property
    def limit(self) -> float:
        """The relative error at which a contender is wrong."""
        return LIMITS[self.kind]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let torch round float32 to tf32 on CUDA, or not, as this place says."""
        matmul = torch.backends.cuda.matmul
        before = matmul.allow_tf32
        if self.device == CUDA:
            matmul.allow_tf32 = self.kind == "tf32"
        try:
            yield
        finally:
            matmul.allow_tf32 = before

    def __str__(self) -> str:
        return self.kind if self.device == CPU else f"{self.kind} on {torch.cuda.get_device_name()}"


def places(device: str, kinds: str | None) -> tuple[Place, ...]:
    """Return the places of a device. Raises SystemExit for unknown ones, and without a GPU."""
    if device not in (CPU, CUDA):
        raise SystemExit(f"no device {device!r}: cpu or cuda")
    if device == CUDA and not torch.cuda.is_available():
        raise SystemExit("torch finds no CUDA device here")
    wanted = kinds.split(",") if kinds else ["float32"]
    if device == CUDA and not kinds:
        wanted = ["float32", "tf32", "bfloat16"]
    known = ["float32"] if device == CPU else list(LIMITS)
    for kind in wanted:
        if kind not in known:
            raise SystemExit(f"no cells in {kind!r} on {device}: {', '.join(known)}")
    return tuple(Place(device, kind) for kind in wanted)
