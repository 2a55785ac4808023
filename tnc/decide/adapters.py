"""The adapters that a spec asks for: which weights get which method, under which budget.

A method is written as other choices are: `lora`, `lora{rank=8}`, `{kind: lora, rank: 8}`; `none` is
for weights that are left alone. Names alone are checked without torch, options by the method.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from tnc.decide.option_text import print_form
from tnc.decide.options import as_mapping, mapping_of, text_schema, unknown, validated
from tnc.decide.part import Part, Patterns
from tnc.decide.pipeline import shipped
from tnc.decide.spec_fields import Amount, Flag, OneOrMore, Whole, not_empty
from tnc.decide.spec_problems import problem
from tnc.registry import Registry, normalise

methods: Registry[type[Any]] = Registry("adapter", "tnc.adapters.methods")

NONE = "none"
"""The word for weights that are left alone."""

DEFAULT = "default"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def names() -> tuple[str, ...]:
    """Name the methods that come with tnc, without importing them."""
    return shipped(methods.folder)


def checked(value: Any) -> str:
    """Return the text form of a method given as text or mapping; for pydantic to locate errors.

    Options that are written stay written, also where they are the defaults.
    """
    options = _mapping(value)
    kind = options["kind"] = normalise(str(options["kind"]))
    if kind == NONE:
        if len(options) > 1:
            raise problem("value", "weights that are left alone have no options")
        return NONE
    if kind not in names() and kind not in methods.all():
        raise unknown("adapter", kind, {*names(), *methods.all(), NONE})
    if len(options) > 1:
        validated(methods, options)
    return print_form(options)


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, str | Mapping) and type(value) in methods.all().values():
        return as_mapping(methods, value)
    needs = f"an adapter needs a 'kind': one of {', '.join(names())}"
    return mapping_of(value, "an adapter such as lora{rank=8}", needs)


def _schema() -> dict[str, Any]:
    known = [*names(), NONE]
    by_kind = {"type": "object", "properties": {"kind": {"enum": known}}}
    return {"anyOf": [text_schema(known), {**by_kind, "required": ["kind"]}]}


class _MethodText:
    """The schema of a method, made when it is asked for: plug-ins may come after."""

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        return _schema()


MethodText = Annotated[str, BeforeValidator(checked), _MethodText()]


class AdapterRule(Part):
    """Which weights get which method; the first rule that matches one decides.

    `match` are patterns of layers' paths. A rule that matches nothing, or only what rules before
    it took, is an error unless `allow_empty`. Weights of fewer parameters than `min_params` are
    left alone.
    """

    match: Patterns
    op: Literal["linear", "conv", "embedding", "experts", "spectral"] | None = None
    method: MethodText
    min_params: Whole = 0
    allow_empty: Flag = False


def _named(name: str) -> str:
    if not _NAME.fullmatch(name):
        told = "a name begins with a letter; then letters, digits, - and _ follow"
        raise problem("value", f"{told}: not {name!r}")
    return name


class AdapterSpec(Part):
    """One adapter: its rules, its budget, and what is trained beside it.

    Under a `budget` of trained parameters (a fraction of the model's, or a whole number) the ranks
    that no rule writes are chosen weight by weight, such that most gradient energy is kept: the sum
    of the squared singular values of the mean gradient that the ranks reach. `train` are patterns
    of parameters that are trained beside the adapter, such as a new head; they count in no budget.
    """

    name: Annotated[str, AfterValidator(_named)] = DEFAULT
    rules: Annotated[tuple[AdapterRule, ...], AfterValidator(not_empty)] = Field(
        json_schema_extra={"minItems": 1}
    )
    train: Annotated[tuple[str, ...], OneOrMore()] = ()
    budget: Amount | None = None


def listed(value: Any) -> Any:
    """Bring the short forms into a list of adapters: a method alone, one adapter alone."""
    if isinstance(value, list | tuple):
        return tuple(_whole(item) for item in value)
    return (_whole(value),)


def _whole(value: Any) -> Any:
    short = isinstance(value, str) or type(value) in _instances(value)
    if isinstance(value, Mapping):
        keyed = len(value) == 1 and not set(value) & set(AdapterSpec.model_fields)
        short = "kind" in value or (
            keyed and isinstance(next(iter(value.values())), Mapping | None)
        )
    return {"rules": ({"match": "*", "method": value},)} if short else value


def _instances(value: Any) -> Iterable[type[Any]]:
    """Return the classes of methods, where a value may be one: plain data import nothing."""
    plain = value is None or isinstance(value, Mapping | AdapterSpec | int | float | list | tuple)
    return () if plain else methods.all().values()


def _distinct(value: tuple[AdapterSpec, ...]) -> tuple[AdapterSpec, ...]:
    seen = [adapter.name for adapter in not_empty(value)]
    twice = sorted({name for name in seen if seen.count(name) > 1})
    if twice:
        raise problem("value", f"two adapters are named {twice[0]!r}: give each a name of its own")
    return value


class _AdaptersSchema:
    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        many = handler(core)
        return {"anyOf": [*_schema()["anyOf"], many["items"], {**many, "minItems": 1}]}


AdaptersSpec = Annotated[
    tuple[AdapterSpec, ...],
    BeforeValidator(listed),
    AfterValidator(_distinct),
    _AdaptersSchema(),
]
"""A method, an adapter, or a list of adapters with names."""
