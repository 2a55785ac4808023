"""The quantizer that transformers runs to read an artifact; see `tnc.artifact.hugging`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from tnc._transformers import METHOD
from tnc.artifact.hugging import INDEX
from tnc.artifact.loading import tie_
from tnc.artifact.modules import lay_out_, rebuild_modules_
from tnc.errors import ArtifactError
from tnc.net import from_json


class TncConfig(QuantizationConfigMixin):
    """What `config.json` says of an artifact: the rewritten modules and the tied names."""

    def __init__(
        self,
        modules: Sequence[Mapping[str, Any]] = (),
        tied: Sequence[Sequence[str]] = (),
        **_: Any,
    ) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]
        self.modules = [dict(entry) for entry in modules]
        self.tied = [list(group) for group in tied]


class TncQuantizer(HfQuantizer):
    """Puts structured layers into the skeleton; transformers then fills them by name."""

    requires_calibration = True
    quantization_config: TncConfig

    def update_attn_implementation(self, config: Any) -> Any:
        """Name the index: transformers asks for this before it looks for weights."""
        config.transformers_weights = INDEX
        return config

    def _process_model_before_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        entries = tuple(self.quantization_config.modules)
        dtype = getattr(model, "dtype", torch.float32)
        shapes = shapes_of(entries, dtype)
        for entry in entries:
            if entry["kind"] == "bias":
                weight = model.get_submodule(entry["path"]).weight
                assert isinstance(weight, Tensor)
                shapes[f"{entry['path']}.bias"] = weight.new_empty(len(weight))
        rebuild_modules_(model, entries, shapes)
        _forget_ties_(model)
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        tie_(model, tuple(tuple(group) for group in self.quantization_config.tied))
        lay_out_(model, tuple(self.quantization_config.modules))
        empty = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
        if empty:
            raise ArtifactError(
                f"{empty[0]} is in no file of the artifact",
                hint="read it with tnc.load, which says what is wrong",
            )
        return model

    def is_serializable(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse `save_pretrained`: its file names would let others fill in random weights."""
        raise ArtifactError(
            "save_pretrained cannot write a model that tnc compiled",
            hint="keep the artifact's folder, or write the state dict with safetensors",
        )

    @property
    def is_trainable(self) -> bool:
        """Cores are parameters like others."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Cores are parameters like others."""
        return True


def _forget_ties_(model: nn.Module) -> None:
    """Drop the ties of weights that are cores now: transformers would look for the weights."""
    known = dict(model.named_parameters(remove_duplicate=False))
    ties = getattr(model, "all_tied_weights_keys", None)
    if isinstance(ties, dict):
        kept = {a: b for a, b in ties.items() if a in known and b in known}
        model.all_tied_weights_keys = kept  # type: ignore[assignment]


def shapes_of(entries: Sequence[Mapping[str, Any]], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors that described modules need, without memory."""
    found: dict[str, Tensor] = {}
    for entry in entries:
        path = entry["path"]
        if entry["kind"] == "rebuilt":
            path = f"{path}.{entry['name']}_structure".lstrip(".")
        if "structure" not in entry:
            continue
        structure = from_json(entry["structure"])
        shapes = {f"{path}.cores.{name}": shape for name, shape in structure.shapes.items()}
        if entry["bias"]:
            shapes[f"{path}.bias"] = structure.signature.outputs
        for name, shape in shapes.items():
            found[name] = torch.empty(shape, dtype=dtype, device="meta")
    return found


if METHOD not in auto.AUTO_QUANTIZER_MAPPING:
    auto.register_quantization_config(METHOD)(TncConfig)
    auto.register_quantizer(METHOD)(TncQuantizer)
