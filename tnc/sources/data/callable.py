"""Batches that a function returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tnc.errors import SourceError
from tnc.sources.reference import find_function, user_code
from tnc.sources.source import Batch, DataSource, Loaded, Split, datas


@datas.register("callable")
@dataclass(frozen=True)
class CallableData(DataSource):
    """`function(loaded, split, **kwargs)`, named `pkg.mod:function`; calling it runs its code.

    It returns batches: mappings of keyword arguments, tuples of arguments, or single tensors.
    `split` is 'calibration' or 'held-out'.
    """

    function: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def batches(self, loaded: Loaded, split: Split = "calibration") -> list[Batch]:
        call = find_function(self.function)
        with user_code(self.function):
            made = list(call(loaded, split, **self.kwargs))
        found = [b if isinstance(b, Mapping | tuple) else (b,) for b in made]
        if not found:
            raise SourceError(
                f"no batches for {split}",
                where=self.function,
                hint="return at least one batch for 'calibration' and one for 'held-out'",
            )
        return found
