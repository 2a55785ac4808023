"""Find registered things by walking their folder, then the plug-ins.

A kind of thing (structure, fit, pass, source ...) lives in one folder; each file there registers
what it holds at its definition. Nothing imports a concrete thing by name. Packages add their own
through the entry-point group `tnc.plugins`, whose entries name a module to import.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Generic, TypeVar

from tnc.errors import DuplicateName, UnknownName

T = TypeVar("T")
PLUGINS = "tnc.plugins"


def normalise(name: str) -> str:
    """Write a registered name as lower-kebab-case.

    >>> normalise("Low_Rank")
    'low-rank'
    """
    return name.strip().lower().replace("_", "-")


@dataclass
class Registry(Generic[T]):
    """The things of one kind by name; the folder is walked at the first question."""

    kind: str
    folder: str
    _things: dict[str, T] = field(default_factory=dict)
    _walked: bool = False

    def register(self, name: str) -> Callable[[T], T]:
        """Register the decorated thing under `name`. Raises DuplicateName."""
        key = normalise(name)

        def add(thing: T) -> T:
            known = self._things.get(key)
            if known is not None and _origin(known) != _origin(thing):
                raise DuplicateName(
                    f"two {self.kind}s are named {key!r}: {_origin(known)} and {_origin(thing)}",
                    hint="rename one of them",
                )
            self._things[key] = thing
            return thing

        return add

    def get(self, name: str, where: str = "") -> T:
        """Return the thing called `name`. Raises UnknownName with the nearest names."""
        self._walk()
        key = normalise(name)
        if key not in self._things:
            near = get_close_matches(key, sorted(self._things), n=1)
            guess = f"did you mean {near[0]!r}? " if near else ""
            raise UnknownName(
                f"no {self.kind} is named {name!r}",
                where=where,
                hint=f"{guess}there are: {', '.join(sorted(self._things))}",
            )
        return self._things[key]

    def all(self) -> Mapping[str, T]:
        """Return all things, sorted by name."""
        self._walk()
        return MappingProxyType(dict(sorted(self._things.items())))

    def _walk(self) -> None:
        if self._walked:
            return
        self._walked = True
        package = importlib.import_module(self.folder)
        for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
            importlib.import_module(f"{self.folder}.{module.name}")
        load_plugins()


_loaded: set[str] = set()


def load_plugins() -> None:
    """Import every module named by an entry point of the group `tnc.plugins`, once."""
    for entry in sorted(entry_points(group=PLUGINS), key=lambda e: e.name):
        if entry.value not in _loaded:
            _loaded.add(entry.value)
            entry.load()


def _origin(thing: object) -> str:
    return f"{getattr(thing, '__module__', '?')}.{getattr(thing, '__qualname__', repr(thing))}"
