"""Artifacts of transformers models come back through from_pretrained, and only with tnc."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import T5Config, T5ForConditionalGeneration

import tnc
from tests.compiled import HALF, spec
from tests.zoo import case
from tnc.errors import ArtifactError
from tnc.rewrite.contract import outputs_of

ROOT = Path(__file__).parents[3]
CLASSES = {
    "bert": "AutoModel",
    "gpt2": "AutoModelForCausalLM",
    "llama": "AutoModelForCausalLM",
    "t5": "AutoModelForSeq2SeqLM",
    "vit": "AutoModelForImageClassification",
}


def original(name: str) -> tuple[Any, Any]:
    if name != "t5":
        return case(name).build(), case(name).inputs()
    torch.manual_seed(0)
    config = T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    ids = torch.arange(1, 15).reshape(2, 7)
    return T5ForConditionalGeneration(config).eval(), (
        (),
        {"input_ids": ids, "decoder_input_ids": ids[:, :4]},
    )


@pytest.fixture(scope="module", params=sorted(CLASSES))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A compiled model, its example, and its artifact."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    model, example = original(name)
    model.save_pretrained(folder / "source")
    compiled = tnc.compile(model, spec(*HALF), example=example)
    source = {"kind": "hf", "path": str(folder / "source"), "auto": CLASSES[name]}
    files = [f for f in (folder / "source").iterdir() if f.suffix == ".json"]
    tnc.save(compiled, folder / "artifact", source=source, files=files)
    return name, compiled, example, folder / "artifact"


def test_from_pretrained_gives_the_same_model(made: Any) -> None:
    name, compiled, example, folder = made
    found = getattr(transformers, CLASSES[name]).from_pretrained(folder)
    assert any(isinstance(module, tnc.StructuredLayer) for module in found.modules())
    wanted = outputs_of(compiled.model, example)
    for a, b in zip(outputs_of(found, example), wanted, strict=True):
        # matrix products round by how their operands are aligned, and a file aligns otherwise
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    count = sum(p.numel() for p in compiled.model.parameters())
    assert sum(p.numel() for p in found.parameters()) == count
    loaded = tnc.load(folder, check=True)
    assert all(torch.equal(a, b) for a, b in zip(outputs_of(loaded, example), wanted, strict=True))
    assert tnc.verify(folder).ok


def test_save_pretrained_refuses(made: Any, tmp_path: Path) -> None:
    name, compiled, _, folder = made
    from_folder = getattr(transformers, CLASSES[name]).from_pretrained(folder)
    for model in (from_folder, tnc.load(folder), compiled.model):
        tnc.densify(model).save_pretrained(tmp_path / "dense")
        shutil.rmtree(tmp_path / "dense")
        with pytest.raises(ArtifactError, match="save_pretrained cannot write"):
            model.save_pretrained(tmp_path / "copy")
        assert not list(tmp_path.rglob("*.safetensors"))


def test_transformers_alone_stops(made: Any) -> None:
    name, *_, folder = made
    if name not in ("bert", "llama"):
        pytest.skip("two families are enough: the file names are what stops it")
    code = (
        f"import sys, transformers\nassert 'tnc' not in sys.modules\n"
        f"transformers.{CLASSES[name]}.from_pretrained({str(folder)!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode and "no file named model.safetensors" in done.stderr


@pytest.mark.parametrize("first", ["tnc", "transformers", "tnc.artifact.quantizer"])
def test_the_order_of_imports_does_not_matter(first: str) -> None:
    second = "tnc" if first == "transformers" else "transformers"
    code = (
        f"import {first}\nimport {second}\n"
        "from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as known\n"
        "assert known['tnc'].__module__ == 'tnc.artifact.quantizer'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_missing_file_is_an_error(made: Any, tmp_path: Path) -> None:
    name, *_, folder = made
    copy = shutil.copytree(folder, tmp_path / "copy")
    next(copy.glob("tnc-*.safetensors")).unlink()
    with pytest.raises(OSError):
        getattr(transformers, CLASSES[name]).from_pretrained(copy)
    with pytest.raises(ArtifactError, match="is missing"):
        tnc.load(copy)
