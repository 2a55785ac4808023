"""Check the plain data of a plan before it becomes one: a wrong field is named with its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tnc.errors import PlanError

_TOLD = {
    "int": "a whole number",
    "float": "a number",
    "float | None": "a number or null",
    "str": "text",
}
_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "str": (str,),
}


def check_fields(kind: type, data: Any, place: str = "") -> None:
    """Check the numbers and texts of a dataclass's plain form. Raises PlanError.

    `place` is the path of `data` in the plan, such as `entries.3`.
    """
    if not isinstance(data, Mapping):
        raise PlanError(f"not a plan: {place} is {data!r}, no map of keys")
    for name, field in kind.__dataclass_fields__.items():  # type: ignore[attr-defined]
        path = f"{place}.{name}" if place else name
        if name not in data:
            if name in ("measured", "background", "optimizer"):
                continue
            raise PlanError(f"not a plan: {path} is missing")
        known, value = _KINDS.get(field.type), data[name]
        if known and (not isinstance(value, known) or isinstance(value, bool)):
            raise PlanError(f"not a plan: {path} is {value!r}, expected {_TOLD[field.type]}")
