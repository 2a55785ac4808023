"""Second moments of what layers read before a rewrite and after it, from the same batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tnc.capture.batches import call
from tnc.capture.undisturbed import evaluating
from tnc.decide.group import Group
from tnc.decide.site import Site
from tnc.rewrite.fitting import weight_of
from tnc.rewrite.reading import Originals, input_at, rows_of, watched


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments of what a layer read in the original (x) and reads now (x'), with means.

    `cross` is E[x x'^T], `now` is E[x' x'^T], `was` is E[x x^T]; all (n, n), float64.
    """

    was: Tensor
    cross: Tensor
    now: Tensor
    mean_was: Tensor
    mean_now: Tensor
    rows: int


def stages(model: nn.Module, sites: Sequence[Site], batch: Any) -> list[list[Site]]:
    """Group the plain layers among sites by the tensor that they read, in order of execution."""
    plain = {site.path: site for site in sites if is_plain(model, site)}
    seen: list[tuple[Tensor, list[Site]]] = []

    def reader(site: Site) -> Callable[[Tensor], None]:
        def read(value: Tensor) -> None:
            for tensor, stage in seen:
                if tensor is value and site not in stage:
                    stage.append(site)
                    return
            seen.append((value, [site]))

        return read

    readers = {path: reader(site) for path, site in plain.items()}
    with torch.no_grad(), watched(model, readers):
        call(model, batch)
    return [stage for _, stage in seen]


def is_plain(model: nn.Module, site: Site) -> bool:
    """Whether a weight is that of one linear or convolution module, used once and real."""
    if not is_one_layer(site) or weight_of(model, Group((site,))).is_complex():
        return False  # the moments here are of real rows
    options = dict(site.options)  # patches know zeros around the image alone
    zeros = options.get("padding_mode", "zeros") == "zeros"
    return site.op == "linear" or (zeros and not isinstance(options.get("padding"), str))


def is_one_layer(site: Site) -> bool:
    """Whether one linear or convolution module, without groups, uses a weight in one call."""
    if len(site.uses) != 1 or len(site.aliases) != 1 or site.groups > 1:
        return False
    use = site.uses[0]
    return site.op in ("linear", "conv") and use.view == "module" and "+" not in use.reads


def moments_at(
    original: Originals, current: nn.Module, site: Site, batches: Sequence[Any], path: str = ""
) -> tuple[Moments, Moments, Moments]:
    """Return the moments of all rows, of a quarter held back, and of the other three.

    The layer is at the site's path in the original, in the current model at `path` where given.
    Products are of the rows' precision, sums of float64. The parts are whole batches where there
    are at least four.
    """
    held, rest = _Sums(), _Sums()
    for number, batch in enumerate(batches):
        with evaluating(current):
            was, now = (
                original.input(site.path, number),
                input_at(current, path or site.path, batch),
            )
        pairs = zip(
            rows_of(was, site, batch, len(batches)), rows_of(now, site, batch, len(batches))
        )
        for x, y in pairs:
            if len(batches) < 4:
                held.add(x[::4], y[::4])
                for start in (1, 2, 3):
                    rest.add(x[start::4], y[start::4])
            else:
                (rest if number % 4 else held).add(x, y)
    return _Sums.moments(held, rest), _Sums.moments(held), _Sums.moments(rest)


class _Sums:
    """Sums over rows: was, cross, now, and the sums of both sides; nothing grows with batches."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []
        self.rows = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows."""
        products = (x.T @ x, x.T @ y, y.T @ y, x.sum(0), y.sum(0))
        new = [product.double() for product in products]
        self.parts = [a + b for a, b in zip(self.parts, new)] if self.parts else new
        self.rows += len(x)

    @staticmethod
    def moments(*pools: _Sums) -> Moments:
        """Return the moments of all rows of several sums."""
        filled = [pool for pool in pools if pool.rows] or list(pools)
        rows = max(1, sum(pool.rows for pool in filled))
        was, cross, now, mean_was, mean_now = (
            torch.stack(parts).sum(0) / rows for parts in zip(*(pool.parts for pool in filled))
        )
        return Moments(was, cross, now, mean_was, mean_now, rows)
