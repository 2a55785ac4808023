"""What others do to a convolution at a given share of its parameters, at uniform ranks."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Rival = Callable[[nn.Conv2d, float], tuple[Tensor, int] | None]
"""Return the rebuilt weight and the parameters of a decomposition within a share; None: dense."""


def uniform(model: nn.Module, rival: Rival, share: float) -> tuple[nn.Module, float]:
    """Rebuild every convolution at one share, so that the whole model is within `share`."""
    total = sum(p.numel() for p in model.parameters())
    low, high, best = 0.0, 1.0, None
    for _ in range(7):
        middle = (low + high) / 2
        made, held = _at(model, rival, middle)
        if held <= share * total:
            low, best = middle, (made, held / total)
        else:
            high = middle
    if best is None:
        raise SystemExit(f"no uniform rank fits into {share:.0%}")
    return best


def _at(model: nn.Module, rival: Rival, share: float) -> tuple[nn.Module, int]:
    made = copy.deepcopy(model)
    held = sum(p.numel() for p in model.parameters())
    for module in made.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels > 3:
            found = rival(module, share)
            if found is not None:
                weight, count = found
                held += count - module.weight.numel()
                module.weight.data.copy_(weight)
    return made, held


def svd(conv: nn.Conv2d, share: float) -> tuple[Tensor, int] | None:
    """Truncate the singular values of the output unfolding."""
    weight = conv.weight.detach()
    flat = weight.flatten(1)
    rank = max(1, int(share * weight.numel() / sum(flat.shape)))
    if rank * sum(flat.shape) >= weight.numel():
        return None
    u, s, v = torch.linalg.svd(flat, full_matrices=False)
    return ((u[:, :rank] * s[:rank]) @ v[:rank]).view_as(weight), rank * sum(flat.shape)


def factorized(kind: str) -> Rival:
    """Return tensorly-torch's factorized convolution of a kind at a share of the parameters."""

    def rival(conv: nn.Conv2d, share: float) -> tuple[Tensor, int] | None:
        import tensorly
        from tltorch import FactorizedConv

        tensorly.set_backend("pytorch")
        torch.manual_seed(0)
        weight = conv.weight.detach()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = FactorizedConv.from_conv(
                conv,
                rank=share,
                decompose_weights=True,
                factorization=kind,
                implementation="factorized",
            )
        held = sum(p.numel() for p in made.weight.parameters())
        if held >= weight.numel():
            return None
        return made.weight.to_tensor().detach().view_as(weight), held

    return rival


def tucker2(conv: nn.Conv2d, share: float) -> tuple[Tensor, int] | None:
    """Decompose both channel modes by tensorly's partial Tucker at evenly scaled ranks."""
    import tensorly
    from tensorly.decomposition import partial_tucker

    tensorly.set_backend("pytorch")
    weight = conv.weight.detach()
    ranks, held = _tucker_ranks(weight.shape, share)
    if held >= weight.numel():
        return None
    (core, factors), _ = partial_tucker(weight, rank=ranks, modes=[0, 1])
    return torch.einsum("abhw,oa,ib->oihw", core, *factors), held


def _tucker_ranks(shape: Sequence[int], share: float) -> tuple[list[int], int]:
    o, i, h, w = shape
    best = ([1, 1], o + i + h * w)
    for step in range(1, max(o, i) + 1):
        a, b = max(1, o * step // max(o, i)), max(1, i * step // max(o, i))
        held = o * a + i * b + a * b * h * w
        if held <= share * o * i * h * w:
            best = ([a, b], held)
    return best


CONVOLUTIONS: dict[str, Rival] = {
    "uniform SVD": svd,
    "tensorly Tucker-2, uniform": tucker2,
    "tensorly-torch Tucker, uniform": factorized("tucker"),
    "tensorly-torch CP, uniform": factorized("cp"),
    "tensorly-torch TT, uniform": factorized("tt"),
}
"""The rivals by name. The convolution of three input channels stays dense."""
