"""The optimizer that a spec asks for: rules for groups of parameters, first match wins.

A rule is written as other choices are: `muon`, `muon{lr=0.02}`, `{kind: muon, lr: 0.02}`. Its name
is that of a rule of `tnc.optim` or of an optimizer of `torch.optim`. Names alone are checked
without torch; options are checked by the rule itself.
"""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Self, Union, get_args, get_origin, get_type_hints

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    create_model,
    model_validator,
)

from tnc.decide.option_text import parse_form, print_form
from tnc.decide.options import mapping_of, unknown
from tnc.decide.part import Part, Patterns
from tnc.decide.pipeline import shipped
from tnc.decide.spec_fields import Flag
from tnc.decide.spec_problems import problem, tell
from tnc.errors import TncError
from tnc.registry import Registry, normalise

rules: Registry[type[Any]] = Registry("optimizer", "tnc.optim.rules")

TORCH = (
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "asgd",
    "nadam",
    "radam",
    "rmsprop",
    "rprop",
    "sgd",
)
"""Optimizers of `torch.optim` whose state can follow its parameters, by name."""

CLASSES = ("matrices", "vectors", "cores", "embeddings")
"""Words that stand for parameters of a shape or a place; any other pattern is of names.

matrices: of two axes or more; vectors: of fewer; cores: those of structured layers; embeddings:
tables that are looked up.
"""


def names() -> tuple[str, ...]:
    """Name the rules that come with tnc and those of torch.optim, without importing them."""
    return tuple(sorted({*shipped(rules.folder), *TORCH}))


def class_of(name: str) -> type[Any]:
    """Return the optimizer class that a rule's name stands for. This imports torch.

    Raises UnknownName.
    """
    import torch

    if name in TORCH:
        found: type[Any] = next(k for key, k in vars(torch.optim).items() if key.lower() == name)
        return found
    return rules.get(name)


def checked(value: Any) -> str:
    """Return the text form of a rule given as text or mapping; for pydantic to locate errors."""
    options = _mapping(value)
    kind = options["kind"] = normalise(str(options["kind"]))
    if kind not in names() and kind not in rules.all():
        raise unknown("optimizer", kind, {*names(), *rules.all()})
    if len(options) > 1:
        _check_options(kind, {name: own for name, own in options.items() if name != "kind"})
    return print_form(options)


def options_of(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the options of a rule's text form, lists as tuples."""
    found = parse_form(text)
    kind = str(found.pop("kind"))
    return kind, {name: tuple(v) if isinstance(v, list) else v for name, v in found.items()}


def _mapping(value: Any) -> dict[str, Any]:
    needs = f"an optimizer needs a 'kind': one of {', '.join(names())}"
    return mapping_of(value, "an optimizer such as adamw{lr=0.001}", needs)


def _check_options(kind: str, options: dict[str, Any]) -> None:
    """Check options by the types that the class declares, then by what it says of their values.

    A rule of `tnc.optim` says so itself (`check`). One of `torch.optim` is made with them, on a
    small parameter.
    """
    import torch

    made = class_of(kind)
    model = _options_model(kind, made)
    try:
        model.model_validate_json(json.dumps(options, default=str), strict=True)
    except ValidationError as error:
        raise tell(error, list(model.model_fields)) from None
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
    try:
        if hasattr(made, "check"):
            made.check(given)
        else:
            made([torch.nn.Parameter(torch.zeros(2, 2))], **given)
    except TncError as error:
        told = "; ".join(filter(None, (error.message, error.hint)))
        raise problem("refused", f"{kind}: {told}") from error
    except (ValueError, TypeError, RuntimeError) as error:
        raise problem("refused", f"{kind}: {error}") from error


def needed(kind: type[Any], model: Any) -> dict[str, Any]:
    """Return the arguments that a rule takes beside parameters and options."""
    return {name: model for name in getattr(kind, "needs", ()) if name == "model"}


def _options_model(kind: str, made: type[Any]) -> type[BaseModel]:
    hints = get_type_hints(made.__init__)
    declared = made.options() if hasattr(made, "options") else None
    slots: dict[str, Any] = {}
    for name, parameter in inspect.signature(made).parameters.items():
        if name == "params" or (declared is not None and name not in declared):
            continue
        hint = _plain(hints.get(name, parameter.annotation))
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        slots[name] = (hint, default)
    config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)
    made_model: type[BaseModel] = create_model(kind, __config__=config, **slots)
    return made_model


def _plain(hint: Any) -> Any:
    """Leave tensors and functions out of a type: a spec holds numbers and names."""
    import torch

    if get_origin(hint) in (Union, types.UnionType):
        inner = [each for each in get_args(hint) if get_origin(each) is not Callable]
        kept = tuple(each for each in map(_plain, inner) if each is not torch.Tensor)
        return Union[kept]  # noqa: UP007
    if get_origin(hint) is tuple:
        return tuple[tuple(map(_plain, get_args(hint)))]  # type: ignore[misc]
    return hint


def _schema() -> dict[str, Any]:
    """Say how a rule is written, not which there are: plug-ins add theirs without a new schema."""
    text = {"type": "string", "pattern": r"^[a-z][a-z0-9_-]*(\{.*\})?$"}
    by_kind = {"type": "object", "properties": {"kind": {"type": "string"}}, "required": ["kind"]}
    return {"anyOf": [text, by_kind]}


class _RuleText:
    """The schema of a rule."""

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        return _schema()


RuleText = Annotated[str, BeforeValidator(checked), _RuleText()]


class OptimizerGroup(Part):
    """Parameters that one rule trains: those that match and that no group before took.

    `match` are patterns of parameter names (`encoder.*.weight`, `*norm*`), or `matrices`,
    `vectors`, `cores`, `embeddings`. A pattern that matches nothing is an error unless
    `allow_empty`.
    """

    match: Patterns
    rule: RuleText
    allow_empty: Flag = False


class OptimizerSpec(Part):
    """What trains which parameters; see `tnc.optim.build`.

    `groups` are asked in order. `default` takes what none of them took; without it every trainable
    parameter must be taken. A rule alone stands for the default, a list for the groups.
    """

    groups: tuple[OptimizerGroup, ...] = ()
    default: RuleText | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return {"groups": value}
        if isinstance(value, str):
            return {"default": value}
        if isinstance(value, Mapping) and "kind" in value:
            return {"default": value}
        return value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> dict[str, Any]:
        whole = handler(core)
        groups = handler.resolve_ref_schema(whole)["properties"]["groups"]
        many = {"type": "array", "items": groups["items"], "minItems": 1}
        return {"anyOf": [*_schema()["anyOf"], many, whole]}

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.groups and self.default is None:
            raise problem("value", "an optimizer needs groups, a default, or both")
        return self
