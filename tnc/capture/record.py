"""Record a forward pass: every read of a parameter, and the flow of values."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import Tensor, nn

from tnc.capture.flow import Flow
from tnc.capture.observe import Event
from tnc.capture.reads import Read, reads, rows
from tnc.capture.weights import Weights, storage_key, tensors

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
        self._weights = weights
        self._products: dict[int, str] = {}
        self._own = {path: own_names(module, weights) for path, module in model.named_modules()}
        self._state = {
            path: {storage_key(t) for t in (*m.parameters(False), *m.buffers(False))}
            for path, m in model.named_modules()
        }

    def before(self) -> None:
        """Nothing waits for gradients here."""

    def step(self, event: Event) -> None:
        """Record the operation and what it does with parameters."""
        given = (event.args, event.kwargs)
        own = self._own.get(event.place, frozenset())
        found = list(reads(event.op, event.args, event.kwargs, self._weights, own))
        for read in found:
            self._note(read, event)
        role, data = self._role(event, found)
        names = [self._weights.name_of(t) for t in tensors(given)]
        known = tuple(dict.fromkeys(name for name in names if name))
        if role == "bias" and data is not None:
            weight = self._products.get(self.flow.value(data))
            self.biases |= {(weight, name) for name in known if weight}
        self.flow.add(event.op, given, event.out, (role, event.place, data), known)
        for read in found:
            if read.kind:
                self._products[self.flow.value(next(tensors(event.out)))] = read.name
                self.biases |= {(read.name, read.bias)} if read.bias else set()

    def _note(self, read: Read, event: Event) -> None:
        copy = replace(read, data=None)  # no activation is kept
        if not read.kind or read.data is None:
            self.readings[read.name].append(Reading(copy, event.place, 0, 0, ""))
            return
        made, taken = rows(read), 0
        if read.kind == "conv":
            made = event.out.shape[0] * prod(event.out.shape[2:])
            taken = read.data.shape[0] * prod(read.data.shape[2:])
        tensor = self.flow.name(read.data)
        self.readings[read.name].append(Reading(copy, event.place, made, taken, tensor))

    def _role(self, event: Event, found: list[Read]) -> tuple[str, Tensor | None]:
        """Name what an operation is to its layer, where the layer owns the tensors it reads."""
        op, args, place = event.op, event.args, event.place
        own = self._own.get(place, frozenset())
        if op in NORMS:
            mine = {storage_key(t) for t in tensors(args[1:])} & self._state.get(place, set())
            return (NORMS[op], args[0]) if mine else ("", None)
        if op == "aten.convolution" and isinstance(args[1], Tensor):
            held = self._weights.name_of(args[1]) in own
            return ("conv", args[0]) if held and not args[6] else ("", None)
        for read in found:
            if read.kind and read.data is not None and read.name in own and read.part == 1:
                return ("", None) if read.columns else (read.kind, read.data)
        return self._elementwise(op, args, own)

    def _elementwise(self, op: str, args: Any, own: frozenset[str]) -> tuple[str, Tensor | None]:
        """Recognise a product with a vector, and a bias that is added after its product."""
        if op not in ("aten.mul", "aten.add", "aten.add_") or len(args) < 2:
            return "", None
        pair = [t for t in args[:2] if isinstance(t, Tensor)]
        vectors = [t for t in pair if t.dim() == 1 and self._weights.name_of(t) in own]
        if len(pair) != 2 or len(vectors) != 1:
            return "", None
        data = pair[0] if vectors[0] is pair[1] else pair[1]
        if data.dim() == 0 or data.shape[-1] != vectors[0].shape[0]:
            return "", None
        return ("scale" if op == "aten.mul" else "bias"), data


def own_names(module: nn.Module, weights: Weights) -> frozenset[str]:
    """The first names of the parameters that a module itself holds."""
    names = (weights.name_of(parameter) for parameter in module.parameters(recurse=False))
    return frozenset(name for name in names if name)
