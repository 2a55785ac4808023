"""Transformers models from a local folder: `config.json`, safetensors, a tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tnc.errors import MissingExtra, SourceError
from tnc.sources.reference import find_path
from tnc.sources.source import Batch, Loaded, ModelSource, models

if TYPE_CHECKING:
    from torch import nn

_DTYPES = ("auto", "float32", "float64", "bfloat16", "float16")
_EXAMPLE = ("A tensor network is a graph of small tensors.", "Its bonds are sums.")
_CARRIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)


@models.register("hf")
@dataclass(frozen=True)
class HuggingFace(ModelSource):
    """A folder in the format of transformers; `package:pkg/folder` finds it inside a package.

    `auto` is the class of transformers that reads it. Nothing is downloaded, and code that lies in
    the folder is never run.
    """

    path: str
    auto: str = "AutoModel"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise SourceError(f"no dtype {self.dtype!r}", hint=f"one of {', '.join(_DTYPES)}")
        if not self.auto.startswith("Auto"):
            raise SourceError(
                f"{self.auto!r} is no Auto class", hint="such as AutoModelForCausalLM"
            )

    def load(self) -> Loaded:
        folder = find_path(self.path)
        transformers = _transformers()
        try:
            model = self._class().from_pretrained(folder, dtype=self.dtype, **_LOCAL)
        except (OSError, ValueError) as error:
            raise SourceError(f"cannot load the model: {error}", where=str(folder)) from error
        tokenizer = None
        if any((folder / name).exists() for name in _CARRIED[2:]):
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **_LOCAL)
        files = tuple(folder / name for name in _CARRIED if (folder / name).is_file())
        return Loaded(model.eval(), _example(tokenizer, model), tokenizer, files)

    def skeleton(self, folder: Path | None = None) -> nn.Module:
        import torch

        folder = folder or find_path(self.path)
        config = _transformers().AutoConfig.from_pretrained(folder, **_LOCAL)
        dtype = {} if self.dtype == "auto" else {"dtype": getattr(torch, self.dtype)}
        model: nn.Module = self._class().from_config(config, **dtype)
        return model.eval()

    def _class(self) -> Any:
        found = getattr(_transformers(), self.auto, None)
        if found is None:
            raise SourceError(f"transformers has no class {self.auto!r}")
        return found


_LOCAL = {"local_files_only": True, "trust_remote_code": False}


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra(
            "a model of kind 'hf' needs transformers", hint="pip install 'tnc[hf]'"
        ) from error
    return transformers


def _example(tokenizer: Any, model: nn.Module) -> Batch | None:
    if tokenizer is None or getattr(model, "main_input_name", "") != "input_ids":
        return None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return dict(tokenizer(list(_EXAMPLE), padding=True, return_tensors="pt"))
