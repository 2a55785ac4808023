"""The weights of a model by the names that a checkpoint gives them, without an example input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from tnc.adapters.applied import applied_kind
from tnc.adapters.bank import bank_of
from tnc.adapters.peft.layers import CONVOLUTIONS, is_inputs_first
from tnc.adapters.place import Owner, Place, places
from tnc.capture import layer_kind
from tnc.decide.site import Site, Use
from tnc.net import Signature
from tnc.nn import StructuredLayer
from tnc.rewrite.edit import view_for

ROWS = 128


def place_at(model: nn.Module, path: str, attribute: str) -> Place:
    """Return the place of one weight for one module that holds it, by the module's class alone."""
    module = model.get_submodule(path)
    if isinstance(module, StructuredLayer):
        found = next(p for p in places(model, ()) if any(o.path == path for o in p.owners))
        number = next(n for n, owner in enumerate(found.owners) if owner.path == path)
        return Place(found.site, (found.owners[number],), (found.views[number],))
    parameter = module._parameters[attribute]
    assert parameter is not None
    parent = model.get_submodule(path.rpartition(".")[0])
    called = attribute == "weight" and not isinstance(parent, nn.MultiheadAttention)
    kind = _kind(module) if called else ""
    site = _site(module, path, attribute, parameter, kind)
    owner = Owner(path, attribute, applied_kind(module, kind) if kind else "")
    return Place(site, (owner,), (view_for(site, kind or site.op, site.transposed),))


def joined(given: list[Place]) -> Place:
    """Return the place of a tied weight from those of its modules."""
    first = given[0]
    names = tuple(place.site.name for place in given)
    uses = tuple(use for place in given for use in place.site.uses)
    return Place(
        replace(first.site, aliases=names, uses=uses),
        tuple(owner for place in given for owner in place.owners),
        tuple(view for place in given for view in place.views),
    )


def _kind(module: nn.Module) -> str:
    """Return the layer's kind, also of a module that has adapters."""
    bank = bank_of(module)
    return layer_kind(module) if bank is None else bank.kind.partition("-")[0]


def _site(module: nn.Module, path: str, attribute: str, parameter: Tensor, kind: str) -> Site:
    name = f"{path}.{attribute}" if path else attribute
    shape = tuple(parameter.shape)
    stacked = not kind and len(shape) == 3
    transposed = is_inputs_first(module)
    outputs, inputs = (shape[:2], shape[2:]) if stacked else (shape[:1], shape[1:])
    if transposed:
        outputs, inputs = shape[1:], shape[:1]
    op = kind or ("experts" if stacked else "linear")
    return Site(
        name=name,
        aliases=(name,),
        signature=Signature(outputs, inputs),
        dtype=str(parameter.dtype).removeprefix("torch."),
        uses=(Use(path, op, "module" if kind else "parameter", ROWS, ROWS),),
        transposed=transposed,
        biased=getattr(module, "bias", None) is not None,
        groups=int(getattr(module, "groups", 1)) if kind == "conv" else 1,
        options=_options(module, kind),
    )


def _options(module: Any, kind: str) -> tuple[tuple[str, Any], ...]:
    if kind == "conv" and isinstance(module, CONVOLUTIONS):
        names = ("dilation", "padding", "padding_mode", "stride")
        return tuple((name, getattr(module, name)) for name in names)
    return (("padding_idx", module.padding_idx),) if kind == "embedding" else ()
