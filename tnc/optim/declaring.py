"""Classes that declare their options once: signature, checks and specs follow from it.

Every annotated name in the body of such a class is an option, unless it is a `ClassVar`; the value
beside it is the default. Subclasses have the options of their bases, and change a default by naming
it again, with or without its type:

    class Walker(Declared):
        lr: NonNegative = 1e-3
        beta: Share = 0.9

    class Runner(Walker):
        lr = 1e-2
        rank: Count = 8

The constructor of `Runner` takes `*, lr: float = 0.01, beta: float = 0.9, rank: int = 8`, for
`inspect.signature` as for type checkers (PEP 681). Values are not kept on the class: those of an
optimizer are in its groups.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from inspect import Parameter, Signature
from typing import Any, ClassVar, dataclass_transform, get_origin

from tnc.optim.options import check_options, misfit, without_ranges

MISSING = Parameter.empty


@dataclass(frozen=True)
class Declaration:
    """What a class says of one name.

    `option` is False for an argument of the constructor that is no option: it is an attribute of
    the object, and of no group. `kw_only` is False for what may be given by its place.
    """

    default: Any = MISSING
    kw_only: bool = True
    option: bool = True
    hint: Any = Any


def option(*, default: Any = MISSING, kw_only: bool = True) -> Any:
    """Declare an option; `kw_only=False` lets it be given by its place."""
    return Declaration(default, kw_only)


def argument(*, default: Any = MISSING, kw_only: bool = True) -> Any:
    """Declare an argument of the constructor that is no option."""
    return Declaration(default, kw_only, option=False)


@dataclass_transform(kw_only_default=True, field_specifiers=(option, argument))
class Declared:
    """A class whose annotated names are its options; see the text of this module."""

    declared: ClassVar[Mapping[str, Declaration]] = {}

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        inherited: dict[str, Declaration] = {}
        for base in reversed(cls.__mro__[1:]):
            inherited |= vars(base).get("_own", {})
        own = {
            name: _declaration(cls, name, hint)
            for name, hint in inspect.get_annotations(cls).items()
            if not _is_of_the_class(hint)
        }
        for name in inherited.keys() & vars(cls).keys() - own.keys():
            own[name] = replace(inherited[name], default=vars(cls)[name])
        for name in own.keys() & vars(cls).keys():
            delattr(cls, name)
        for name, each in own.items():
            wrong = each.option and each.default is not MISSING and misfit(each.default, each.hint)
            if wrong:
                raise TypeError(f"{cls.__name__} has {name} = {each.default!r}: {wrong}")
            if hasattr(cls, name):
                raise TypeError(
                    f"{cls.__name__} declares the option {name!r}, which every optimizer has as an "
                    "attribute: give it another name"
                )
        cls._own = own  # type: ignore[attr-defined]
        cls.declared = inherited | own
        cls.__signature__ = _signature(cls)  # type: ignore[attr-defined]

    @classmethod
    def options(cls) -> dict[str, Declaration]:
        """Return the options by name; arguments aside."""
        return {name: each for name, each in cls.declared.items() if each.option}

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Raise BindError for an option, among other things, that is not of its type."""
        hints = {name: each.hint for name, each in cls.options().items()}
        check_options(cls.__name__, options, hints)

    @classmethod
    def taken(
        cls, places: tuple[Any, ...], given: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the arguments and the options of a call of the constructor, with their defaults.

        Options without a default that are not given are left out: groups may have them. Raises
        TypeError for what is not declared, given twice, or an argument that is missing.
        """
        placed = [name for name, each in cls.declared.items() if not each.kw_only]
        if len(places) > len(placed):
            raise TypeError(f"{cls.__name__} takes {', '.join(placed)} by place, not {len(places)}")
        found = dict(zip(placed, places))
        for name, value in given.items():
            if name not in cls.declared:
                near = get_close_matches(name, cls.declared, n=1)
                guess = f"; did you mean {near[0]!r}?" if near else ""
                raise TypeError(f"{cls.__name__} has no option {name!r}{guess}")
            if name in found:
                raise TypeError(f"{cls.__name__} is given {name!r} twice")
            found[name] = value
        arguments: dict[str, Any] = {}
        options: dict[str, Any] = {}
        for name, each in cls.declared.items():
            value = found.get(name, each.default)
            if value is not MISSING:
                (options if each.option else arguments)[name] = value
            elif not each.option:
                raise TypeError(f"{cls.__name__} is missing the argument {name!r}")
        return arguments, options


def _declaration(cls: type, name: str, hint: Any) -> Declaration:
    value = vars(cls).get(name, MISSING)
    found = value if isinstance(value, Declaration) else Declaration(value)
    if isinstance(hint, str):
        try:
            hint = eval(hint, _globals(cls), dict(vars(cls)))
        except NameError as error:
            raise TypeError(
                f"{cls.__name__}: the type of {name}, {hint}, cannot be read: {error}; import it "
                "where the module runs, not for type checkers alone"
            ) from error
    return replace(found, hint=hint)


def _globals(cls: type) -> dict[str, Any]:
    """Return the names that the body of a class sees."""
    module = sys.modules.get(cls.__module__)
    if module is not None:
        return vars(module)
    functions = (each for each in vars(cls).values() if inspect.isfunction(each))
    return next((each.__globals__ for each in functions), {})


def _is_of_the_class(hint: Any) -> bool:
    if isinstance(hint, str):
        return hint.split("[")[0].split(".")[-1] == "ClassVar"
    return hint is ClassVar or get_origin(hint) is ClassVar


def _signature(cls: type[Declared]) -> Signature:
    """Return a class's signature: what is declared stands for the `**given` of its constructor."""
    written = list(inspect.signature(cls.__init__).parameters.values())[1:]
    if not any(each.kind is Parameter.VAR_KEYWORD for each in written):
        return Signature(written)
    found = [
        Parameter(
            name,
            Parameter.KEYWORD_ONLY if each.kw_only else Parameter.POSITIONAL_OR_KEYWORD,
            default=each.default,
            annotation=without_ranges(each.hint),
        )
        for name, each in cls.declared.items()
    ]
    return Signature(sorted(found, key=lambda each: each.kind))
