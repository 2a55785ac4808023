"""Edits of a module tree: put a structured layer where a weight was, everywhere it is read."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tnc.capture import layer_kind
from tnc.decide.site import Site
from tnc.errors import PassError
from tnc.net import Structure
from tnc.nn import (
    ConvView,
    EmbeddingView,
    LinearView,
    StackView,
    StoredView,
    StructuredLayer,
    View,
    install_rebuilt_,
)

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def owner_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that holds a parameter and the attribute's name."""
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


def view_for(site: Site, kind: str, transposed: bool) -> View:
    """Return the view that a site's layer needs."""
    options: dict[str, Any] = dict(site.options)
    if kind == "embedding":
        return EmbeddingView(options.get("padding_idx"))
    work = site.work
    if kind == "conv":
        known = ("stride", "padding", "dilation", "padding_mode", "output_padding")
        return ConvView(
            groups=site.groups,
            pixels_in=work.rows_in,
            pixels_out=work.rows,
            transposed=site.transposed,
            **{name: options[name] for name in known if name in options},
        )
    if kind == "experts":
        return StackView(transposed)
    if kind == "spectral":
        return StoredView(site.unordered)
    return LinearView(rows=work.rows, transposed=transposed)


def install_(
    model: nn.Module,
    site: Site,
    structure: Structure,
    cores: dict[str, Tensor],
    bias: Tensor | None = None,
) -> tuple[StructuredLayer, str]:
    """Put a structure in the place of a site's weight, for all of its names.

    Tied uses share one set of core parameters. Returns the first layer and its path in the model.
    A new `bias` replaces the owner's. Raises PassError where the owner cannot be found.
    """
    first: StructuredLayer | None = None
    first_path = ""
    made: dict[int, StructuredLayer] = {}
    for alias in site.aliases:
        try:
            module, attribute = owner_of(model, alias)
        except AttributeError as error:
            raise PassError(f"the model has no {alias!r}", where=f"site {site.name}") from error
        if id(module) in made or isinstance(module, StructuredLayer):
            if id(module) in made:
                replace_module_(model, alias.rpartition(".")[0], made[id(module)])
            continue
        if attribute not in module._parameters:
            continue  # a shared module whose parameter was replaced under another of its names
        kind = _standing(site, alias, module, attribute)
        shared = first.cores if first is not None else cores
        view = view_for(site, kind or site.op, site.transposed)
        own_bias = _bias_of(module, kind, bias if first is None else None)
        places = first.positions if first is not None else None
        layer = StructuredLayer(structure, view, dict(shared), own_bias, places)
        layer.train(module.training)
        if first is None:
            _keep_frozen(layer, module._parameters[attribute])
        if kind:
            keep_hooks(module, layer)
            path = alias.rpartition(".")[0]
            made[id(module)] = layer
            replace_module_(model, path, layer)
        else:
            _set_bias(module, attribute, bias if first is None else None)
            install_rebuilt_(module, attribute, layer)
            path = f"{alias}_structure"
        if first is None:
            first, first_path = layer, path
    if first is None:
        raise PassError(f"no parameter of {site.name} is left to replace")
    return first, first_path


def _standing(site: Site, alias: str, module: nn.Module, attribute: str) -> str:
    """Return the kind of layer of ours that takes the module's place; empty where it stays."""
    place = alias.rpartition(".")[0]
    if not place:
        return ""  # the model itself: nothing holds it in which a layer could take its place
    if any(use.module == place and use.view == "parameter" for use in site.uses):
        return ""
    return layer_kind(module) if attribute == "weight" else ""


def bias_of(model: nn.Module, site: Site) -> nn.Parameter | None:
    """Return the bias that is added to what a site computes, where it is known and its own."""
    if not site.biased:
        return None
    module, attribute = owner_of(model, site.name)
    name = bias_name(attribute)
    found = module._parameters.get(name)
    if not isinstance(found, nn.Parameter):
        return None
    uses = sum(p is found for m in model.modules() for p in m._parameters.values())
    return found if uses == 1 else None


def bias_name(attribute: str) -> str:
    """Return the name of the bias beside a weight: 'bias', 'in_proj_bias'."""
    return attribute.replace("weight", "bias") if "weight" in attribute else "bias"


def _bias_of(module: nn.Module, kind: str, new: Tensor | None) -> Tensor | None:
    if kind in ("linear", "conv"):
        old = module._parameters.get("bias")
        if old is not None and new is not None:
            old.data.copy_(new)
        return old
    return None


def keep_hooks(old: nn.Module, new: nn.Module) -> None:
    """Hand a user's hooks on; the dictionaries themselves, so that their handles go on working."""
    for name in HOOKS:
        setattr(new, name, getattr(old, name))
    new._is_full_backward_hook = old._is_full_backward_hook


def is_watched(module: nn.Module) -> bool:
    """Whether hooks of a user would see other values if the module computed something else."""
    return any(getattr(module, name) for name in HOOKS)


def _set_bias(module: nn.Module, attribute: str, new: Tensor | None) -> None:
    old = module._parameters.get(bias_name(attribute))
    if old is not None and new is not None:
        old.data.copy_(new)


def _keep_frozen(layer: StructuredLayer, old: nn.Parameter | None) -> None:
    """A frozen weight becomes frozen cores."""
    if old is not None and not old.requires_grad:
        for core in layer.cores.values():
            core.requires_grad_(False)


def replace_module_(model: nn.Module, path: str, layer: nn.Module) -> None:
    """Put another module in the place of the one at a path."""
    parent_path, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent_path), name, layer)
