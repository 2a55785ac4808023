"""Artifacts that `from_pretrained` of transformers reads, once tnc is imported.

An artifact of a transformers model carries a `config.json` that names `tnc` as its quantizer, and
an index of its own files. The index is found by the quantizer alone: transformers without tnc looks
for `model.safetensors`, finds none and stops, where it would fill in random weights otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tnc._transformers import METHOD

CONFIG = "config.json"
INDEX = "tnc.safetensors.index.json"


def describe_for_transformers(
    folder: Path,
    modules: Sequence[Mapping[str, Any]],
    tensors: Mapping[str, str],
    tied: Sequence[Sequence[str]],
) -> None:
    """Let a folder that carries a `config.json` be read by transformers with tnc."""
    config = folder / CONFIG
    if not config.is_file():
        return
    data = json.loads(config.read_text(encoding="utf-8"))
    data["quantization_config"] = {
        "quant_method": METHOD,
        "modules": [dict(entry) for entry in modules],
        "tied": [list(group) for group in tied],
    }
    config.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    sizes = sum((folder / name).stat().st_size for name in set(tensors.values()))
    index = {"metadata": {"total_size": sizes}, "weight_map": dict(tensors)}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
