"""Record a forward pass: every read of a parameter, and the flow of values."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, nn

from tnc.capture.flow import Flow
from tnc.capture.reads import Read, reads, rows
from tnc.capture.weights import Weights, tensors

NORMS = {
    "aten.native_batch_norm": "batchnorm",
    "aten._native_batch_norm_legit": "batchnorm",
    "aten._native_batch_norm_legit_no_training": "batchnorm",
    "aten._batch_norm_no_update": "batchnorm",
    "aten.cudnn_batch_norm": "batchnorm",
    "aten.miopen_batch_norm": "batchnorm",
    "aten.native_layer_norm": "layernorm",
    "aten.native_group_norm": "groupnorm",
    "aten._fused_rms_norm": "rmsnorm",
}


@dataclass(frozen=True)
class Reading:
    """One read with its place in the module tree, its row counts and the tensor's name."""

    read: Read
    place: str
    rows: int
    rows_in: int
    tensor: str


class Recorder:
    """A listener that writes down what `tnc.capture.sites` and `tnc.capture.links` need."""

    def __init__(self, model: nn.Module, weights: Weights) -> None:
        self.flow = Flow()
        self.readings: dict[str, list[Reading]] = defaultdict(list)
        self.biases: set[tuple[str, str]] = set()
        self._products: dict[int, str] = {}
        self._weights = weights
        self._owned: dict[str, frozenset[str]] = {
            path: frozenset(
                weights.name_of(p) or "" for p in module.parameters(recurse=False)
            )
            for path, module in model.named_modules()
        }

    def before(self) -> None:
        """Nothing waits for gradients here."""

    def step(self, op: str, args: tuple[Any, ...], kwargs: Any, out: Any, place: str) -> None:
        """Record the operation and what it does with parameters."""
        owned = self._owned.get(place, frozenset())
        found = list(reads(op, args, kwargs, self._weights, owned))
        for read in found:
            self._note(read, place, out)
        role, data = self._role(op, args, found, place)
        names = tuple(
            dict.fromkeys(n for t in tensors((args, kwargs)) if (n := self._weights.name_of(t)))
        )
        if role == "bias" and data is not None:
            weight = self._products.get(self.flow.value(data))
            self.biases |= {(weight, name) for name in names if weight}
        self.flow.add(op, (args, kwargs), out, role, place, data, names)
        for read in found:
            if read.kind:
                self._products[self.flow.value(next(tensors(out)))] = read.name
                self.biases |= {(read.name, read.bias)} if read.bias else set()

    def _note(self, read: Read, place: str, out: Any) -> None:
        copy = Read(**{**read.__dict__, "data": None})  # no activation is kept
        if not read.kind or read.data is None:
            self.readings[read.name].append(Reading(copy, place, 0, 0, ""))
            return
        made, taken = rows(read), 0
        if read.kind == "conv":
            made = out.shape[0] * prod(out.shape[2:])
            taken = read.data.shape[0] * prod(read.data.shape[2:])
        tensor = self.flow.name(read.data)
        self.readings[read.name].append(Reading(copy, place, made, taken, tensor))

    def _role(
        self, op: str, args: Any, found: list[Read], place: str
    ) -> tuple[str, Tensor | None]:
        """Name what an operation is to its layer, where the layer owns the parameter it reads."""
        owned = self._owned.get(place, frozenset())
        if op in NORMS:
            return NORMS[op], args[0]
        if op == "aten.convolution" and isinstance(args[1], Tensor):
            mine = self._weights.name_of(args[1]) in owned
            return ("conv", args[0]) if mine and not args[6] else ("", None)
        for read in found:
            if read.kind and read.data is not None and read.name in owned and read.part == 1:
                return ("", None) if read.columns else (read.kind, read.data)
        return self._elementwise(op, args, owned)

    def _elementwise(
        self, op: str, args: Any, owned: frozenset[str]
    ) -> tuple[str, Tensor | None]:
        """Recognise a product with a vector, and a bias that is added after its product."""
        if op not in ("aten.mul", "aten.add", "aten.add_") or len(args) < 2:
            return "", None
        pair = [t for t in args[:2] if isinstance(t, Tensor)]
        vectors = [t for t in pair if t.dim() == 1 and self._weights.name_of(t) in owned]
        if len(pair) != 2 or len(vectors) != 1:
            return "", None
        data = pair[0] if vectors[0] is pair[1] else pair[1]
        if data.dim() == 0 or data.shape[-1] != vectors[0].shape[0]:
            return "", None
        return ("scale" if op == "aten.mul" else "bias"), data
