"""How a PEFT checkpoint names things, and how its configuration chooses modules and scales.

PEFT matches lists of targets by suffix, patterns of ranks and scales as regular expressions behind
any prefix that ends in a dot, and modules to save by the bare end of their path. What is written
here is one regular expression of whole paths, and anchored patterns, so that nothing else matches.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from tnc.adapters.bank import BANK
from tnc.errors import ArtifactError

PREFIX = "base_model.model."
"""What every key of a checkpoint begins with, before the path in the base model."""

T = TypeVar("T")


def target_expression(paths: Iterable[str]) -> str:
    """Write the regular expression that matches some paths as a whole and no other.

    >>> target_expression(["enc.q", "q"])
    '(?:enc\\\\.q)|(?:q)'
    """
    return "|".join(f"(?:{re.escape(path)})" for path in paths)


def anchored(path: str) -> str:
    """Write the key of a rank or scale pattern that is for one path alone."""
    return "^" + re.escape(path)


def looked_up(patterns: Mapping[str, T], path: str, default: T) -> T:
    """Return what a rank or scale pattern gives to a path: the first key that matches decides.

    >>> looked_up({"q": 2}, "enc.q", 8), looked_up({"^q": 2}, "enc.q", 8)
    (2, 8)
    """
    for key, value in patterns.items():
        if re.match(rf"(.*\.)?({key})$", path):
            return value
    return default


def ends_with(path: str, names: Iterable[str]) -> bool:
    """Tell whether a path is one of some names, or ends in one behind a dot."""
    return any(path == name or path.endswith(f".{name}") for name in names)


def is_saved(path: str, saved: Iterable[str]) -> bool:
    """Tell whether a module is one that `modules_to_save` names: by the bare end of its path."""
    return any(path.endswith(name) for name in saved)


def is_target(config: Mapping[str, Any], path: str) -> bool:
    """Tell whether a configuration puts an adapter on the module at `path`."""
    excluded = config.get("exclude_modules") or ()
    if isinstance(excluded, str):
        if re.fullmatch(excluded, path):
            return False
    elif ends_with(path, excluded):
        return False
    saved = config.get("modules_to_save") or ()
    if any(re.match(rf"(^|.*\.){name}($|\..*)", path) for name in saved):
        return False
    targets = config.get("target_modules") or ()
    if isinstance(targets, str):
        return re.fullmatch(targets, path) is not None
    return ends_with(path, targets) and _in_layers(config, path)


def _in_layers(config: Mapping[str, Any], path: str) -> bool:
    layers = config.get("layers_to_transform")
    if layers is None or layers == []:
        return True
    named = config.get("layers_pattern") or ()
    expressions = [rf"(?:^|.*?\.){name}\.(\d+)\." for name in _listed(named)] or [
        r".*?\.[^.]*\.(\d+)\."
    ]
    for expression in expressions:
        found = re.match(expression, path)
        if found:
            return int(found[1]) in _listed(layers)
    return False


def _listed(value: Any) -> Sequence[Any]:
    return [value] if isinstance(value, (str, int)) else list(value)


def check_targets(
    model: nn.Module, config: Mapping[str, Any], held: Collection[str], where: str
) -> None:
    """Raise where the configuration chooses other modules than the tensors are for.

    PEFT would leave such tensors out, or start such adapters anew, without an error.
    """
    targets = config.get("target_modules")
    if targets is None or targets == "all-linear":
        return
    paths = {path for path, _ in model.named_modules() if path and BANK not in path.split(".")}
    chosen = {path for path in paths if is_target(config, path)}
    inside = {path for path in chosen if path.rpartition(".")[0] in held}  # out_proj of attention
    for path in sorted(set(held) - chosen):
        raise ArtifactError(
            f"tensors for {path!r}, which target_modules does not match",
            where=where,
            hint="PEFT would ignore them",
        )
    for path in sorted(chosen - set(held) - inside):
        raise ArtifactError(
            f"target_modules matches {path!r}, and the checkpoint has no tensors for it",
            where=where,
            hint="PEFT would start that adapter anew; is it the model of the checkpoint?",
        )
