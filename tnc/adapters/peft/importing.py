"""Read checkpoints of PEFT beside a model's weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tnc.adapters.adapters import Adapters
from tnc.adapters.attach import Pool, attach_, shared_copy
from tnc.adapters.bank import check_name
from tnc.adapters.peft import checkpoint
from tnc.adapters.peft.beside import put_, read_beside
from tnc.adapters.peft.checkpoint import Checkpoint
from tnc.adapters.peft.lora import read_lora
from tnc.adapters.peft.naming import check_targets
from tnc.adapters.peft.places import joined
from tnc.adapters.peft.randlora import read_randlora
from tnc.adapters.peft.read import Loaded, Read
from tnc.adapters.storing import check_beside
from tnc.capture.model import Holder, model_of
from tnc.errors import ArtifactError

Reader = Callable[[nn.Module, Checkpoint, str, Checkpoint | None, int | None], Read]
READERS: Mapping[str, Reader] = {"LORA": read_lora, "RANDLORA": read_randlora}
"""How a checkpoint of each type is read: model, files, where, the start's files, `times`."""


def import_peft(
    model: nn.Module | Holder,
    folder: str | Path,
    name: str = "default",
    *,
    initial: str | Path | None = None,
    out_proj_times: int | None = None,
) -> Adapters:
    """Return a copy of a model, sharing its weights, with the adapter of a PEFT checkpoint.

    LoRA, rsLoRA and DoRA in any form that changes weights alone, with the modules and biases that
    were trained beside it. Where the start changed the base (PiSSA, OLoRA), what was taken from it
    is computed again and kept as frozen factors. Of other such starts (LoRA-GA, CorDA,
    `pissa_niter_N`) `initial` is the checkpoint of the adapter as it was before training. Tied
    modules with equal adapters get one, tied too.

    PEFT up to 0.21.2 adds the delta of `out_proj` of `nn.MultiheadAttention` twice: say by
    `out_proj_times` how often the one did with which the adapter was trained.

    Raises ArtifactError that names what the checkpoint has and the model has not, what is missing,
    and every setting that cannot be read. PEFT is not needed.
    """
    return import_peft_(
        shared_copy(model_of(model)), folder, name, initial=initial, out_proj_times=out_proj_times
    )


def import_peft_(
    model: nn.Module | Holder,
    folder: str | Path,
    name: str = "default",
    *,
    initial: str | Path | None = None,
    out_proj_times: int | None = None,
) -> Adapters:
    """Put the adapter of a checkpoint beside a model's own weights; see `import_peft`."""
    model = model_of(model)
    Adapters(model).check_unmerged()
    check_name(name)
    found = checkpoint.read(folder)
    place = str(folder)
    reader = READERS.get(str(found.config["peft_type"]).upper())
    if reader is None:
        raise ArtifactError(
            f"peft_type is {found.config['peft_type']!r}; read are {', '.join(sorted(READERS))}",
            where=place,
            hint="convert it in PEFT (convert_to_lora), or merge it into its base there",
        )
    start = checkpoint.read(initial) if initial is not None else None
    read = reader(model, found, place, start, out_proj_times)
    check_targets(model, found.config, read.targets, place)
    values = read_beside(model, found.config, read, place)
    check_beside(model, values, place)
    pool = Pool()
    for each in _tied(model, read.loaded):
        structure = each.parts.structure or each.method.structure(each.place.site)
        attach_(model, each.place, name, each.method, structure, each.parts, pool=pool)
    put_(model, values)
    return Adapters(model)


def _tied(model: nn.Module, loaded: Sequence[Loaded]) -> list[Loaded]:
    """Join equal adapters of modules that share one weight: they were one before."""
    groups: dict[int, list[Loaded]] = {}
    for each in loaded:
        owner = each.place.owners[0]
        held: Any = model.get_submodule(owner.path)._parameters.get(owner.attribute)
        key = id(each) if held is None else id(held)
        groups.setdefault(key, []).append(each)
    found = []
    for several in groups.values():
        first = several[0]
        if all(_equal(first, other) for other in several[1:]):
            place = joined([each.place for each in several]) if len(several) > 1 else first.place
            found.append(Loaded(place, first.method, first.parts))
        else:
            found += several
    return found


def _equal(one: Loaded, other: Loaded) -> bool:
    same = one.method == other.method and one.parts.cores.keys() == other.parts.cores.keys()
    return same and all(
        value.shape == other.parts.cores[name].shape and torch.equal(value, other.parts.cores[name])
        for name, value in one.parts.cores.items()
    )
