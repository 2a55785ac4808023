"""Turn structured layers back into dense ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from tnc.nn import (
    ConvView,
    EmbeddingView,
    LinearView,
    StructuredLayer,
)
from tnc.nn.rebuilt import rebuilt_names, restore_dense_
from tnc.nn.shared_input import owns_shared_inputs, unshare_
from tnc.rewrite import Exact, Pass, Subject, passes
from tnc.rewrite.edit import keep_hooks


@passes.register("densify")
@dataclass(frozen=True)
class Densify(Pass):
    """Replace every structured layer by the library's dense layer with the rebuilt weight.

    Weights that shared cores are tied again. The model then needs no tnc to run.
    """

    contract = Exact(1e-4)

    def apply(self, subject: Subject) -> Subject:
        return subject.edited(*densify_(subject.model))


def densify_(model: nn.Module) -> tuple[str, ...]:
    """Densify a model in place and return a line for every edit."""
    lines = []
    weights: dict[tuple[int, ...], nn.Parameter] = {}
    for module in model.modules():
        if owns_shared_inputs(module):
            unshare_(module)
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, StructuredLayer) and not path.endswith("_structure"):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, _dense(module, weights))
            lines.append(f"densified {path}")
    for path, module in list(model.named_modules()):
        for name in rebuilt_names(module):
            layer = module._modules[f"{name}_structure"]
            assert isinstance(layer, StructuredLayer)
            restore_dense_(module, name, _weight(layer, weights))
            lines.append(f"densified {path}.{name}".replace(" .", " "))
    return tuple(lines)


def _weight(layer: StructuredLayer, weights: dict[tuple[int, ...], nn.Parameter]) -> nn.Parameter:
    key = tuple(id(core) for core in layer.cores.values())
    transposed = getattr(layer.view, "transposed", False)
    key = (*key, int(transposed), *getattr(layer.view, "order", ()))
    if key not in weights:
        trainable = any(core.requires_grad for core in layer.cores.values())
        weights[key] = nn.Parameter(layer.weight.detach().contiguous(), requires_grad=trainable)
    return weights[key]


def _dense(layer: StructuredLayer, weights: dict[tuple[int, ...], nn.Parameter]) -> nn.Module:
    weight = _weight(layer, weights)
    made = _empty(layer)
    made.weight = weight
    if layer.bias is not None:
        made.bias = layer.bias
    keep_hooks(layer, made)
    made.train(layer.training)
    return made


def _empty(layer: StructuredLayer) -> nn.Module:
    """Build the library's layer without allocating its weight."""
    view, signature = layer.view, layer.structure.signature
    meta: dict[str, Any] = {"device": "meta"}
    bias = layer.bias is not None
    if isinstance(view, EmbeddingView):
        return nn.Embedding(
            signature.outputs[0], signature.inputs[0], padding_idx=view.padding_idx, **meta
        )
    if isinstance(view, ConvView):
        return view.dense_layer(signature, bias, **meta)
    if isinstance(view, LinearView) and view.transposed:
        from transformers.pytorch_utils import Conv1D

        return Conv1D(signature.outputs[0], signature.inputs[0])  # type: ignore[no-untyped-call]
    return nn.Linear(signature.inputs[0], signature.outputs[0], bias, **meta)
