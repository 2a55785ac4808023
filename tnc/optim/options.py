"""What the options of optimizers may be: types that say their range, and the check by them.

An option is annotated with its type: `lr: NonNegative`, `betas: Betas`, `norm: Literal["spectral",
"frobenius"]`, `limit: Annotated[float, Range(1)]`. Nothing else needs to be said of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from tnc.errors import BindError


@dataclass(frozen=True)
class Range:
    """Numbers from `low`, or above it where it is `open`, to `high`.

    >>> Range(0, 1).told(float), Range(1).told(int), Range(0, open=True).told(float)
    ('give 0 or more, 1 at most', 'give a whole number from 1', 'give more than 0')
    """

    low: float
    high: float = inf
    open: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number is of the range; what is not a number (nan) is of none."""
        return self.low <= value <= self.high and not (self.open and value == self.low)

    def told(self, kind: Any) -> str:
        """Say what to give."""
        if kind is int:
            upto = f" to {self.high:g}" if self.high < inf else ""
            return f"give a whole number from {self.low:g}{upto}"
        least = f"give more than {self.low:g}" if self.open else f"give {self.low:g} or more"
        return least + (f", {self.high:g} at most" if self.high < inf else "")


NonNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, open=True)]
Share = Annotated[float, Range(0, 1)]
Count = Annotated[int, Range(1)]
Betas = tuple[Share, Share]


def check_option(owner: str, name: str, value: Any, hint: Any) -> None:
    """Raise BindError for a value that is not of an option's type.

    >>> check_option("Lion", "lr", 0.1, NonNegative)
    """
    told = misfit(value, hint)
    if told:
        raise BindError(f"{owner}: {name} is {value!r}", hint=told)


def check_options(owner: str, options: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Raise BindError for the first of some options that is not of its type."""
    for name, hint in hints.items():
        if name in options:
            check_option(owner, name, options[name], hint)


def misfit(value: Any, hint: Any) -> str:
    """Say what to give in the place of a value that is not of a type; empty where it is.

    Numbers are taken as torch takes them: a tensor of one entry for a float, a list for a tuple.

    >>> misfit((0.9, 2.0), Betas), misfit(None, Share | None), misfit("a", Literal["b", "c"])
    ('give 0 or more, 1 at most', '', "give 'b' or 'c'")
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kind, *ranges = inner
        wrong = misfit(value, kind)
        if wrong:
            return ranges[0].told(kind) if ranges else wrong
        return next((each.told(kind) for each in ranges if not each.holds(float(value))), "")
    if origin is Literal:
        return "" if value in inner else _give(inner)
    if origin in (Union, UnionType):
        found = [misfit(value, each) for each in inner]
        return "" if "" in found else found[0]
    if origin is tuple:
        if not isinstance(value, tuple | list) or len(value) != len(inner):
            return f"give {len(inner)} values"
        return next(filter(None, map(misfit, value, inner)), "")
    return _plain_misfit(value, hint if origin is None else origin)


def _give(choices: tuple[Any, ...]) -> str:
    *most, last = (repr(each) for each in choices)
    return f"give {', '.join(most)} or {last}" if most else f"give {last}"


def _plain_misfit(value: Any, kind: Any) -> str:
    if kind is float:
        try:
            float(value)
        except (TypeError, ValueError, RuntimeError):
            return "give a number"
        return "give a number" if isinstance(value, str) else ""
    if kind is int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return "" if whole else "give a whole number"
    if kind is bool:
        return "" if value in (True, False) else "give True or False"
    if kind is NoneType or kind is None:
        return "" if value is None else "give None"
    if isinstance(kind, type):
        return "" if isinstance(value, kind) else f"give a {kind.__name__}"
    return ""


def without_ranges(hint: Any) -> Any:
    """Return a type as it is written without ranges, for signatures.

    >>> without_ranges(Betas), without_ranges(Count | None)
    (tuple[float, float], int | None)
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return without_ranges(inner[0])
    if origin in (Union, UnionType):
        found = without_ranges(inner[0])
        for each in inner[1:]:
            found = found | without_ranges(each)
        return found
    if origin is tuple:
        return tuple[tuple(map(without_ranges, inner))]  # type: ignore[misc]
    return hint
