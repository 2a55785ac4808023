"""One model and one configuration of adapters, in PEFT and in tnc, and how far they differ."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peft_models import Model
from tnc.adapters import Adapters, import_peft, import_peft_

TIMES = 2
"""How often PEFT 0.21.2 adds the delta of an attention's out_proj."""


def output_of(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the first output of a model."""
    found = model(**batch)
    return found if isinstance(found, Tensor) else found[0]


def gap(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference over the largest entry."""
    if ours.shape != theirs.shape:
        return math.inf
    size = float(theirs.detach().abs().max().clamp_min(1e-12))
    return float((ours - theirs).detach().abs().max()) / size


@dataclass(frozen=True, eq=False)
class Trial:
    """One model and one configuration: PEFT's model with random factors, and ours from its file."""

    model: Model
    options: Mapping[str, Any]
    folder: Path

    @cached_property
    def base(self) -> nn.Module:
        torch.manual_seed(0)
        found = self.model.make().eval()
        with torch.no_grad():
            for parameter in found.parameters():
                if parameter.dim() == 1:
                    parameter += 0.1 * torch.randn(parameter.shape)
        return found

    @cached_property
    def batch(self) -> Mapping[str, Tensor]:
        return self.model.draw(torch.Generator().manual_seed(1))

    def wrapped(self, seed: int = 2, **more: Any) -> Any:
        """Return a copy of the base in PEFT, with random values in all that is trained."""
        import peft

        options: dict[str, Any] = {"r": 2, **self.options, **more}
        random = options.pop("peft_type", "LORA") == "RANDLORA"
        options.setdefault("randlora_alpha" if random else "lora_alpha", 3)
        options.setdefault("target_modules", list(self.model.targets))
        if self.model.parameters:
            options.setdefault("target_parameters", list(self.model.parameters))
        torch.manual_seed(seed)
        with quiet():
            model = copy.deepcopy(self.base)
            kind = peft.RandLoraConfig if random else peft.LoraConfig
            found = peft.get_peft_model(model, kind(**options)).eval()
        stir(found, seed)
        self.model.prepare(found)
        return found

    def written(self, wrapped: Any, name: str, adapter: str = "default") -> Path:
        """Save one adapter as PEFT does and return its folder."""
        with quiet():
            wrapped.save_pretrained(self.folder / name, selected_adapters=[adapter])
        inside = self.folder / name / adapter
        return inside if inside.exists() else self.folder / name

    @cached_property
    def theirs(self) -> Any:
        return self.wrapped()

    @cached_property
    def path(self) -> Path:
        return self.written(self.theirs, "theirs")

    def ours(self) -> Adapters:
        """Return a fresh copy of the base with PEFT's adapter read."""
        found = import_peft(self.base, self.path, out_proj_times=TIMES)
        found.model.eval()
        return found

    def read(self, adapters: Adapters, folder: Path, name: str) -> None:
        """Add another adapter."""
        import_peft_(adapters.model, folder, name, out_proj_times=TIMES)

    def loaded(self, folder: Path, **options: Any) -> Any:
        """Return a copy of the base with an adapter that PEFT loads."""
        import peft

        with quiet():
            warnings.filterwarnings("error", message=".*missing adapter keys")
            return peft.PeftModel.from_pretrained(
                copy.deepcopy(self.base), folder, **options
            ).eval()

    def run(self, model: nn.Module) -> Tensor:
        """Return a model's output on the batch."""
        return output_of(model, self.batch)


class quiet(warnings.catch_warnings):
    """Silence what PEFT says of small models."""

    def __enter__(self) -> Any:
        found = super().__enter__()
        warnings.simplefilter("ignore")
        return found


def stir(model: nn.Module, seed: int) -> None:
    """Give all that is trained other values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
