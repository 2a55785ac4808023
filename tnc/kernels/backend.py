"""The libraries that torch can multiply matrices with, switched for a block and probed.

`mkl` is the BLAS that torch was built with and calls by default; `onednn` is where its float32
products go when products may be computed in bfloat16. Whether they then are depends on the
processor (they are where it has AMX), so a backend is probed for its error before it is trusted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from tnc.errors import KernelError
from tnc.kernels.device import CPU, CUBLAS, CUDA
from tnc.kernels.price import ITEM_BYTES

BACKENDS = ("mkl", "onednn")
_ONLY: ContextVar[str] = ContextVar("tnc_only_backend", default="")
PRECISION = {"mkl": "ieee", "onednn": "bf16"}
"""The precision of oneDNN's float32 products that sends torch's products to a backend."""
SMALLEST = {"mkl": 0, "onednn": 16**3, CUBLAS: 0}
"""Multiply-adds that a product must exceed to reach the backend; torch keeps smaller ones."""
ACCURATE = {"float64": 1e-14, "float32": 2e-6, "float16": 2e-3, "bfloat16": 1e-2}
"""The largest relative error (Frobenius) of a trusted product, result rounding included."""

_PROBES = (
    (1, 1, 64, 64),
    (1, 256, 256, 256),
    (1, 1, 512, 1024),
    (1, 768, 64, 40),
    (1, 37, 19, 211),
    (16, 16, 16, 16),
    (8, 64, 128, 64),
    (32, 128, 8, 128),
    (64, 1, 32, 64),
)
"""Shapes (batch, m, n, k): vectors, squares, thin and odd ones, batches of small ones."""


@contextmanager
def using(backend: str) -> Iterator[None]:
    """Send the matrix products of this block to a backend; what was set before comes back.

    The switch belongs to the process, not to the thread: products that other threads start
    meanwhile go to the same backend. Only the CPU's products are switched.
    """
    if backend not in BACKENDS:
        raise KernelError(
            f"no backend named {backend!r}", hint=f"one of {', '.join(map(repr, BACKENDS))}"
        )
    before = _precision()
    _set_precision(PRECISION[backend])
    try:
        yield
    finally:
        _set_precision(before)


@contextmanager
def only(backend: str) -> Iterator[None]:
    """Let kernels that are chosen in this block use one backend, so that libraries compare.

    Kernels that were chosen before keep theirs: give a layer of its own to each comparison.
    """
    if backend not in BACKENDS:
        raise KernelError(
            f"no backend named {backend!r}", hint=f"one of {', '.join(map(repr, BACKENDS))}"
        )
    token = _ONLY.set(backend)
    try:
        yield
    finally:
        _ONLY.reset(token)


def allowed() -> str:
    """Return the backend that `only` holds choices to; empty where they are free."""
    return _ONLY.get()


@dataclass(frozen=True)
class Probe:
    """What a probe found: the worst relative error, and why a backend is refused ('' if not)."""

    backend: str
    error: float
    refused: str


def available_backends(dtype: str = "float32") -> tuple[str, ...]:
    """Return the backends that exist here and are accurate; probed once per dtype and process."""
    return tuple(probe.backend for probe in probes(dtype) if not probe.refused)


@cache
def probes(dtype: str) -> tuple[Probe, ...]:
    """Return what a probe of every backend found (tens of milliseconds)."""
    return tuple(_probe(backend, dtype) for backend in BACKENDS)


def cuda_probe(dtype: str) -> Probe:
    """Return the error of products on CUDA; it is stated, and nothing is refused for it."""
    return Probe(CUBLAS, _worst(torch_dtype(dtype), CUDA), "")


def torch_dtype(name: str) -> torch.dtype:
    """Return the dtype of a name; raises KernelError for one that has no products here."""
    if name not in ACCURATE:
        raise KernelError(
            f"no prices for the dtype {name!r}", hint=f"one of {', '.join(sorted(ACCURATE))}"
        )
    found: torch.dtype = getattr(torch, name)
    return found


def _probe(backend: str, name: str) -> Probe:
    dtype = torch_dtype(name)
    reason = _absent(backend, name)
    if reason:
        return Probe(backend, float("nan"), reason)
    with using(backend):
        worst = _worst(dtype, CPU)
    bound = ACCURATE[name]
    refused = "" if worst < bound else f"relative error {worst:.1e}, {bound:.0e} is allowed"
    return Probe(backend, worst, refused)


@torch.no_grad()
def _worst(dtype: torch.dtype, device: str) -> float:
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for batch, m, n, k in _PROBES:
        left = torch.randn(batch, m, k, generator=generator).to(device, dtype)
        right = torch.randn(batch, k, n, generator=generator).to(device, dtype)
        worst = max(worst, _error(left, right), _error(left[0], right[0]))
    return worst


def _absent(backend: str, name: str) -> str:
    """Return why a backend has no products of a dtype; only those of float32 can be switched."""
    bindings: Any = torch._C
    onednn = bool(bindings._has_mkldnn)
    if backend == "onednn":
        if not onednn:
            return "torch was built without it"
        return "it has no float64 products" if name == "float64" else ""
    return f"torch itself sends {name} to onednn" if onednn and ITEM_BYTES[name] == 2 else ""


def _error(left: torch.Tensor, right: torch.Tensor) -> float:
    exact = left.double() @ right.double()
    return float((left @ right - exact).norm() / exact.norm())


def _precision() -> str:
    bindings: Any = torch._C
    found: str = bindings._get_fp32_precision_getter("mkldnn", "matmul")
    return found


def _set_precision(precision: str) -> None:
    bindings: Any = torch._C
    bindings._set_fp32_precision_setter("mkldnn", "matmul", precision)
