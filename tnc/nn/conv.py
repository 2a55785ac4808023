"""A convolution's options, axis by axis, and those of one call of the library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn import functional

from tnc.errors import KernelError


@dataclass(frozen=True)
class Call:
    """One call of the library: a convolution, or where it is `turned` a transposed one.

    The weight is (o, i / groups, ..), where it is turned (i, o / groups, ..).
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    extra: tuple[int, ...]
    groups: int
    turned: bool
    on: tuple[bool, ...]
    """Along which axes the weight has a kernel."""

    def sized(self, extra: tuple[int, ...]) -> Call:
        """Return the call for another size of the result of a transposed convolution."""
        if not self.turned:
            return self
        return replace(self, extra=tuple(e if used else 0 for e, used in zip(extra, self.on)))


@dataclass(frozen=True)
class Options:
    """A convolution's options with one number for each of its kernel axes.

    `pad` is done before, as `functional.pad` takes it, in `mode`; `padding` by the convolution.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    extra: tuple[int, ...]
    groups: int
    transposed: bool
    pad: tuple[int, ...]
    mode: str

    @property
    def n(self) -> int:
        """The number of kernel axes."""
        return len(self.kernel)

    def sizes(self, given: Sequence[int]) -> tuple[int, ...]:
        """Return the size of the result along every axis, for an input that was `prepared`."""
        axes = zip(given, self.kernel, self.stride, self.padding, self.dilation, self.extra)
        if self.transposed:
            return tuple((m - 1) * s - 2 * p + d * (k - 1) + 1 + e for m, k, s, p, d, e in axes)
        return tuple((m + 2 * p - d * (k - 1) - 1) // s + 1 for m, k, s, p, d, _ in axes)

    def sized(self, given: Sequence[int], wanted: tuple[int, ...]) -> Options:
        """Return options whose results have the `wanted` size for inputs of a `given` shape.

        Only a transposed convolution can choose. Raises KernelError for sizes out of reach.
        """
        sizes = given[-self.n :]
        least = [
            (m - 1) * s - 2 * p + d * (k - 1) + 1
            for m, s, p, d, k in zip(sizes, self.stride, self.padding, self.dilation, self.kernel)
        ]
        extra = tuple(want - low for want, low in zip(wanted[-self.n :], least))
        if len(wanted) < self.n or any(not 0 <= e < s for e, s in zip(extra, self.stride)):
            raise KernelError(
                f"an output_size of {tuple(wanted)} from an input of {tuple(sizes)}",
                hint=f"sizes from {tuple(least)}, less than the stride {self.stride} more",
            )
        return replace(self, extra=extra)

    def prepared(self, x: Tensor) -> Tensor:
        """Apply the padding that the convolution cannot."""
        return functional.pad(x, self.pad, mode=self.mode) if self.pad else x

    def call(self, groups: int, on: tuple[bool, ...] = ()) -> Call:
        """Return the call for a weight with a kernel along the axes that are `on`, or all."""
        here = on or (True,) * self.n
        stride, padding, dilation, extra = (
            tuple(value if used else none for value, used in zip(values, here))
            for values, none in (
                (self.stride, 1),
                (self.padding, 0),
                (self.dilation, 1),
                (self.extra, 0),
            )
        )
        turned = self.transposed and any(here)
        return Call(stride, padding, dilation, extra, groups, turned, here)
