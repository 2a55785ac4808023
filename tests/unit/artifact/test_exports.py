"""Exports run elsewhere: torch.export and onnxruntime at other batch sizes, plain state dicts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tnc
from tests.compiled import halved, spec
from tests.zoo import case
from tnc.errors import ArtifactError, MissingExtra
from tnc.rewrite.contract import outputs_of


def larger(name: str) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Another input of three times the batch."""
    args, kwargs = case(name).inputs(seed=4)
    return (
        tuple(torch.cat([a, a.flip(0), a]) for a in args),
        {key: torch.cat([v, v.flip(0), v]) for key, v in kwargs.items()},
    )


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and float((a - b).detach().norm()) <= 1e-4 * float(b.norm())


@pytest.mark.parametrize("name", ["resnet20", "prime"])
def test_torch_export_reloads_and_takes_another_batch(name: str, tmp_path: Path) -> None:
    folder = tnc.save(halved(name), tmp_path / "artifact")
    file = tnc.export(folder, "torch-export", tmp_path / "m.pt2", case(name).build(seed=1))
    program = torch.export.load(file).module()
    args, kwargs = larger(name)
    found = program(*args, **kwargs)
    found = found if isinstance(found, Tensor) else next(iter(found.values()))
    assert close(found, outputs_of(halved(name).model, (args, kwargs))[0])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["artifact", "m.pt2"]


@pytest.mark.parametrize("name", ["bert"])
def test_onnx_runs_at_another_batch(name: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = tnc.save(halved(name), tmp_path / "artifact")
    file = tnc.export(folder, "onnx", tmp_path / "m.onnx", case(name).build(seed=1))
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    args, kwargs = larger(name)
    values = [*args, *kwargs.values()]
    feed = {node.name: value.numpy() for node, value in zip(session.get_inputs(), values)}
    found = torch.from_numpy(np.asarray(session.run(None, feed)[0]))
    assert close(found, outputs_of(halved(name).model, (args, kwargs))[0])


@pytest.mark.parametrize("name", ["attention", "bert", "functional", "gpt2", "half", "shared"])
def test_a_dense_export_fits_the_original_class(name: str, tmp_path: Path) -> None:
    folder = tnc.save(halved(name), tmp_path / "artifact")
    file = tnc.export(folder, "dense", tmp_path / "m.safetensors", case(name).build(seed=1))
    plain = case(name).build(seed=2)
    plain.load_state_dict(load_file(file), strict=True)
    found, wanted = (outputs_of(m, case(name).inputs(3))[0] for m in (plain, halved(name).model))
    limit = 3e-2 if name == "half" else 1e-4
    assert float((found - wanted).norm()) <= limit * float(wanted.norm())


def test_a_dense_export_of_a_folded_model_has_no_batch_norms(tmp_path: Path) -> None:
    made = tnc.compile(
        case("resnet20").build(), spec(passes=("find-sites", "factorize")),
        example=case("resnet20").inputs(),
    )  # fmt: skip
    kept = tnc.export(tnc.save(made, tmp_path / "a"), "dense", tmp_path / "a.safetensors",
                      case("resnet20").build(seed=1))  # fmt: skip
    case("resnet20").build(seed=2).load_state_dict(load_file(kept), strict=True)
    folded = tnc.export(tnc.save(halved("resnet20"), tmp_path / "b"), "dense",
                        tmp_path / "b.safetensors", case("resnet20").build(seed=1))  # fmt: skip
    names = set(load_file(folded))
    assert "conv1.bias" in names and not any("bn" in name for name in names)


def test_an_unknown_format_is_refused(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="unknown format 'tflite'") as caught:
        tnc.export(artifact, "tflite", tmp_path / "m")
    assert "onnx" in caught.value.hint


def test_a_missing_extra_is_named_and_nothing_is_left(
    artifact: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("tnc.artifact.exporting.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="needs onnx, onnxscript, onnxruntime") as caught:
        tnc.export(artifact, "onnx", tmp_path / "m.onnx")
    assert "pip install 'tnc[onnx]'" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_an_onnx_file_that_computes_something_else_is_refused(
    artifact: Path, tmp_path: Path, monkeypatch
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr("tnc.artifact.exporting.ONNX_RTOL", 0.0)
    with pytest.raises(ArtifactError, match="onnxruntime's output 0 differs by"):
        tnc.export(artifact, "onnx", tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
