"""Fields of a search spec that take registered things: by name, by key, or the thing itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from tnc.decide.options import Choice, options_model, unknown, validated
from tnc.decide.spec_problems import problem
from tnc.explore.space import BONDS
from tnc.searching.target import Target, kind_of, targets


@dataclass(frozen=True, eq=False)
class Named(Choice):
    """Annotate a field as `Choice` does, that also takes `{tnale: {radius: 2}}`."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        schema = super().__get_pydantic_core_schema__(source, handler)
        return core_schema.no_info_plain_validator_function(
            self._chosen, serialization=schema.get("serialization")
        )

    def _chosen(self, value: Any) -> Any:
        if not isinstance(value, Mapping) or "kind" in value or len(value) != 1:
            return validated(self.registry, value)
        ((name, options),) = value.items()
        if name not in self.registry.all():
            told = unknown(self.registry.kind, str(name), self.registry.all())
            raise problem("unknown_key", told.message(), key=str(name))
        if not isinstance(options, Mapping | None):
            raise problem(
                "value", f"expected options of {name} as a map of keys, got {options!r}", key=name
            )
        with _inside(str(name)):
            return validated(self.registry, {"kind": name, **(options or {})})


@dataclass(frozen=True, eq=False)
class Keyed:
    """Annotate a target: the key of its name, beside its options, tells its kind."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        printer = core_schema.plain_serializer_function_ser_schema(lambda told: told.to_data())
        return core_schema.no_info_plain_validator_function(_target, serialization=printer)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        found = []
        for kind, thing in targets.all().items():
            model = handler(options_model(kind, thing).__pydantic_core_schema__)
            told = handler.resolve_ref_schema(model)
            own = {name: each for name, each in told["properties"].items() if name != "kind"}
            needed = [name for name in told.get("required", ()) if name != "kind"]
            found.append(
                {
                    "type": "object",
                    "properties": own,
                    "required": needed,
                    "additionalProperties": False,
                }
            )
        return {"anyOf": found}


def bonds(value: Any) -> Any:
    """Refuse anything but the name of a graph or a list of pairs."""
    names = ", ".join(BONDS)
    if isinstance(value, str) and value not in BONDS:
        raise unknown("graph", value, BONDS)
    if not isinstance(value, str | list | tuple):
        raise problem("value", f"expected a graph ({names}) or pairs of modes, got {value!r}")
    for pair in () if isinstance(value, str) else value:
        whole = isinstance(pair, list | tuple) and all(
            isinstance(mode, int) and not isinstance(mode, bool) and mode >= 0 for mode in pair
        )
        if not whole or len(pair) != 2:
            raise problem("value", f"expected pairs such as [[0, 1], [1, 2]], got {pair!r}")
    return value


def _target(value: Any) -> Target:
    if isinstance(value, Target):
        return value
    names = ", ".join(targets.all())
    if not isinstance(value, Mapping):
        raise problem("value", f"expected a target, such as {{file: x.npz}}, got {value!r}")
    kinds = kind_of(value)
    if len(kinds) != 1:
        told = (
            f"needs one of the keys {names}" if not kinds else f"is {' and '.join(kinds)} at once"
        )
        raise problem("value", f"a target {told}")
    found = validated(targets, {"kind": kinds[0], **value})
    assert is_dataclass(found)
    return found


class _inside:
    """Put the errors of a block below a key."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, ValidationError):
            details = [
                InitErrorDetails(
                    type=PydanticCustomError(each["type"], "{text}", each.get("ctx", {})),
                    loc=(self._key, *each["loc"]),
                    input=each["input"],
                )
                for each in error.errors(include_url=False)
            ]
            raise ValidationError.from_exception_data(error.title, details) from None
