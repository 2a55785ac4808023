"""Write an adapter as a checkpoint that PEFT loads with equal outputs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tnc
from tnc.adapters.adapters import Adapters, of
from tnc.adapters.converting import check_asked
from tnc.adapters.method import methods
from tnc.adapters.peft import checkpoint, randlora
from tnc.adapters.peft.beside import beside
from tnc.adapters.peft.checkpoint import Checkpoint
from tnc.adapters.peft.factored import EXACT, Row, Wrapped, factored, grouped
from tnc.adapters.peft.held import Held, held_by
from tnc.adapters.peft.layers import checked, is_inputs_first
from tnc.adapters.peft.naming import (
    PREFIX,
    anchored,
    ends_with,
    is_target,
    looked_up,
    target_expression,
)
from tnc.decide.options import as_mapping
from tnc.errors import ArtifactError
from tnc.nn import StructuredLayer


@dataclass(frozen=True)
class Exported:
    """A written checkpoint: its folder, a row for every weight, and what its reader should know."""

    folder: Path
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def error(self) -> float:
        """The largest relative error of a delta."""
        return max(row.error for row in self.rows)


def export_peft(
    adapters: Adapters | nn.Module,
    folder: str | Path,
    name: str | None = None,
    *,
    rank: int | None = None,
    energy: float | None = None,
    out_proj_times: int | None = None,
    force: bool = False,
) -> Exported:
    """Write one adapter (the only one) and what is trained beside it for PEFT.

    Every delta that is a product of two matrices is written as one, with frozen offsets beside it
    (the rank of LoRA-GA doubles). Any other is written as the nearest product, of at most `rank` or
    that keeps the share `energy` of the squared norm, as in `Adapters.to_lora`; with neither it is
    refused. The rows of what is returned state rank and error. What was written is read back and
    compared.

    PEFT 0.21.2 adds the delta of `out_proj` of `nn.MultiheadAttention` twice (its issue #3774). For
    an adapter that has one, say by `out_proj_times` how often the PEFT that is to load it does: 2
    writes half of it, 1 the formula.

    Raises ArtifactError with the weight and the reason where PEFT would compute something else.
    """
    adapters = of(adapters)
    name = adapters._one(name)
    check_asked(rank, energy)
    model, held = adapters.model, held_by(adapters, name)
    parts, own, tensors = _form(model, held, rank, energy, out_proj_times)
    saved = beside(model, {part.path for part in parts if not part.parameter})
    config = {**_common(model, held, parts), **own, **saved.config}
    for part in parts:
        tensors |= {f"{PREFIX}{part.path}.{key}": value for key, value in part.tensors.items()}
    rows = tuple(row for part in parts for row in part.rows)
    told = {"tnc": json.dumps(_provenance(adapters, name, rows))}
    written = Checkpoint(config, checked(tensors | saved.tensors), told)
    _check_matches(model, config, parts)
    place = Path(folder)
    checkpoint.write(written, place, force=force)
    _check_written(written, checkpoint.read(place), place)
    return Exported(place, rows, (*saved.notes, *_notes(model, held)))


Form = tuple[list[Wrapped], dict[str, Any], dict[str, Tensor]]
"""What is wrapped, the configuration's own part, and tensors of the model as a whole."""


def _form(
    model: nn.Module,
    held: Sequence[Held],
    rank: int | None,
    energy: float | None,
    times: int | None,
) -> Form:
    """Choose the type of checkpoint that says what the adapter is: RANDLORA, else LORA."""
    if rank is None and energy is None and randlora.fits(held):
        return randlora.written(held), randlora.settings(held), randlora.shared(held)
    scalable = all(each.can_scale for each in held)
    made = [factored(each, rank, energy, scalable) for each in held]
    magnitudes = any(each.rows is not None for each in made)
    parts = grouped(model, made, magnitudes, times)
    return parts, _lora(held, parts, magnitudes), {}


def _common(model: nn.Module, held: Sequence[Held], parts: Sequence[Wrapped]) -> dict[str, Any]:
    modules = [part.path for part in parts if not part.parameter]
    config = getattr(model, "config", None)
    return {
        "task_type": None,
        "auto_mapping": {
            "base_model_class": type(model).__name__,
            "parent_library": type(model).__module__,
        },
        "base_model_name_or_path": getattr(config, "_name_or_path", None) or None,
        "revision": None,
        "inference_mode": True,
        "target_modules": target_expression(modules) if modules else [],
        "bias": "none",
        "fan_in_fan_out": any(
            is_inputs_first(model.get_submodule(each.path)) for each in held if each.path
        ),
        "modules_to_save": None,
    }


def _lora(held: Sequence[Held], parts: Sequence[Wrapped], magnitudes: bool) -> dict[str, Any]:
    ranks = {part.target: part.rank for part in parts}
    alphas = {part.target: _number(part.scale * part.rank) for part in parts}
    common_rank, common_alpha = _commonest(ranks.values()), _commonest(alphas.values())
    dropouts = {each.delta.dropout for each in held}
    return {
        "peft_type": "LORA",
        "r": common_rank,
        "lora_alpha": common_alpha,
        "rank_pattern": {anchored(k): v for k, v in ranks.items() if v != common_rank},
        "alpha_pattern": {anchored(k): v for k, v in alphas.items() if v != common_alpha},
        "target_parameters": [part.target for part in parts if part.parameter] or None,
        "use_rslora": False,
        "use_dora": magnitudes,
        "lora_dropout": dropouts.pop() if len(dropouts) == 1 else 0.0,
        "init_lora_weights": True,
    }


def _commonest(values: Any) -> Any:
    counted = Counter(values)
    most = max(counted.values())
    return min(value for value, count in counted.items() if count == most)


def _number(value: float) -> int | float:
    """Return a whole number as one: alpha is one in every checkpoint that people write."""
    return round(value) if abs(value - round(value)) < 1e-9 * abs(value) else value


def _check_matches(model: nn.Module, config: Mapping[str, Any], parts: Sequence[Wrapped]) -> None:
    """Raise ArtifactError where PEFT would choose other modules, ranks or scales than was meant."""
    meant = {part.path for part in parts if not part.parameter}
    paths = {path for path, module in model.named_modules() if "adapters_" not in path.split(".")}
    chosen = {path for path in paths if is_target(config, path)}
    if chosen != meant:
        odd = sorted(chosen ^ meant)[0]
        raise ArtifactError(
            f"PEFT's rules of matching would not do what is meant with {odd!r}",
            where=odd,
            hint="a module that is trained whole must not end like, or hold, an adapted one",
        )
    for part in parts:
        rank = looked_up(config.get("rank_pattern", {}), part.target, config["r"])
        alpha = looked_up(config.get("alpha_pattern", {}), part.target, config.get("lora_alpha"))
        scale = part.scale if alpha is None else alpha / rank
        assert rank == part.rank and abs(scale - part.scale) <= 1e-6 * abs(part.scale)
    targets = config.get("target_parameters") or []
    for path, module in model.named_modules():
        for name in module._parameters if "adapters_" not in path.split(".") else ():
            full = f"{path}.{name}"
            if ends_with(full, targets) and full not in targets:
                raise ArtifactError(
                    f"PEFT would adapt {full!r} too: its name ends like an adapted one", where=full
                )


def _check_written(made: Checkpoint, read: Checkpoint, folder: Path) -> None:
    same = made.tensors.keys() == read.tensors.keys() and dict(made.config) == dict(read.config)
    if not same or any(not torch.equal(made.tensors[k], read.tensors[k]) for k in made.tensors):
        raise ArtifactError("what was written is not what is read back", where=str(folder))


def _provenance(adapters: Adapters, name: str, rows: Sequence[Row]) -> dict[str, Any]:
    told = {}
    for path, delta in adapters.deltas(name).items():
        told[path] = as_mapping(methods, delta.method)
    return {
        "tnc": tnc.__version__,
        "adapter": name,
        "methods": told,
        "errors": {row.weight: row.error for row in rows if row.error > EXACT},
    }


def _notes(model: nn.Module, held: Sequence[Held]) -> tuple[str, ...]:
    found = []
    for each in held:
        site = each.delta.site
        if isinstance(model.get_submodule(each.path), StructuredLayer):
            found.append(f"{site.name}: PEFT needs this layer dense (the pass `densify`)")
        if len(site.aliases) > 1:
            found.append(
                f"{site.name} is tied: PEFT trains an adapter of its own for each of "
                f"{', '.join(site.aliases)}, and merging them there adds both to one weight"
            )
    if len({each.delta.dropout for each in held}) > 1:
        found.append("dropouts differ: PEFT has one for all, 0 was written")
    return tuple(dict.fromkeys(found))
