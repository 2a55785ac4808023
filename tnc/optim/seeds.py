"""Random directions in the space of parameters from seeds, and which parameters they fit.

A direction is drawn anew from its seed whenever it is needed, for every parameter from a seed of
its own, on the parameter's device and in its type. It lives in the space of those parameters: the
same seed is another direction, of another meaning, where a weight has become cores.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tnc.errors import BindError

_MASK = 2**64 - 1


def mixed(*numbers: int) -> int:
    """Return one seed of several numbers, from 0 to 2^63 - 1 (the finaliser of splitmix64).

    >>> mixed(1, 2) == mixed(1, 2), mixed(1, 2) == mixed(2, 1)
    (True, False)
    """
    found = 0
    for number in numbers:
        found = (found + number + 0x9E3779B97F4A7C15) & _MASK
        found = ((found ^ (found >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        found = ((found ^ (found >> 27)) * 0x94D049BB133111EB) & _MASK
        found ^= found >> 31
    return found >> 1


def direction(parameter: Tensor, seed: int, place: int) -> Tensor:
    """Return the standard normal direction of a parameter, the `place`-th, under a seed."""
    generator = torch.Generator(device=parameter.device).manual_seed(mixed(seed, place))
    return torch.randn(
        parameter.shape, generator=generator, dtype=parameter.dtype, device=parameter.device
    )


@dataclass(frozen=True)
class Layout:
    """The parameters that directions were drawn for, in order."""

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    device: str

    @classmethod
    def of(cls, parameters: Iterable[Tensor]) -> Layout:
        """Describe parameters. Their devices must be of one type."""
        held = list(parameters)
        devices = sorted({parameter.device.type for parameter in held})
        if len(devices) != 1:
            raise BindError(f"the parameters are on devices of {len(devices)} types: {devices}")
        shapes = tuple(tuple(parameter.shape) for parameter in held)
        dtypes = tuple(str(parameter.dtype).removeprefix("torch.") for parameter in held)
        return cls(shapes, dtypes, devices[0])

    @classmethod
    def read(cls, given: dict[str, Any]) -> Layout:
        """Read what `written` gave."""
        shapes = tuple(tuple(int(size) for size in shape) for shape in given["shapes"])
        return cls(shapes, tuple(given["dtypes"]), str(given["device"]))

    def written(self) -> dict[str, Any]:
        """Return plain lists, strings and numbers."""
        return asdict(self)

    def check(self, parameters: Sequence[Tensor]) -> None:
        """Raise BindError where directions of this layout do not fit parameters."""
        other = Layout.of(parameters)
        if self == other:
            return
        if len(self.shapes) != len(other.shapes):
            what = f"{len(self.shapes)} parameters and these are {len(other.shapes)}"
        elif self.shapes != other.shapes:
            place = next(
                k for k, pair in enumerate(zip(self.shapes, other.shapes)) if pair[0] != pair[1]
            )
            what = f"shape {self.shapes[place]} and this one has shape {other.shapes[place]}"
        elif self.dtypes != other.dtypes:
            what = f"{self.dtypes[0]} and these are {other.dtypes[0]}"
        else:
            what = f"{self.device} and these are on {other.device}"
        raise BindError(
            f"the log was recorded on {what}",
            where="parameters of a zeroth-order log",
            hint="a random direction lives in the space of its parameters: replay the log on the "
            "dense model that it was recorded on, before weights become cores, and convert then",
        )
