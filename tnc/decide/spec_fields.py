"""Field types of a spec that pydantic does not have: one or more, amounts, passes."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Annotated, Any

from pydantic import BeforeValidator as Before
from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, WithJsonSchema
from pydantic_core import CoreSchema, core_schema

from tnc.decide.pipeline import canonical, schema
from tnc.decide.spec_problems import problem
from tnc.registry import Registry


@dataclass(frozen=True)
class OneOrMore:
    """Annotate a tuple that may be written as one value; `empty` is the word for no value."""

    empty: str = ""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._listed, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        many = handler(schema)
        word = [{"const": self.empty}] if self.empty else []
        return {"anyOf": [*word, many["items"], many]}

    def _listed(self, value: Any) -> Any:
        if self.empty and value == self.empty:
            return ()
        if not isinstance(value, list | tuple):
            return (value,)
        if self.empty and self.empty in value:
            raise problem(
                "value", f"{self.empty!r} is always a candidate; leave it out of the list"
            )
        return value


@dataclass(frozen=True)
class Ranks:
    """Annotate ranks by name, or the word 'full'."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        by_name = handler.generate_schema(dict[str, Rank])
        plain = core_schema.plain_serializer_function_ser_schema(lambda ranks: ranks)
        return core_schema.no_info_wrap_validator_function(_full, by_name, serialization=plain)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        by_name = {"type": "object", "additionalProperties": {"type": "integer", "minimum": 1}}
        return {"anyOf": [{"const": "full"}, by_name]}


def _full(value: Any, handler: Any) -> Any:
    if isinstance(value, str) and value != "full":
        told = "expected ranks by name such as {r: 64}, or 'full'"
        raise problem("value", f"{told}, got {value!r}")
    return value if value == "full" else handler(value)


@dataclass(frozen=True, eq=False)
class Step:
    """Annotate text that names a pass, or another registered step, with its options."""

    registry: Registry[type[Any]]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            lambda step: canonical(step, self.registry)
        )

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return schema(self.registry)


def not_empty(value: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse an empty list."""
    if not value:
        raise problem("value", "expected at least one entry, got none")
    return value


def stack_size(value: Any) -> Any:
    """Refuse anything but 2 or more layers, or the word 'all'."""
    number = isinstance(value, int) and not isinstance(value, bool)
    if value != "all" and not (number and value >= 2):
        raise problem("value", f"expected a number of layers, 2 or more, or 'all', got {value!r}")
    return value


def amount(value: Any) -> int | float:
    """Read a fraction of the dense value (0 < float <= 1) or an absolute number (above 1).

    >>> amount(0.5), amount(2e6), amount(1_000)
    (0.5, 2000000, 1000)
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and isinstance(value, float) and 0 < value <= 1:
        return value
    if number and 1 < value < inf and value == int(value):
        return int(value)
    told = "expected a fraction such as 0.5 (of the dense value) or a whole number above 1"
    if number and value == 1:
        raise problem("value", f"{told}, got 1: write 1.0 for all of it")
    raise problem("value", f"{told}, got {value!r}")


Amount = Annotated[
    int | float,
    Before(amount),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
                {"type": "integer", "exclusiveMinimum": 1},
            ]
        }
    ),
]
Whole = Annotated[int, Field(strict=True, ge=0)]
Rank = Annotated[int, Field(strict=True, ge=1)]
Positive = Annotated[float, Field(strict=True, gt=0)]
Multiple = Annotated[float, Field(strict=True, ge=0)]
Fraction = Annotated[float, Field(strict=True, gt=0, le=1)]
Flag = Annotated[bool, Field(strict=True)]
