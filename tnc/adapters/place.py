"""Places: the weights of a model that an adapter can stand beside, dense ones and structured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from tnc.adapters.applied import applied_kind
from tnc.adapters.bank import BANK, bank_of
from tnc.adapters.base import base_weight
from tnc.capture import layer_kind
from tnc.decide.site import Site, Use
from tnc.errors import PlanError
from tnc.net import Signature
from tnc.nn import StructuredLayer, View
from tnc.nn.rebuilt import SUFFIX
from tnc.rewrite.edit import owner_of, view_for

OPS = {"linear": "linear", "conv": "conv", "embedding": "embedding", "stack": "experts"}
"""What the weight of a structured layer is applied as, by its view."""


@dataclass(frozen=True)
class Owner:
    """A module that holds the weight, and the kind by which it applies it: '' where code reads it.

    `path` and `attribute` say where the weight is; the adapted module is the one at `path`.
    """

    path: str
    attribute: str
    kind: str


@dataclass(frozen=True)
class Place:
    """A weight with everything that holds it. Of a structured layer it is the product of its cores.

    The site's name is that of the weight: `fc.weight`, also where the layer at `fc` is structured.
    """

    site: Site
    owners: tuple[Owner, ...]
    views: tuple[View, ...]

    def weight(self, model: nn.Module) -> Tensor:
        """Return the base weight in its stored layout, without adapters."""
        owner = self.owners[0]
        module = model.get_submodule(owner.path)
        if owner.kind == "structured" or isinstance(module, StructuredLayer):
            found: Tensor = StructuredLayer.weight.fget(module)  # type: ignore[attr-defined]
            return found
        return base_weight(module, owner.attribute)

    def mapped(self, model: nn.Module) -> Tensor:
        """Return the base weight as a map, outputs first, detached."""
        return self.weight(model).detach().permute(self.site.order)

    @property
    def structured(self) -> bool:
        """Whether the base is made of cores."""
        return self.owners[0].kind == "structured"


def place_of(model: nn.Module, adapter: str, name: str) -> Place:
    """Return the place of a weight that has a delta of an adapter, with the delta's views."""
    site: Site | None = None
    owners, views = [], []
    for path, module in model.named_modules(remove_duplicate=False):
        bank = bank_of(module)
        for attribute, delta in (bank.held(adapter) if bank else {}).items():
            if bank is not None and delta.site.name == name:
                site = delta.site
                owners.append(Owner(path, attribute, bank.kind))
                views.append(delta.layer.view)
    if site is None:
        raise PlanError(f"adapter {adapter!r} has no delta of {name!r}")
    return Place(site, tuple(owners), tuple(views))


def places(model: nn.Module, sites: tuple[Site, ...]) -> tuple[Place, ...]:
    """Return the places of a model from the sites of its trace, structured layers included."""
    found = [_dense(model, site) for site in sites]
    found += _structured(model)
    return tuple(sorted(found, key=lambda place: place.site.name))


def _dense(model: nn.Module, site: Site) -> Place:
    owners, views = [], []
    for alias in site.aliases:
        module, attribute = owner_of(model, alias)
        path = alias.rpartition(".")[0]
        found = [use for use in site.uses if use.module == path]
        read = bool(path) and any(
            use.view == "parameter" for use in found
        )  # none is above the root
        kind = layer_kind(module) if attribute == "weight" and not read else ""
        owners.append(Owner(path, attribute, applied_kind(module, kind) if kind else ""))
        views.append(view_for(site, kind or site.op, site.transposed))
    return Place(site, tuple(owners), tuple(views))


def _structured(model: nn.Module) -> list[Place]:
    found: dict[tuple[int, ...], Place] = {}
    for path, layer in model.named_modules(remove_duplicate=False):
        if not isinstance(layer, StructuredLayer) or BANK in path.split("."):
            continue  # the layers of deltas are no bases
        key = tuple(id(core) for core in layer.cores.values())
        name = f"{path.removesuffix(SUFFIX)}.weight" if not path.endswith(SUFFIX) else path
        owner = Owner(path, "weight", "structured")
        known = found.get(key)
        if known is None:
            found[key] = Place(_site_of(name, layer), (owner,), (layer.view,))
        else:
            site = known.site
            named = Site(**{**_fields(site), "aliases": (*site.aliases, name)})
            found[key] = Place(named, (*known.owners, owner), (*known.views, layer.view))
    return list(found.values())


def _fields(site: Site) -> dict[str, Any]:
    return {name: getattr(site, name) for name in site.__dataclass_fields__}


def _site_of(name: str, layer: StructuredLayer) -> Site:
    view = layer.view
    op = OPS.get(view.name, "spectral" if view.name == "stored" else "")
    if not op:
        raise PlanError(f"no adapter for layers of the kind {view.name}", where=name)
    core = next(iter(layer.cores.values()))
    use = Use(name.removesuffix(".weight"), op, "module", getattr(view, "rows", 128))
    order = getattr(view, "order", ())
    return Site(
        name,
        (name,),
        layer.structure.signature,
        str(core.dtype).removeprefix("torch."),
        (use,),
        transposed=bool(getattr(view, "transposed", False)),
        groups=int(getattr(view, "groups", 1)),
        stored=tuple(order.index(axis) for axis in range(len(order))),
    )


def site_to_json(site: Site) -> dict[str, Any]:
    """Write a site as plain data."""
    return asdict(site)


def site_from_json(data: Mapping[str, Any]) -> Site:
    """Read what `site_to_json` wrote."""
    sides = data["signature"]
    return Site(
        data["name"],
        tuple(data["aliases"]),
        Signature(tuple(sides["outputs"]), tuple(sides["inputs"])),
        data["dtype"],
        tuple(Use(**use) for use in data["uses"]),
        data["transposed"],
        data["trainable"],
        data["biased"],
        data["groups"],
        tuple((name, _tupled(value)) for name, value in data["options"]),
        tuple(data["stored"]),
    )


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
