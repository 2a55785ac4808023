"""Transformers models from a local folder: `config.json`, safetensors, a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tnc.errors import MissingExtra, SourceError
from tnc.sources.checkpoint import Checkpoint, open_checkpoint, shard_files
from tnc.sources.reference import find_path
from tnc.sources.source import Batch, Loaded, ModelSource, Streamed, models

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
        try:
            model, told = self._class().from_pretrained(
                folder, dtype=self.dtype, output_loading_info=True, **_LOCAL
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise SourceError(
                f"cannot load the model: {error}",
                where=str(folder),
                hint="the folder needs a config.json and weights that belong together",
            ) from error
        _check_loaded(told, folder)
        tokenizer = self._tokenizer(folder)
        files = tuple(folder / name for name in _CARRIED if (folder / name).is_file())
        return Loaded(model.eval(), _example(tokenizer, model), tokenizer, files)

    def stream(self) -> Streamed:
        from tnc.sources.skeleton import streamed

        folder = find_path(self.path)
        checkpoint = open_checkpoint(shard_files(folder))
        config = _transformers().AutoConfig.from_pretrained(folder, **_LOCAL)
        dtype = self.dtype if self.dtype != "auto" or config.dtype else _stored_dtype(checkpoint)
        model = replace(self, dtype=dtype).skeleton(folder)
        tokenizer = self._tokenizer(folder)
        files = tuple(folder / name for name in _CARRIED if (folder / name).is_file())
        inputs = _example(tokenizer, model)
        return streamed(model, checkpoint, _renaming(model), inputs, tokenizer, files)

    def stored_bytes(self) -> int:
        try:
            return sum(file.stat().st_size for file in shard_files(find_path(self.path)))
        except (OSError, SourceError):
            return 0  # what is wrong with the files is said where they are read

    def _tokenizer(self, folder: Path) -> Any:
        if any((folder / name).exists() for name in _CARRIED[2:]):
            return _transformers().AutoTokenizer.from_pretrained(folder, **_LOCAL)
        return None

    def skeleton(self, folder: Path | None = None) -> nn.Module:
        import torch

        from tnc.sources.skeleton import without_memory

        folder = folder or find_path(self.path)
        config = _transformers().AutoConfig.from_pretrained(folder, **_LOCAL)
        dtype = {} if self.dtype == "auto" else {"dtype": getattr(torch, self.dtype)}
        with without_memory():
            model: nn.Module = self._class().from_config(config, **dtype)
        return model.eval()

    def _class(self) -> Any:
        found = getattr(_transformers(), self.auto, None)
        if found is None:
            raise SourceError(f"transformers has no class {self.auto!r}")
        return found


_LOCAL = {"local_files_only": True, "trust_remote_code": False}


def _check_loaded(told: Mapping[str, Any], folder: Path) -> None:
    """Refuse a model that transformers filled up with random weights."""
    missing = sorted(map(str, told.get("missing_keys", ())))
    if missing:
        more = f" and {len(missing) - 1} more of the model's tensors" if missing[1:] else ""
        raise SourceError(
            f"the checkpoint has no {missing[0]!r}{more}",
            where=str(folder),
            hint="name the class in `auto` that the checkpoint was saved from, or save it again",
        )


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra(
            "a model of kind 'hf' needs transformers", hint="pip install 'tnc[hf]'"
        ) from error
    return transformers


def _stored_dtype(checkpoint: Checkpoint) -> str:
    """Return the dtype of the first tensor of floating point, as transformers does."""
    names = {"F32": "float32", "F64": "float64", "BF16": "bfloat16", "F16": "float16"}
    found = (names[t.dtype] for t in checkpoint.tensors.values() if t.dtype in names)
    return next(found, "float32")


def _renaming(model: Any) -> Callable[[str], str]:
    """Return how transformers renames the tensors of a file; those it converts keep their names."""
    known = model.state_dict()
    prefix = getattr(model, "base_model_prefix", "")
    start = f"{prefix}." if prefix else ""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming

        steps = [s for s in get_model_conversion_mapping(model) if isinstance(s, WeightRenaming)]
    except ImportError:  # before transformers 5
        steps = []

    def renamed(key: str) -> str:
        new = key
        for step in steps:
            new = step.rename_source_key(new)[0]
        forms = [f for n in (new, key) for f in (n, n.removeprefix(start), start + n)]
        return next((form for form in forms if form in known), key)

    return renamed


def _example(tokenizer: Any, model: nn.Module) -> Batch | None:
    if tokenizer is None or getattr(model, "main_input_name", "") != "input_ids":
        return None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return dict(tokenizer(list(_EXAMPLE), padding=True, return_tensors="pt"))
