"""How PEFT stores the two factors beside each kind of layer, and which layers it can adapt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tnc.adapters.base import base_class
from tnc.adapters.low_rank import LowRank
from tnc.decide.site import Site
from tnc.errors import ArtifactError
from tnc.nn import View

Tensors = dict[str, Tensor]


class Layer(ABC):
    """One kind of layer: pairs of the weight's map, to and from the tensors of a checkpoint."""

    suffixes: ClassVar[tuple[str, str]] = ("lora_A.weight", "lora_B.weight")

    def refuses(self, options: Any) -> str:
        """Say why PEFT's layer computes something else; empty if it does not.

        `options` is a view or a module that has the attributes of a layer of this kind.
        """
        return ""

    @abstractmethod
    def write(self, module: nn.Module, site: Site, pair: LowRank) -> Tensors:
        """Return the tensors of a pair by their suffix."""

    @abstractmethod
    def read(self, module: nn.Module, site: Site, first: Tensor, second: Tensor) -> LowRank:
        """Return the pair of the tensors `suffixes`."""

    def magnitude(self, site: Site, values: Tensor) -> Tensor:
        """Bring a magnitude for every row of the map into the shape in which it is stored."""
        return values


class Linear(Layer):
    """A (r, i), B (o, r), also where the weight is stored inputs first."""

    def write(self, module: nn.Module, site: Site, pair: LowRank) -> Tensors:
        return dict(zip(self.suffixes, (pair.right, pair.left)))

    def read(self, module: nn.Module, site: Site, first: Tensor, second: Tensor) -> LowRank:
        return LowRank(second, first)


class Embedding(Layer):
    """A (r, vocabulary), B (dimension, r): the factors of the table's transpose."""

    suffixes: ClassVar[tuple[str, str]] = ("lora_embedding_A", "lora_embedding_B")

    def write(self, module: nn.Module, site: Site, pair: LowRank) -> Tensors:
        return dict(zip(self.suffixes, (pair.left.T, pair.right.T)))

    def read(self, module: nn.Module, site: Site, first: Tensor, second: Tensor) -> LowRank:
        return LowRank(first.T, second.T)


class Convolution(Layer):
    """A (r, i, k..), B (o, r / groups, 1..).

    In groups, A of PEFT sees all inputs and its rows are divided among the groups, so a pair of
    rank r is written with r rows for each group, zero outside of the group's inputs.
    """

    def refuses(self, options: Any) -> str:
        if any(step != 1 for step in options.dilation):
            return "PEFT's convolution of A has no dilation"
        if options.padding_mode != "zeros":
            return f"PEFT's convolution of A pads with zeros, the layer is {options.padding_mode}"
        return ""

    def write(self, module: nn.Module, site: Site, pair: LowRank) -> Tensors:
        groups, kernel = site.groups, site.signature.inputs[1:]
        each = site.signature.inputs[0]
        a = pair.right.reshape(pair.rank, each, *kernel)
        wide = a.new_zeros(groups, pair.rank, groups, each, *kernel)
        for group in range(groups):
            wide[group, :, group] = a
        a = wide.reshape(groups * pair.rank, groups * each, *kernel)
        return dict(
            zip(self.suffixes, (a, pair.left.reshape(*pair.left.shape, *(1,) * len(kernel))))
        )

    def read(self, module: nn.Module, site: Site, first: Tensor, second: Tensor) -> LowRank:
        groups = site.groups
        b = second.flatten(1)
        a = first.reshape(groups, first.shape[0] // groups, groups, -1)
        for group in range(groups):
            for other in range(groups):
                if group != other and bool(a[group, :, other].any()):
                    raise ArtifactError(
                        "an adapter of a convolution in groups reads the inputs of other groups",
                        where=site.name,
                        hint="PEFT cannot merge it either: it is no change of the weight",
                    )
        own = torch.stack([a[group, :, group] for group in range(groups)])
        if bool((own == own[0]).all()):
            return LowRank(b, own[0])
        rank = own.shape[1]
        left = b.new_zeros(groups, b.shape[0] // groups, groups, rank)
        for group, rows in enumerate(b.reshape(groups, -1, rank)):
            left[group, :, group] = rows
        return LowRank(left.reshape(b.shape[0], -1), own.reshape(groups * rank, -1))

    def magnitude(self, site: Site, values: Tensor) -> Tensor:
        return values.reshape(1, -1, *(1,) * (len(site.signature.inputs) - 1))


class Parameter(Layer):
    """A parameter that a module's own code reads: A (e r, i), B (o, r e) over e experts.

    A matrix is taken as it is stored, rows first. A stack is too, but with `is_transposed` on its
    module, PEFT takes it as stored inputs first.
    """

    def write(self, module: nn.Module, site: Site, pair: LowRank) -> Tensors:
        stored = pair.swapped() if site.transposed else pair
        if stored.left.dim() == 2:
            return dict(zip(self.suffixes, (stored.right, stored.left)))
        if getattr(module, "is_transposed", False):
            stored = stored.swapped()
        a = stored.right.flatten(0, 1)
        b = stored.left.permute(1, 2, 0).flatten(1)
        return dict(zip(self.suffixes, (a, b)))

    def read(self, module: nn.Module, site: Site, first: Tensor, second: Tensor) -> LowRank:
        stored = LowRank(second, first)
        if len(site.signature.outputs) > 1:
            count = site.signature.outputs[0]
            right = first.reshape(count, -1, first.shape[1])
            stored = LowRank(second.reshape(second.shape[0], -1, count).permute(2, 0, 1), right)
            if getattr(module, "is_transposed", False):
                stored = stored.swapped()
        return stored.swapped() if site.transposed else stored


LINEAR, EMBEDDING, CONVOLUTION, PARAMETER = Linear(), Embedding(), Convolution(), Parameter()

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Found:
    """A layer for a weight, or the reason why PEFT has none. `attention`: of its projections."""

    layer: Layer | None
    reason: str = ""
    attention: bool = False


def is_inputs_first(module: nn.Module) -> bool:
    """Tell whether a module is the linear layer of transformers that is stored inputs first."""
    kind = base_class(type(module))
    return (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")


def wrapped_as(module: nn.Module) -> Layer | None:
    """Return the layer that PEFT wraps a module in by its class; None where it has none."""
    if isinstance(module, nn.Embedding):
        return EMBEDDING
    if isinstance(module, CONVOLUTIONS):
        return CONVOLUTION
    return LINEAR if isinstance(module, nn.Linear) or is_inputs_first(module) else None


VIEWS: Mapping[str, Layer] = {"linear": LINEAR, "embedding": EMBEDDING, "conv": CONVOLUTION}
"""The layer for a structured base, by the name of its view: PEFT is given its dense form."""


def layer_for(model: nn.Module, path: str, attribute: str, kind: str, view: View) -> Found:
    """Return the layer of PEFT that does what an adapted weight does.

    `kind` is that of the module's bank: empty where code reads the weight itself.
    """
    module = model.get_submodule(path)
    parent = model.get_submodule(path.rpartition(".")[0])
    for owner, name in ((module, "in_proj_weight"), (parent, "weight")):
        if isinstance(owner, nn.MultiheadAttention) and attribute == name:
            if not owner._qkv_same_embed_dim:
                return Found(None, "PEFT adapts attention with keys of the queries' size alone")
            return Found(LINEAR, attention=True)
    if kind:
        turned = bool(getattr(view, "transposed", False)) and view.name == "conv"
        layer = VIEWS.get(view.name) if kind == "structured" else wrapped_as(module)
        if layer is None or turned:
            return Found(None, f"PEFT has no layer for {base_class(type(module)).__name__}")
        return Found(layer if not layer.refuses(view) else None, layer.refuses(view))
    if not path:
        return Found(None, "PEFT cannot wrap a parameter of the model itself, only of a module")
    if isinstance(module, nn.RNNBase):
        return Found(None, "PEFT does not reach the weights of recurrent layers")
    if wrapped_as(module) is not None:
        return Found(
            None, "code reads the weight of this layer, PEFT's adapter has no effect there"
        )
    return Found(PARAMETER)


def checked(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return tensors as they can be written: apart from each other, whole in memory."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
