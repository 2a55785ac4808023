"""Parameters of any shape as matrices, and matrix functions that rules share."""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Literal

import torch
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of Muon's iteration (Jordan et al., 2024): steep at zero, within .7 to 1.2 soon."""


Precision = Literal["auto", "float32", "bfloat16"]

WORTHWHILE = 160
"""The shorter side from which products in bfloat16 are faster on a processor that has them: at 128
they take as long as those in float32 (Zen 4), at 64 twice as long."""


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the shape of the matrix that a parameter is read as, cut by `matrix_cut`.

    >>> matrix_shape((8, 3, 3, 3)), matrix_shape((4, 16, 4)), matrix_shape((5,))
    ((8, 27), (4, 64), (1, 5))
    """
    cut = matrix_cut(shape)
    return (prod(shape[:cut]), prod(shape[cut:]))


def matrix_cut(shape: tuple[int, ...]) -> int:
    """Return how many leading axes are the rows of the matrix that a parameter is read as.

    The one place that decides it. A matrix is itself, a vector one row. A kernel of a convolution
    (`is_kernel`) is outputs by all else, as in the papers of Shampoo, GaLore and Muon. Of other
    tensors, such as the cores `(r, o, s)` and `(r, o, i, s)` of trains, it is the cut between
    leading and trailing axes that is nearest to square, where they have most singular values.

    >>> matrix_cut((8, 3, 3, 3)), matrix_cut((4, 8, 8, 4)), matrix_cut((5,))
    (1, 2, 0)
    """
    if len(shape) < 2:
        return 0
    if is_kernel(shape):
        return 1
    return max(range(1, len(shape)), key=lambda cut: min(prod(shape[:cut]), prod(shape[cut:])))


def is_kernel(shape: tuple[int, ...]) -> bool:
    """Whether a parameter has the shape of a convolution's kernel, (out, in, side, side).

    Two or three spatial axes of one length, no longer than there are outputs, which is odd and
    below 16; any length where there are three inputs, as in the patches of an image. For a core of
    a train may have two equal axes at its end. Kernels of one spatial axis, and others, are cut
    nearest to square: the same, unless outputs are fewer than places of the kernel.

    >>> is_kernel((64, 3, 7, 7)), is_kernel((192, 3, 16, 16)), is_kernel((16, 8, 16, 16))
    (True, True, False)
    """
    if len(shape) not in (4, 5) or len({*shape[2:]}) != 1:
        return False
    outputs, inputs, side = shape[:3]
    return side <= outputs and (inputs == 3 or (side % 2 == 1 and side < 16))


def as_matrix(tensor: Tensor) -> Tensor:
    """Return a tensor as its matrix: a view where the memory allows."""
    return tensor.reshape(matrix_shape(tuple(tensor.shape)))


def iterated_in(matrix: Tensor, precision: Precision) -> torch.dtype:
    """Return the type in which a matrix is iterated on.

    'float32' is the matrix's own type, which is that or more. 'auto' is bfloat16 for matrices in
    float32 on CUDA, and on processors of which torch says that they multiply in bfloat16 where the
    shorter side is `WORTHWHILE` or more; else it is 'float32'.
    """
    if precision == "bfloat16":
        return torch.bfloat16
    if precision == "float32" or matrix.dtype == torch.float64:
        return matrix.dtype
    if matrix.is_cuda:
        return torch.bfloat16
    large = min(matrix.shape[-2:]) >= WORTHWHILE
    return torch.bfloat16 if large and _multiplies_bfloat16() else matrix.dtype


@cache
def _multiplies_bfloat16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def newton_schulz(
    matrix: Tensor,
    iterations: int = 5,
    coefficients: tuple[float, float, float] = QUINTIC,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return approximately `U V^T` of a matrix `U S V^T`, by odd polynomials.

    `X <- a X + (b X X^T + c (X X^T)^2) X` from `X / |X|_F`. With the coefficients of Muon singular
    values above about .0015 of the norm end within .68 to 1.16. Runs in `dtype`, by default the
    matrix's own.
    """
    a, b, c = coefficients
    dtype = dtype or matrix.dtype
    found = matrix.to(dtype)
    tall = found.shape[-2] > found.shape[-1]
    found = found.mT if tall else found
    found = found / (found.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    shape = found.shape
    if found.dim() > 2:
        found = found.reshape(shape[:-2].numel(), *shape[-2:])
    add = torch.addmm if found.dim() == 2 else torch.baddbmm  # the former is faster in bfloat16
    for _ in range(iterations):
        gram = found @ found.mT
        found = add(found, add(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    found = found.reshape(shape)
    result: Tensor = (found.mT if tall else found).to(matrix.dtype)
    return result
