"""RandLoRA in PEFT's files: one pair of random bases for all weights, read in PEFT's order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from tnc.adapters.methods.randlora import Bases, RandLoRA
from tnc.adapters.peft.checkpoint import Checkpoint
from tnc.adapters.peft.factored import Row, Wrapped
from tnc.adapters.peft.held import Held
from tnc.adapters.peft.layers import LINEAR, Tensors, wrapped_as
from tnc.adapters.peft.naming import PREFIX
from tnc.adapters.peft.places import place_at
from tnc.adapters.peft.read import Loaded, Read
from tnc.adapters.peft.settings import KNOWN, RANDLORA, check_known
from tnc.adapters.start import Parts
from tnc.decide.site import Site
from tnc.errors import ArtifactError

A, B = "randlora_A", "randlora_B"
LAMBDA, GAMMA = "randlora_lambda", "randlora_gamma"


def fits(held: Sequence[Held]) -> bool:
    """Tell whether PEFT's RandLoRA does what all of these adapters do."""
    methods = {each.delta.method for each in held}
    own = [method for method in methods if isinstance(method, RandLoRA)]
    plain = all(each.layer is LINEAR and not each.found.attention for each in held)
    return len(methods) == len(own) == 1 and own[0].order == "peft" and plain


def settings(held: Sequence[Held]) -> dict[str, Any]:
    """Return the configuration's own part."""
    method = held[0].delta.method
    assert isinstance(method, RandLoRA)
    return {
        "peft_type": "RANDLORA",
        "r": method.rank,
        "randlora_alpha": held[0].delta.factor * method.rank,
        "randlora_dropout": method.dropout,
        "projection_prng_key": 0,
        "save_projection": True,
        "sparse": method.bases == "sparse",
        "very_sparse": method.bases == "very-sparse",
        "init_weights": True,
    }


def shared(held: Sequence[Held]) -> Tensors:
    """Return the random bases by key."""
    return {f"base_model.{name}": value for name, value in _bases(held).items()}


def written(held: Sequence[Held]) -> list[Wrapped]:
    """Return what PEFT wraps; it wants the bases beside every layer once more."""
    bases, found = _bases(held), []
    for each in held:
        cores, method = each.delta.tensors(), each.delta.method
        assert isinstance(method, RandLoRA)
        tensors = {LAMBDA: cores["L"], GAMMA: cores["G"], **bases}
        weight = f"{each.path}.{each.attribute}"
        row = Row(weight, str(method), method.rank, each.delta.factor, 0.0, "as RandLoRA")
        found.append(Wrapped(each.path, each.path, method.rank, each.delta.factor, tensors, (row,)))
    return found


def _bases(held: Sequence[Held]) -> Tensors:
    """Return A (r, 1, d) and B (D, n, r) as large as PEFT makes them for these weights.

    What no weight reads is zero. Raises ArtifactError where two weights have other bases.
    """
    sides = [_sides(each.delta.site) for each in held]
    outputs, inputs = max(o for o, _ in sides), max(i for _, i in sides)
    small, large = min(outputs, inputs), max(outputs, inputs)
    first = held[0].delta
    rank = first.method.rank  # type: ignore[attr-defined]
    like = first.tensors()["A"]
    a = like.new_zeros(rank, 1, small)
    b = like.new_zeros(large, ceil(small / rank), rank)
    for each in held:
        cores = each.delta.tensors()
        own = cores["A"].detach()
        mine = cores["B"].detach().reshape(cores["B"].shape[0], -1, rank)
        for whole, part in (
            (a[:, 0, : own.shape[1]], own),
            (b[: len(mine), : mine.shape[1]], mine),
        ):
            if bool(((whole != part) & (whole != 0)).any()):
                raise ArtifactError(
                    f"{each.path} has random bases of its own, PEFT has one pair for all",
                    where=each.path,
                    hint="give rank= or energy= for the nearest LoRA",
                )
            whole.copy_(part)
    return {A: a, B: b}


def _sides(site: Site) -> tuple[int, int]:
    return site.signature.outputs[-1], site.signature.inputs[0]


@torch.no_grad()
def read_randlora(
    model: nn.Module,
    found: Checkpoint,
    where: str,
    initial: Checkpoint | None,
    times: int | None,
) -> Read:
    """Read a checkpoint of the type RANDLORA."""
    config = found.config
    check_known(config, where, KNOWN | RANDLORA)
    layers, rest = _layers(found, where)
    method = RandLoRA(
        rank=int(config["r"]),
        alpha=float(config["randlora_alpha"]),
        bases=_bases_of(config),
        order="peft",
        dropout=float(config.get("randlora_dropout") or 0.0),
    )
    a, b = _projections(found, layers, where)
    orders: dict[int, Tensor] = {}
    loaded = []
    for path, tensors in layers.items():
        if wrapped_as(_module(model, path, where)) is not LINEAR:
            raise ArtifactError(f"PEFT has no RandLoRA for {path!r}", where=where)
        place = place_at(model, path, "weight")
        small, large = sorted(_sides(place.site))
        n = ceil(small / method.rank)
        if tensors[LAMBDA].shape != (method.rank, n) or tensors[GAMMA].shape != (n, small):
            raise ArtifactError(
                f"{path}: {LAMBDA} {tuple(tensors[LAMBDA].shape)} and {GAMMA} "
                f"{tuple(tensors[GAMMA].shape)} do not fit a weight of {place.site.signature}",
                where=where,
            )
        if n not in orders:
            orders[n] = b[:, :n].reshape(len(b), method.rank, n)
        cores = {
            "A": a[:, 0, :small],
            "B": orders[n][:large],
            "L": tensors[LAMBDA],
            "G": tensors[GAMMA],
        }
        loaded.append(Loaded(place, method, Parts(cores, shared=("A", "B"))))
    paths = {path: path for path in layers}
    return Read(loaded, rest, paths, frozenset(layers))


def _bases_of(config: Mapping[str, Any]) -> Bases:
    if config.get("very_sparse"):
        return "very-sparse"
    return "sparse" if config.get("sparse") else "uniform"


def _layers(found: Checkpoint, where: str) -> tuple[dict[str, Tensors], dict[str, Tensor]]:
    layers: dict[str, Tensors] = {}
    rest = {}
    for key, value in found.tensors.items():
        path, _, last = key.rpartition(".")
        if last in (A, B) and path == "base_model":
            continue
        if not key.startswith(PREFIX):
            raise ArtifactError(f"the key {key!r} does not begin with {PREFIX!r}", where=where)
        if last in (A, B, LAMBDA, GAMMA):
            layers.setdefault(path.removeprefix(PREFIX), {})[last] = value
        else:
            rest[key.removeprefix(PREFIX)] = value
    for path, tensors in layers.items():
        for last in (LAMBDA, GAMMA):
            if last not in tensors:
                raise ArtifactError(f"the checkpoint lacks {last!r} of {path!r}", where=where)
    if not layers:
        raise ArtifactError("the checkpoint has no tensors of an adapter", where=where)
    return layers, rest


def _projections(
    found: Checkpoint, layers: Mapping[str, Tensors], where: str
) -> tuple[Tensor, Tensor]:
    """Return the random bases. Raises ArtifactError where they were not saved."""
    own = {last: found.tensors.get(f"base_model.{last}") for last in (A, B)}
    for last in (A, B):
        copies = (tensors[last] for tensors in layers.values() if last in tensors)
        value = own[last] if own[last] is not None else next(copies, None)
        if value is None:
            raise ArtifactError(
                f"the checkpoint lacks {last!r}: the random bases were not saved",
                where=where,
                hint="save it with save_projection=True: from a seed they differ by machine",
            )
        own[last] = value
    a, b = own[A], own[B]
    assert a is not None and b is not None
    return a, b


def _module(model: nn.Module, path: str, where: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise ArtifactError(
            f"the model has no module {path!r}",
            where=where,
            hint="a checkpoint belongs to the model that it was made for",
        ) from None
