"""Values between blocks: arguments as plain data, tensors in files that are mapped when read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tnc.files import flush
from tnc.stream.blocks import Undivided

Tree = Any
"""Nested lists, text and numbers, as JSON has them."""


def encode(value: Any, name: Callable[[Tensor], str]) -> Tree:
    """Return arguments or results as JSON, a name in the place of each tensor.

    Raises Undivided for what is neither a tensor nor plain data: an object may change on its way.
    """
    if isinstance(value, Tensor):
        return {"tensor": name(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if type(value) in (tuple, list):
        return {type(value).__name__: [encode(item, name) for item in value]}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": {key: encode(item, name) for key, item in value.items()}}
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise Undivided(f"a block is given, or returns, an object of class {kind}")


def decode(tree: Tree, get: Callable[[str], Tensor]) -> Any:
    """Return the arguments or results that were encoded."""
    if not isinstance(tree, dict):
        return tree
    ((kind, held),) = tree.items()
    if kind == "tensor":
        return get(held)
    if kind == "dtype":
        return getattr(torch, held)
    if kind == "dict":
        return {key: decode(item, get) for key, item in held.items()}
    items = [decode(item, get) for item in held]
    return tuple(items) if kind == "tuple" else items


def names_in(tree: Tree) -> Iterator[str]:
    """Yield the names of the tensors in an encoded tree, in order."""
    found: list[str] = []

    def keep(name: str) -> Tensor:
        found.append(name)
        return torch.empty(0)

    decode(tree, keep)
    yield from found


class Shelf:
    """A folder of safetensors files; each is complete and on the disk once `put` returns."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def path(self, file: str) -> Path:
        """Return where a file lies."""
        return self.folder / f"{file}.safetensors"

    def put(self, file: str, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors under names."""
        part = self.folder / f".{file}"
        save_file(
            {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}, part
        )
        flush(part)
        os.replace(part, self.path(file))

    def get(self, file: str, name: str) -> Tensor | None:
        """Return a tensor; None where the file is not there."""
        path = self.path(file)
        if not path.exists():
            return None
        with safe_open(path, "pt") as opened:
            found: Tensor = opened.get_tensor(name)
        return found

    def drop(self, file: str) -> None:
        """Remove a file."""
        self.path(file).unlink(missing_ok=True)
