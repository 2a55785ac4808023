"""Which inner results of a student and its teacher are compared, and how far they are apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from tnc.capture.batches import kept_rows
from tnc.errors import PlanError, SourceError
from tnc.nn import StructuredLayer
from tnc.sources.outputs import tensor_of


def matched_paths(student: nn.Module, teacher: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Return the modules whose results are matched, by path, in the order of the model.

    Without patterns: the members of lists and sequences of modules that hold structured layers
    (the blocks of a network), innermost first; else the structured layers themselves. Raises
    PlanError for a pattern that matches nothing in both models.
    """
    theirs = {path for path, _ in teacher.named_modules() if path}
    mine = [path for path, _ in student.named_modules() if path in theirs]
    if patterns:
        for pattern in patterns:
            if not any(fnmatchcase(path, pattern) for path in mine):
                raise PlanError(
                    f"{pattern!r} matches no module that student and teacher both have",
                    where="distill.match",
                    hint="patterns are of module paths: `encoder.layer.*`, `layer?.?`",
                )
        return [path for path in mine if any(fnmatchcase(path, p) for p in patterns)]
    layers = [path for path, m in student.named_modules() if isinstance(m, StructuredLayer)]
    blocks = [path for path in mine if _is_block(student, path, layers)]
    inner = [p for p in blocks if not any(other.startswith(p + ".") for other in blocks)]
    return inner or [path for path in layers if path in theirs]


def _is_block(model: nn.Module, path: str, layers: Sequence[str]) -> bool:
    parent = model.get_submodule(path.rpartition(".")[0])
    listed = isinstance(parent, nn.ModuleList | nn.Sequential)
    module = model.get_submodule(path)
    plain = isinstance(module, nn.ModuleList | nn.ModuleDict | StructuredLayer)
    return listed and not plain and any(layer.startswith(path + ".") for layer in layers)


@contextmanager
def recorded(model: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Yield a mapping that every forward pass fills with the results of modules."""
    found: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            try:
                found[path] = tensor_of(output)
            except SourceError:
                found.pop(path, None)

        return hook

    handles = [model.get_submodule(p).register_forward_hook(keep(p)) for p in paths]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def inner_distance(mine: dict[str, Tensor], theirs: dict[str, Tensor], batch: Any) -> Tensor:
    """Return the mean over modules of `|y' - y|^2 / |y|^2`, over the rows that the mask keeps."""
    terms = []
    for path, target in theirs.items():
        if path in mine and mine[path].shape == target.shape:
            a, b = _rows(mine[path], batch), _rows(target, batch)
            terms.append((a - b).square().sum() / b.square().sum().clamp_min(1e-12))
    return torch.stack(terms).mean() if terms else torch.zeros(())


def _rows(tensor: Tensor, batch: Any) -> Tensor:
    count, kept = kept_rows(batch, "attention_mask")
    if kept is None or tensor.dim() < 3 or tensor.shape[0] * tensor.shape[1] != count:
        return tensor
    return tensor.flatten(0, 1)[kept]
