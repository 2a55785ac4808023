"""Convolutions chosen by timing, listed with reasons, written into artifacts and verified."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tnc
from tests.compiled import spec
from tests.unit.artifact.test_kernels import resigned
from tnc.cli import main
from tnc.decide.spec_parts import Kernels
from tnc.errors import KernelError
from tnc.kernels.applied import tuning
from tnc.nn import conv_tuning
from tnc.nn.conv_choice import Asked
from tnc.nn.conv_kernel import ConvKernel
from tnc.nn.conv_outcome import ConvOutcome
from tnc.nn.conv_source import emit
from tnc.nn.conv_tuning import ConvTask, choice_from, choice_to, choices, contenders, timed
from tnc.nn.given import Given
from tnc.nn.kinds import kinds_of

EDGE = 10
RULES = (
    {"match": "0.*", "structure": "tucker", "keep": 0.5},
    {"match": "2.*", "structure": "cp", "keep": 0.4},
    {"match": "4.*", "structure": "low-rank + sparse", "keep": 0.5},
)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TNC_CACHE", str(tmp_path / "cache"))


def original() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(),
            nn.Conv2d(24, 16, 3, stride=2, padding=1, bias=False), nn.ReLU(),
            nn.Conv2d(16, 12, 3), nn.ReLU(),
        ).eval()  # fmt: skip


@cache
def once() -> tnc.api.Compiled:
    return tnc.compile(original(), spec(*RULES), example=torch.zeros(1, 16, EDGE, EDGE))


def compiled() -> nn.Module:
    return copy.deepcopy(once().model)


def kernel(model: nn.Module, path: str) -> ConvKernel:
    found = model.get_submodule(path)._prepared
    assert isinstance(found, ConvKernel)
    return found


def task(model: nn.Module, path: str, training: bool = False, last: bool = False) -> ConvTask:
    asked = Asked((2, 16 if path == "0" else 24, EDGE, EDGE), last, not training, not training)
    return kernel(model, path).task(asked, torch.float32)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("path", ["0", "2"])
def test_every_contender_computes_the_layer(path: str, training: bool, last: bool) -> None:
    model = compiled()
    layer: Any = model.get_submodule(path)
    asked = task(model, path, training, last)
    ways = contenders(asked)
    assert len({emit(way, 2, False) for way in ways}) > 2
    x = torch.randn(asked.asked.shape, generator=torch.Generator().manual_seed(1))
    x = x.to(memory_format=torch.channels_last) if last else x
    cores = dict(layer.cores)
    options = layer.view.options((3, 3))
    wanted = nn.functional.conv2d(x, layer.weight, layer.bias, options.stride, options.padding)
    for way in ways:
        weights = way.weights(cores) if training else way.laid_out(cores, asked.asked.shape)
        torch.testing.assert_close(way.run(weights, layer.bias, x), wanted, rtol=1e-4, atol=1e-4)
        again = choice_from(json.loads(json.dumps(choice_to(way))), asked)
        assert again == way and again.source(True) == way.source(True)


def test_what_is_no_way_to_do_a_task_is_refused() -> None:
    asked = task(compiled(), "0")
    good = choice_to(choices(asked)[0])
    line = next(choice_to(c) for c in contenders(asked) if choice_to(c)["lines"][0])["lines"][0]
    for name, value in (
        ("lines", []),
        ("lines", [{**line, "order": line["order"][:-1]}]),
        ("lines", [{**line, "merges": line["merges"][:-1]}]),
        ("packed", [[False] * 7]),
    ):
        with pytest.raises(KernelError):
            choice_from({**good, name: value}, asked)


@pytest.mark.parametrize("how", ["model", "measure"])
@pytest.mark.parametrize("training", [False, True])
def test_what_is_told_is_what_runs(how: str, training: bool) -> None:
    model = compiled().train(training)
    report = tnc.tune(model, images=(1, 3), how=how, training=training)
    assert [kind.paths for kind, _ in report.layers] == [("0",), ("2",)]
    (plain,) = report.plain
    assert plain.paths == ("4",) and "sparse" in plain.reason
    for (path,), outcomes in ((kind.paths, outcomes) for kind, outcomes in report.layers):
        held = kernel(model, path)._choices
        assert len(outcomes) == 4  # two numbers of images in two formats
        for each in outcomes:
            assert isinstance(each, ConvOutcome)
            assert held[each.task.asked] == each.choice
            assert (each.choice.measured > 0) == (how == "measure") and each.choice.seconds > 0
    told = str(report)
    assert "3 images of 16 x 10 x 10" in told and ("measured" in told) == (how == "measure")


def test_what_was_timed_is_kept_on_disk_and_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = compiled()
    slowest: list[Any] = []

    def last_first(asked: ConvTask, ways: Any) -> Any:
        found = timed(asked, ways)
        slowest.append(found[-1])
        return found[::-1]

    monkeypatch.setattr(conv_tuning, "timed", last_first)
    x = torch.randn(2, 16, EDGE, EDGE)
    with torch.no_grad():
        wanted = model[0](x)
        with tuning("measure"):
            kernel(model, "0").prepare(task(model, "0").asked, torch.float32)
        held = kernel(model, "0")._choices[task(model, "0").asked]
        assert held == slowest[0]
        torch.testing.assert_close(model[0](x), wanted, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(conv_tuning, "timed", lambda *_: pytest.fail("timed again"))
    conv_tuning.measured.cache_clear()
    with tuning("measure"):
        again = choices(task(model, "0"))[0]
    assert again == held and again.measured == held.measured > 0


def test_nothing_is_timed_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv_tuning, "timed", lambda *_: pytest.fail("timed"))
    with torch.no_grad():
        compiled()(torch.zeros(1, 16, EDGE, EDGE))


def test_stages_add_up_and_contenders_differ() -> None:
    for kind in kinds_of(compiled()):
        for found in kind.outcomes(Given(images=(2,))):
            shown = found.shown()
            assert shown.flops > 0 and shown.dense > 0 and shown.predicted > 0
            assert all(other.differs for other in shown.contenders)
            assert shown.source.splitlines()[-1].strip().startswith("return")
            (weight,) = {2 * 2 * 100 * 16 * 24 * 9, 2 * 2 * 25 * 24 * 16 * 9} & {shown.dense_flops}
            assert weight


def test_artifacts_hold_sources_that_are_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tnc.save(once(), tmp_path / "a", kernels=Kernels(images=(1,)))
    files = sorted((folder / "kernels").glob("*.py"))
    assert len(files) == 4  # two layers in two formats
    for text in (file.read_text() for file in files):
        assert "# meets      1 image of" in text and "def forward(x, " in text
    verified = tnc.verify(folder, model=original())
    assert verified.ok, verified.checks
    assert sum("generated again" in name for name, _ in verified.checks) == 4
    assert main(["inspect", str(folder), "--kernels", "--images", "2"]) == 0
    told = capsys.readouterr().out
    for text in ("2 images of 16 x 10 x 10: predicted", "channels last", "why not otherwise",
                 "absorbs", "onednn", "conv2d(", "-> 24 channels",
                 "dense at each call"):  # fmt: skip
        assert text in told, told
    index = json.loads((folder / "kernels/index.json").read_text())
    index["kernels"][0]["choice"]["lines"] = [None, None]
    (folder / "kernels/index.json").write_text(json.dumps(index))
    resigned(folder, "kernels/index.json")
    assert any(
        "2 lines for 1" in result for _, result in tnc.verify(folder, model=original()).checks
    )


@pytest.mark.parametrize("images", [(), (0,), (1.5,)])
def test_images_are_checked(images: Any) -> None:
    with pytest.raises(KernelError, match="images"):
        tnc.tune(compiled(), images=images)


def test_images_of_other_sizes_are_chosen_for_at_the_call() -> None:
    model = compiled()
    tnc.tune(model, images=(1,), how="model")
    x: Tensor = torch.randn(1, 16, EDGE + 3, EDGE)
    with torch.no_grad():
        found = model(x)
    assert found.shape == (1, 12, 5, 3)
    assert {asked.shape[2] for asked in kernel(model, "0")._choices} == {EDGE, EDGE + 3}
