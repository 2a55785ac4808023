"""First values of one weight's delta, without a model."""

from __future__ import annotations

import torch
from torch import Tensor

from tnc.adapters import Method, Parts, Start
from tnc.decide.site import Site, Use
from tnc.net import Signature


def site_of(*shape: int, op: str = "linear", outputs: int = 1) -> Site:
    """A weight whose map has this shape; `outputs` counts the output modes."""
    signature = Signature(shape[:outputs], shape[outputs:])
    return Site("fc.weight", ("fc.weight",), signature, "float64", (Use("fc", op, "module", 1),))


def parts_of(
    method: Method,
    weight: Tensor,
    site: Site | None = None,
    gradient: Tensor | None = None,
    moment: Tensor | None = None,
    original: Tensor | None = None,
    seed: int = 0,
) -> Parts:
    """Start a method from a weight and what was measured of it."""
    site = site or site_of(*weight.shape)
    assert not method.refuses(site)
    generator = torch.Generator().manual_seed(seed)
    structure = method.structure(site)
    return method.start(
        Start(site, structure, generator, lambda: weight, gradient, moment, original)
    )


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def best(matrix: Tensor, rank: int) -> Tensor:
    """The best approximation of a rank."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return (left[..., :rank] * values[..., None, :rank]) @ right[..., :rank, :]


def near(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> bool:
    """Whether two tensors are equal to a relative tolerance in the Frobenius norm."""
    a, b = a.detach(), b.detach()
    return float((a - b).norm()) <= tolerance * max(float(b.norm()), 1e-300)
