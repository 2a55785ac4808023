"""Channels last: laid out once at the entrance, kept to the end, copied, saved and loaded."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tnc
from benchmarks.resnet import resnet20
from tests.compiled import spec
from tests.unit.rewrite.test_manager import subject_of
from tests.unit.rewrite.test_passes import run
from tnc.artifact.exporting import exported
from tnc.nn.channels_last import convolutions, has_entrance, keeps
from tnc.nn.conv_stage import is_last

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
PASSES = ("fold-batch-norm", "find-sites", "factorize", "keep-ties", "channels-last")


def formats(model: nn.Module, x: Tensor) -> dict[str, bool]:
    """Return for every convolution whether its input lies with channels last."""
    found: dict[str, bool] = {}
    for path, module in convolutions(model):
        module.register_forward_pre_hook(
            lambda _, args, path=path: found.update({path: keeps(args[0])})
        )
    with torch.no_grad():
        model(x)
    return found


@pytest.fixture(scope="module")
def compiled() -> tnc.api.Compiled:
    torch.manual_seed(0)
    rule = {"match": "layer*", "op": "conv", "structure": "tucker", "keep": 0.5}
    return tnc.compile(
        resnet20().eval(),
        spec(rule, {"match": "*", "structure": "dense"}, passes=PASSES),
        example=IMAGES,
    )


def test_the_format_reaches_every_convolution_of_a_resnet(compiled: tnc.api.Compiled) -> None:
    (edits,) = [r.edits for r in compiled.records if r.name == "channels-last"]
    assert edits[0] == "images are laid out with channels last where they enter the model"
    assert "laid out the weight of conv1" in edits
    assert not any(line.startswith("left") for line in edits)
    found = formats(copy.deepcopy(compiled.model), IMAGES)
    assert len(found) == 19 and all(found.values())
    assert not IMAGES.is_contiguous(memory_format=torch.channels_last)


def test_copies_artifacts_compilers_and_exports_keep_it(
    compiled: tnc.api.Compiled, tmp_path: Path
) -> None:
    with torch.no_grad():
        wanted = compiled.model(IMAGES)
        loaded = tnc.load(tnc.save(compiled, tmp_path / "a"), model=resnet20())
        for other in (
            copy.deepcopy(compiled.model),
            pickle.loads(pickle.dumps(compiled.model)),
            loaded,
        ):
            assert has_entrance(other) and is_last(other.conv1.weight)
            torch.testing.assert_close(other(IMAGES), wanted, rtol=1e-4, atol=1e-4)
            assert all(formats(other, IMAGES).values())
        graph = torch.compile(copy.deepcopy(compiled.model), backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(graph(IMAGES), wanted, rtol=1e-4, atol=1e-4)
        program = exported(compiled.model, ((IMAGES,), {})).module()
        torch.testing.assert_close(program(IMAGES), wanted, rtol=1e-4, atol=1e-4)


def test_a_model_that_keeps_it_already_is_left() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).to(memory_format=torch.channels_last)
    x = IMAGES.to(memory_format=torch.channels_last)
    kept, told = run(subject_of(model, x), "channels-last")
    assert told == ("nothing to do: the model keeps channels last as it is",)
    assert not has_entrance(kept)


class Views(nn.Module):
    """A model whose code views an activation, which must lie with channels first for that."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y.view(y.shape[0], -1)


class Breaks(nn.Module):
    """A model that lays out its activations itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x).contiguous())
        return y


def test_what_does_not_take_it_is_left_with_a_reason() -> None:
    kept, told = run(subject_of(Views(), IMAGES), "channels-last")
    assert told[0].startswith("left the model: its code fails with channels last: view size")
    assert not has_entrance(kept) and kept.conv.weight.is_contiguous()
    kept, told = run(subject_of(Breaks(), IMAGES), "channels-last")
    assert "left second: its input comes with channels first" in told
    assert told[-1] == "output 0 lies with channels last" and has_entrance(kept)
    _, told = run(subject_of(nn.Linear(4, 4), torch.ones(2, 4)), "channels-last")
    assert told == ("no convolution of two or three axes runs on the example input",)
