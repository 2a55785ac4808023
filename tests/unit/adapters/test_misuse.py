"""Plausible misuse of adapters in Python: what is wrong, where, what to do; or it is accepted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import tnc
from tnc.errors import TncError
from tnc.sources import Labelled

X = torch.linspace(-1, 1, 48).reshape(6, 8)
Y = torch.arange(6) % 4
LOW_RANK = tnc.Spec(version=1, rules=[{"match": "*", "structure": "low-rank", "keep": 0.5}])


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def adapt(settings: Any = "lora{rank=2}", **given: Any) -> tnc.adapters.Adapters:
    return tnc.adapt(net(), settings, **({"example": X} | given))


def squares(output: Tensor, batch: Any) -> Tensor:
    return output.square().mean()


def one_argument(output: Tensor) -> Tensor:
    return output.sum()


def breaking(output: Tensor, batch: Any) -> Tensor:
    raise IndexError("no such label")


WRONG: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "a tensor as calibration": (
        lambda folder: adapt("eva{rank=2}", calibration=X),
        ("calibration is one Tensor", "at: calibration", "calibration=[batch]"),
    ),
    "a mapping as calibration": (
        lambda folder: adapt("eva{rank=2}", calibration={"input": X}),
        ("calibration is one dict", "calibration=[batch]"),
    ),
    "a number as calibration": (
        lambda folder: adapt("eva{rank=2}", calibration=3),
        ("calibration is of type int, no batches", "try: give a list of batches"),
    ),
    "a tensor as calibration of a compilation": (
        lambda folder: tnc.compile(net(), LOW_RANK, calibration=X),
        ("calibration is one Tensor", "at: calibration"),
    ),
    "a loader's pairs as calibration": (
        lambda folder: tnc.adapt(net(), "lora-ga{rank=1}", calibration=[(X, Y)], loss=squares),
        ("Sequential takes no such arguments as 2 positional", "Labelled((x,), y)"),
    ),
    "a loader's pairs beside an example": (
        lambda folder: adapt("lora-ga{rank=1}", calibration=[(X, Y)], loss=squares),
        ("Sequential takes no such arguments as 2 positional", "Labelled((x,), y)"),
    ),
    "a name as a model": (
        lambda folder: tnc.adapt("bert", "lora"),  # type: ignore[arg-type]
        ("a str is no torch.nn.Module", "at: model", "what tnc.compile returned"),
    ),
    "a class as a model": (
        lambda folder: tnc.adapt(nn.Bilinear, "lora"),  # type: ignore[arg-type]
        ("the class Bilinear is no torch.nn.Module", "at: model"),
    ),
    "a name as a model to compile": (
        lambda folder: tnc.compile("bert", LOW_RANK, example=X),  # type: ignore[arg-type]
        ("a str is no torch.nn.Module",),
    ),
    "a name as the original": (
        lambda folder: adapt("eora{rank=2}", calibration=[X], original="bert"),
        ("a str is no torch.nn.Module", "at: original"),
    ),
    "a module saved as an artifact": (
        lambda folder: tnc.save(adapt().model, folder / "a"),  # type: ignore[arg-type]
        ("a Sequential is not what tnc.compile returned", "tnc.adapters.save"),
    ),
    "a model without adapters saved": (
        lambda folder: tnc.adapters.save(net(), folder / "a"),
        ("the model has no adapters to save", "tnc.adapt attaches some"),
    ),
    "a loss of one argument": (
        lambda folder: adapt("lora-ga{rank=1}", calibration=[X], loss=one_argument),
        ("the loss cannot be called with an output and a batch", "at: loss", "(output, batch)"),
    ),
    "a loss that is none": (
        lambda folder: adapt("lora-ga{rank=1}", calibration=[X], loss=3),
        ("it is of type int", "at: loss"),
    ),
    "text as a share": (
        lambda folder: adapt().use(default="x"),  # type: ignore[arg-type]
        ("'x' is no weight for an adapter", "at: default", "default=0.5"),
    ),
    "NaN as a share": (
        lambda folder: adapt().use(default=float("nan")),
        ("nan is no weight for an adapter", "at: default"),
    ),
    "infinity as a share of a mixture": (
        lambda folder: adapt().mix("both", {"default": float("inf")}),
        ("inf is no weight for an adapter", "at: default"),
    ),
    "a wrong key of one adapter": (
        lambda folder: adapt({"rules": [{"match": "*", "method": "lora"}], "budgt": 1}),
        ("adapters.budgt: unknown key", "did you mean 'budget'?"),
    ),
    "a wrong key of the second adapter": (
        lambda folder: adapt(["lora", {"name": "b", "rules": []}]),
        ("adapters.1.rules: ",),
    ),
    "no settings": (
        lambda folder: adapt(None),
        ("NoneType says no adapter", "at: settings", "'lora{rank=8}'"),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_misuse_is_told(name: str, tmp_path: Path) -> None:
    call, words = WRONG[name]
    with pytest.raises(TncError) as caught:
        call(tmp_path)
    for fragment in words:
        assert fragment in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_share_that_is_refused_changes_nothing() -> None:
    tuned = adapt()
    with pytest.raises(TncError):
        tuned.use(default=float("nan"))
    assert tuned.active == {"default": 1.0}


def test_what_compile_returned_is_taken_as_its_model(tmp_path: Path) -> None:
    made = tnc.compile(net(), LOW_RANK, example=X)
    tuned = tnc.adapt(made, "lora{rank=1}", example=X)
    assert list(tuned.deltas()) == list(tnc.adapt(made.model, "lora{rank=1}", example=X).deltas())
    assert tnc.adapters.plan(made, "lora{rank=1}", example=X).entries
    tnc.adapters.save(tuned, tmp_path / "a")
    assert tnc.adapters.load(made, tmp_path / "a").names == ("default",)
    tnc.adapters.adapt_(made, "lora{rank=1}", example=X)
    assert tnc.adapters.of(made).names == ("default",)


def test_a_model_with_adapters_is_taken_as_they_are(tmp_path: Path) -> None:
    tuned = adapt()
    tnc.adapters.save(tuned.model, tmp_path / "a")
    assert tnc.adapters.load(net(), tmp_path / "a").names == ("default",)
    assert tnc.adapters.export_peft(tuned.model, tmp_path / "p").rows
    optimizer = torch.optim.SGD(tuned.parameters(), lr=0.1)
    followed = tnc.adapters.follow(tuned.model, optimizer)
    tuned.model(X).sum().backward()
    optimizer.step()
    assert followed.steps == 1
    followed.close()
    assert tnc.adapters.of(tuned) is tuned


def test_labels_beside_the_arguments_reach_the_loss() -> None:
    """As the remedy for a loader's pairs says; other labels give another start."""

    def loss(output: Tensor, batch: Any) -> Tensor:
        return functional.cross_entropy(output, batch.labels)

    def start(labels: Tensor) -> Tensor:
        batches = [Labelled((X,), labels)]
        made = tnc.adapt(net(), "lora-ga{rank=1}", calibration=batches, loss=loss, match="0")
        return torch.cat([p.detach().flatten() for p in made.parameters()])

    assert not torch.allclose(start(Y), start(3 - Y))


def test_an_error_in_a_loss_or_a_forward_is_the_users_own() -> None:
    with pytest.raises(IndexError, match="no such label"):
        adapt("lora-ga{rank=1}", calibration=[X], loss=breaking)
