"""Steps as text: which passes run, in order, the allocator, the schedule of a training run.

A spec and a plan keep them in their text form (`factorize`, `fuse{limit=4}`), so that both can be
read where torch is not wanted. The names are the files of `tnc.passes`; only options, and names
that no such file has (plug-ins, typing errors), need the passes themselves.
"""

from __future__ import annotations

import importlib.util
import pkgutil
from collections.abc import Iterable
from functools import cache
from typing import Any

from tnc.decide.option_text import OptionText, parse_form
from tnc.decide.options import build, print_option, text_schema, validated
from tnc.decide.spec_problems import problem
from tnc.registry import Registry, normalise

passes: Registry[type[Any]] = Registry("pass", "tnc.passes")
schedules: Registry[type[Any]] = Registry("schedule", "tnc.rank_adaptation.schedules")
allocators: Registry[type[Any]] = Registry("allocator", "tnc.allocators")

DEFAULT = (
    "fold-batch-norm",
    "merge-linear",
    "find-sites",
    "factorize",
    "share-input-factors",
    "match-outputs",
    "keep-ties",
)


@cache
def shipped(folder: str = passes.folder) -> tuple[str, ...]:
    """Name the things in a registry's folder that come with tnc, without importing them."""
    package = importlib.util.find_spec(folder)
    folders = (package.submodule_search_locations or []) if package else []
    return tuple(sorted(normalise(module.name) for module in pkgutil.iter_modules(folders)))


def canonical(step: Any, registry: Registry[type[Any]] = passes) -> str:
    """Return the text form of a pass (or schedule) given as text, mapping or instance, checked."""
    if isinstance(step, str):
        try:
            options = parse_form(step)
        except OptionText as error:
            raise problem("option_text", str(error)) from error
        if len(options) == 1 and normalise(options["kind"]) in shipped(registry.folder):
            return normalise(options["kind"])
    return print_option(registry, validated(registry, step))


def pipeline(texts: Iterable[str]) -> tuple[tuple[str, Any], ...]:
    """Return each pass with its text, ready to run. This imports torch."""
    return tuple((text, build(passes, text)) for text in texts)


def schema(registry: Registry[type[Any]] = passes) -> dict[str, Any]:
    """Return the JSON schema of one pass, or one schedule."""
    names = list(shipped(registry.folder))
    by_kind = {
        "type": "object",
        "properties": {"kind": {"enum": names}},
        "required": ["kind"],
    }
    return {"anyOf": [text_schema(names), by_kind]}
