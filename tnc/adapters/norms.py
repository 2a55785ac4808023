"""Norms of the rows of a changed weight, from its factors: the change is never made.

`|W + sum_k s_k B_k A_k|^2` of a row is `|W|^2 + 2 <W A^T, B> + B (A A^T) B^T` with the scales in B
and the factors stacked. `|W|^2` is remembered as long as W stays the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from tnc.adapters.products import Pairs, stacked
from tnc.nn.generated import is_plain

CANCELLED = 1e-2
"""Below this share of what its terms come to a squared norm has lost digits: made row by row."""

BLOCK = 1 << 20
"""Entries of a weight of few bits that are widened at once."""

SAMPLED = 64
"""Entries of a weight in memory of the processor that are looked at to tell whether it changed."""

_KNOWN: WeakIdKeyDictionary = WeakIdKeyDictionary()


@torch.no_grad()
def row_norms(weight: Tensor, pairs: Pairs, keys: Sequence[Tensor] = ()) -> Tensor:
    """Return the norm of every row of `weight + sum of pairs`, in the precision of the pairs.

    `weight` is a map `(o, i..)`, `keys` the stored tensors that it is made of, by whose changes its
    squares are remembered; without any they are computed anew. What compilers and transforms trace
    is the dense formula.
    """
    kind = weight.device.type
    if torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return row_norms(weight, pairs, keys)
    rows = weight.flatten(1)
    down, up, scale = stacked(pairs)
    down, up = down.flatten(1), up * scale
    if not is_plain(kind):
        dense: Tensor = (rows + up @ down).norm(dim=1)
        return dense
    squares = _remembered(keys, rows)
    crossed = _products(rows, down)
    cross = 2 * (crossed * up).sum(1, dtype=torch.float64)
    own = ((up @ (down @ down.t())) * up).sum(1, dtype=torch.float64)
    total = squares + cross + own
    lost = total <= CANCELLED * (squares + own)
    if bool(lost.any()):
        places = lost.nonzero().squeeze(1)
        whole = rows[places].to(torch.float64) + up[places].double() @ down.double()
        total[places] = whole.square().sum(1)
    return total.clamp_min_(0).sqrt_().to(down.dtype)


def _remembered(keys: Sequence[Tensor], rows: Tensor) -> Tensor:
    """Return the sum of squares of every row, float64."""
    if not keys or any(key.is_inference() for key in keys):
        return _squares(rows)
    state = tuple((key._version, key.data_ptr(), _sampled(key)) for key in keys)
    known = _KNOWN.get(keys[0])  # type: ignore[no-untyped-call]
    if known is None or known[0] != state or known[1].device != rows.device:
        known = _KNOWN[keys[0]] = (state, _squares(rows))
    found: Tensor = known[1]
    return found


def _sampled(key: Tensor) -> float:
    """Return a sum of some entries, which tells of writes that count no version (`p.data`)."""
    if not key.is_cpu or not key.is_contiguous():
        return 0.0
    flat = key.detach().view(-1)
    return float(flat[:: max(1, flat.numel() // SAMPLED)].double().sum())


def _squares(rows: Tensor) -> Tensor:
    return _by_blocks(rows, lambda block: block.double().square().sum(1))


def _products(rows: Tensor, down: Tensor) -> Tensor:
    """Return `rows down^T` in the precision of `down`."""
    if rows.dtype == down.dtype:
        return rows @ down.t()
    return _by_blocks(rows, lambda block: block.to(down.dtype) @ down.t())


def _by_blocks(rows: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what is made of the rows, from blocks of them."""
    count = max(1, BLOCK // max(1, rows.shape[1]))
    return torch.cat([make(block) for block in torch.split(rows, count)])
