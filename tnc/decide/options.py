"""Options: any registered frozen dataclass as text, as a mapping, as a pydantic model.

The fields of the dataclass are its options in Python, in the spec and on the command line; nobody
writes them a second time. `Choice(registry)` annotates a field of a spec that takes any registered
thing, plug-ins included: `low-rank`, `tucker{factors=2}`, `{kind: tucker, factors: 2}`, or the
instance itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
    create_model,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from tnc.decide.option_text import SUM, OptionText, parse_form, print_form
from tnc.decide.spec_problems import (
    Problem,
    SpecProblems,
    nearest,
    problem,
    problems_of,
    tell,
)
from tnc.errors import TncError
from tnc.registry import Registry, normalise

T = TypeVar("T")


@cache
def options_model(kind: str, thing: Any) -> type[BaseModel]:
    """Make the pydantic model of a frozen dataclass: `kind` and its fields, nothing else.

    >>> from tnc.structures import families
    >>> sorted(options_model("tucker", families.get("tucker")).model_fields)
    ['factors', 'kind', 'spatial']
    """
    hints = get_type_hints(thing)
    slots: dict[str, Any] = {"kind": (Literal[kind], ...)}
    for field in fields(thing):
        hints[field.name] = _nested(hints[field.name])
        default = field.default if field.default is not MISSING else ...
        if field.default_factory is not MISSING:
            slots[field.name] = (hints[field.name], Field(default_factory=field.default_factory))
        else:
            slots[field.name] = (hints[field.name], default)
    config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    doc = (thing.__doc__ or "").strip().split("\n")[0]
    return create_model(thing.__name__, __config__=config, __doc__=doc, **slots)


def build(registry: Registry[type[T]], value: Any) -> T:
    """Return the thing that a text, a mapping with a `kind` or an instance stands for.

    >>> from tnc.structures import families
    >>> build(families, "tucker{factors=2}")
    Tucker(factors=2, spatial=False)

    Raises SpecProblems.
    """
    try:
        return validated(registry, value)
    except ValidationError as error:
        raise SpecProblems(problems_of(error)) from None
    except PydanticCustomError as error:
        raise SpecProblems([Problem((), error.type, error.message())]) from None


def validated(registry: Registry[type[T]], value: Any) -> T:
    """Build within a pydantic validator: errors are pydantic's, their places relative to `value`.

    Raises ValidationError or PydanticCustomError.
    """
    if is_dataclass(value) and not isinstance(value, type):
        kind_of(registry, value)
        return value  # type: ignore[return-value]
    options = _mapping(registry, value)
    kind = normalise(options["kind"])
    things = registry.all()
    if kind not in things:
        raise _unknown_kind(registry, str(options["kind"]), nested=isinstance(value, Mapping))
    thing: Any = things[kind]
    given = _checked(options_model(kind, thing), {**options, "kind": kind})
    try:
        return thing(**given)  # type: ignore[no-any-return]
    except TncError as error:
        raise problem("refused", "; ".join(filter(None, (error.message, error.hint)))) from error


def kind_of(registry: Registry[type[T]], thing: Any) -> str:
    """Return the registered name of an instance's class."""
    for name, known in registry.all().items():
        if type(thing) is known:
            return name
    raise problem("unknown_kind", f"{type(thing).__name__} is no registered {registry.kind}")


def as_mapping(registry: Registry[type[T]], thing: T) -> dict[str, Any]:
    """Write an instance as plain data: `kind`, then every option that is not at its default."""
    plain: dict[str, Any] = {"kind": kind_of(registry, thing)}
    for field in fields(thing):  # type: ignore[arg-type]
        value = getattr(thing, field.name)
        default = field.default_factory() if callable(field.default_factory) else field.default
        if value != default:
            plain[field.name] = _plain(value, registry)
    return plain


def as_plain(registry: Registry[type[T]], thing: T) -> str | dict[str, Any]:
    """Write an instance as a spec does: its name or sum where that says all, else the mapping."""
    plain = as_mapping(registry, thing)
    return plain if len(plain) > 1 and plain["kind"] != SUM else print_form(plain)


def print_option(registry: Registry[type[T]], thing: T) -> str:
    """Write an instance in the text form.

    >>> from tnc.structures import families
    >>> print_option(families, build(families, {"kind": "tucker", "factors": 2}))
    'tucker{factors=2}'
    """
    return print_form(as_mapping(registry, thing))


@dataclass(frozen=True, eq=False)
class Choice:
    """Annotate a field that takes any thing of a registry; see the module's text."""

    registry: Registry[Any]
    nested: bool = False
    """Whether the thing is itself an option of one, so that its schema names no options."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        printer = core_schema.plain_serializer_function_ser_schema(
            lambda thing: as_plain(self.registry, thing)
        )
        return core_schema.no_info_plain_validator_function(
            lambda value: validated(self.registry, value), serialization=printer
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        if self.nested:
            return {"anyOf": [text_schema(self.registry.all()), {"type": "object"}]}
        models = [options_model(kind, thing) for kind, thing in self.registry.all().items()]
        union: Any = Annotated[Union[tuple(models)], Field(discriminator="kind")]  # noqa: UP007
        one = TypeAdapter(union if len(models) > 1 else models[0])
        options: dict[str, Any] = {}
        for kind, model in zip(self.registry.all(), models):
            told = handler.resolve_ref_schema(handler(model.__pydantic_core_schema__))
            own = told.get("properties", {})
            options[kind] = {
                "type": ["object", "null"],
                "properties": {name: each for name, each in own.items() if name != "kind"},
                "additionalProperties": False,
            }
        keyed = {
            "type": "object",
            "minProperties": 1,
            "maxProperties": 1,
            "properties": options,
            "additionalProperties": False,
        }
        return {"anyOf": [text_schema(self.registry.all()), handler(one.core_schema), keyed]}


def text_schema(names: Any) -> dict[str, Any]:
    """Return the JSON schema of the text form of things with these names."""
    joined = "|".join(sorted(names))
    one = rf"({joined})(\{{.*\}})?"
    more = rf"( \+ {one})*" if SUM in names else ""
    return {"type": "string", "pattern": rf"^{one}{more}$"}


def _nested(hint: Any) -> Any:
    """Give a field that holds one or several registered things the choice of their registry."""
    inner = get_args(hint)[:1] if get_origin(hint) is tuple else (hint,)
    base = inner[0] if inner and isinstance(inner[0], type) else None
    registry = getattr(base, "registry", None)
    if base is None or registry is None:
        return hint
    choice: Any = Annotated[base, Choice(registry(), nested=True)]
    return choice if base is hint else tuple[choice, ...]


def _checked(model: type[BaseModel], options: dict[str, Any]) -> dict[str, Any]:
    """Check options strictly, as JSON: lists become tuples, but `"2"` is no number."""
    names = [name for name in model.model_fields if name != "kind"]
    try:
        checked = model.model_validate_json(json.dumps(options, default=str), strict=True)
    except ValidationError as error:
        raise tell(error, names) from None
    return {name: getattr(checked, name) for name in names}


def _mapping(registry: Registry[Any], value: Any) -> dict[str, Any]:
    names, what = ", ".join(registry.all()), f"a {registry.kind}"
    return mapping_of(value, f"{what} ({names})", f"{what} needs a 'kind': one of {names}")


def mapping_of(value: Any, expected: str, needs: str) -> dict[str, Any]:
    """Return `kind` and options of a thing written as text or as a mapping.

    Raises a problem that says what is `expected`, or what a mapping without a kind `needs`.
    """
    if isinstance(value, str):
        try:
            return parse_form(value)
        except OptionText as error:
            raise problem("option_text", str(error)) from error
    if not isinstance(value, Mapping):
        raise problem("choice", f"expected {expected}, got {value!r}")
    if len(value) == 1 and "kind" not in value:
        ((name, options),) = value.items()
        if isinstance(name, str) and isinstance(options, Mapping | None):
            return {"kind": name, **(options or {})}
    if not isinstance(value.get("kind"), str):
        raise problem("no_kind", needs)
    return dict(value)


def _unknown_kind(registry: Registry[Any], name: str, nested: bool) -> PydanticCustomError:
    return unknown(registry.kind, name, registry.all(), key="kind" if nested else "")


def unknown(what: str, name: str, names: Any, key: str = "") -> PydanticCustomError:
    """Return the error for a name that is none of `names`; `key` is where it is written."""
    near = nearest(normalise(name), names)
    guess = f"did you mean {near!r}?" if near else f"there are: {', '.join(sorted(names))}"
    return problem("unknown_kind", f"no {what} is named {name!r}; {guess}", key=key)


def _plain(value: Any, registry: Registry[Any]) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item, registry) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item, registry) for item in value]
    if is_dataclass(value) and hasattr(value, "registry"):
        registry = value.registry()
    if is_dataclass(value) and type(value) in registry.all().values():
        return as_plain(registry, value)
    return value
