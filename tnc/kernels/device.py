"""Where kernels run, as prices and choices name it.

`cpu`, `cuda`, and `cuda-tf32`, where torch may round the factors of float32 products to tf32: what
torch is set to decides (`torch.backends.cuda.matmul`), never this package.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tnc.errors import KernelError

CPU, CUDA, TF32 = "cpu", "cuda", "cuda-tf32"
DEVICES = (CPU, CUDA, TF32)
CUBLAS = "cublas"
"""The one library of products on CUDA; torch picks its algorithms."""
DEFAULT = "mkl"
"""The library that torch multiplies with on the CPU unless it is told otherwise."""


def check_device(device: str) -> None:
    """Raise KernelError for a device that has no kernels."""
    if device not in DEVICES:
        raise KernelError(
            f"no kernels for the device {device!r}", hint=f"one of {', '.join(DEVICES)}"
        )


def standard(device: str) -> str:
    """Return the library that needs no switching on a device."""
    return DEFAULT if device == CPU else CUBLAS


def device_name(kind: str, dtype: str) -> str:
    """Name the device of a torch device type for products of a dtype, as torch is set now.

    Raises KernelError for a type that has no kernels.
    """
    check_device(kind)
    if kind == CPU or dtype != "float32":
        return CPU if kind == CPU else CUDA
    import torch

    bindings: Any = torch._C
    return TF32 if bindings._get_fp32_precision_getter("cuda", "matmul") == "tf32" else CUDA


def precision(device: str, dtype: str) -> str:
    """Say how products of float32 are rounded on CUDA; empty for all else."""
    if device == CPU or dtype != "float32":
        return ""
    return "factors rounded to tf32, as torch is set" if device == TF32 else "not rounded to tf32"


@cache
def gpu() -> str:
    """Return the name of the present GPU, 'no GPU here' where there is none."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU here"
