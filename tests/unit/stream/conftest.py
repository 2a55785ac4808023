"""Small sharded checkpoints, and specs that compress them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.zoo import case
from tnc.decide.spec import Resolved, Spec

AUTO = {
    "bert": "AutoModel",
    "gpt2": "AutoModelForCausalLM",
    "llama": "AutoModelForCausalLM",
    "vit": "AutoModelForImageClassification",
}
STEP = 4096


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[str], tuple[nn.Module, Path]]:
    """Save a case of the zoo as a checkpoint in several files; return the model and the folder."""

    def save(name: str) -> tuple[nn.Module, Path]:
        model, folder = case(name).build(), tmp_path / name
        model.save_pretrained(folder, max_shard_size="9KB")
        return model, folder

    return save


def padded(loaded: Any, split: str, case_name: str = "llama") -> list[Any]:
    """Batches of tokens, some of them padding."""
    found = [case(case_name).inputs(seed) for seed in range(5)]
    return [kwargs or args for args, kwargs in found]


def seq2seq() -> nn.Module:
    """A T5 with two layers a side: the decoder reads what a norm makes of the encoder's last."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = T5Config(vocab_size=60, decoder_start_token_id=0, **sizes)
        return T5ForConditionalGeneration(config).eval()


def halving(name: str, folder: Path, **more: Any) -> Resolved:
    """A spec that gives every linear layer of a saved case a low rank."""
    pixels = {"kind": "random", "shapes": [[3, 8, 8]]}
    tokens = {"kind": "random", "shapes": [[7]], "below": 50}
    data: dict[str, Any] = {
        "model": {"kind": "hf", "path": str(folder), "auto": AUTO[name]},
        "calibration": (pixels if name == "vit" else tokens) | {"samples": 4, "batch": 2},
        "metric": "none",
        "budget": {"params": 0.7},
        "allocate": "surrogate",
        "round_to": 1,
        "rules": [{"match": "*", "op": "linear", "structure": "low-rank"}],
    }
    return Resolved(Spec(version=1, **{**data, **more}))
