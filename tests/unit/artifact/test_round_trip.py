"""What is saved comes back: outputs, ties, what is trained, modes; by the loader alone."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import tnc
import tnc.artifact.modules
from tests.compiled import halved, spec
from tests.unit.artifact.conftest import SOURCE
from tests.zoo import case
from tnc.errors import ArtifactError, PlanError
from tnc.rewrite.contract import outputs_of
from tnc.rewrite.subject import ties_of

NAMES = ("attention", "bert", "functional", "gpt2", "half", "normed", "resnet20", "shared")
ROOT = Path(__file__).parents[3]


def modes(model: nn.Module) -> dict[str, bool]:
    return {path: module.training for path, module in model.named_modules()}


def trained(model: nn.Module) -> dict[str, bool]:
    return {name: p.requires_grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_model_is_the_saved_one(name: str, tmp_path: Path) -> None:
    made, other = halved(name), case(name).build(seed=1)
    folder = tnc.save(made, tmp_path / "artifact", shard_bytes=2000)
    before = outputs_of(other, case(name).inputs())
    loaded = tnc.load(folder, model=other)
    wanted, found = (outputs_of(m, case(name).inputs(3)) for m in (made.model, loaded))
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(wanted, before)), "the models never differed"
    assert trained(loaded) == trained(made.model)
    assert ties_of(loaded) == ties_of(made.model)
    assert modes(loaded) == modes(made.model)
    assert {n: (v.dtype, v.shape) for n, v in loaded.state_dict().items()} == {
        n: (v.dtype, v.shape) for n, v in made.model.state_dict().items()
    }
    assert tnc.verify(folder, model=case(name).build(seed=2)).ok


def test_the_cases_are_hard_in_the_ways_that_matter() -> None:
    kinds = {}
    for name in NAMES:
        entries = tnc.artifact.modules.describe_modules(halved(name).model, halved(name).classes)
        kinds[name] = {entry["kind"] for entry in entries}
    assert "rebuilt" in kinds["attention"] and "rebuilt" in kinds["functional"]
    assert {"identity", "structured"} <= kinds["resnet20"]
    assert any(r.edits for r in halved("resnet20").records if r.name == "fold-batch-norm")
    assert ties_of(halved("gpt2").model) and ties_of(halved("shared").model)
    assert not all(trained(halved("shared").model).values())


def test_a_gradient_reaches_every_use_of_a_tied_core(tmp_path: Path) -> None:
    folder = tnc.save(halved("gpt2"), tmp_path / "artifact")
    loaded = tnc.load(folder, model=case("gpt2").build(seed=1))
    args, kwargs = case("gpt2").inputs()
    loaded(*args, **kwargs).logits.sum().backward()
    group = next(group for group in ties_of(loaded) if any("lm_head" in name for name in group))
    values = dict(loaded.named_parameters(remove_duplicate=False))
    assert len({id(values[name]) for name in group}) == 1
    assert values[group[0]].grad is not None and float(values[group[0]].grad.norm()) > 0


def test_modes_come_back_module_by_module(tmp_path: Path) -> None:
    model = case("normed").build().train()
    model.ln.eval()
    made = tnc.compile(model, spec(), example=case("normed").inputs())
    assert made.model.training and not made.model.ln.training
    folder = tnc.save(made, tmp_path / "artifact")
    loaded = tnc.load(folder, model=case("normed").build(seed=1))
    assert modes(loaded) == modes(made.model)


@pytest.mark.parametrize("value", [None, 3, "text", [1.5, {"deep": torch.ones(2)}], ()])
def test_any_plain_input_is_stored_with_the_probe(value: object, tmp_path: Path) -> None:
    class Takes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, first: object, x: torch.Tensor, last: object = 0) -> torch.Tensor:
            assert str(first) == str(last) == str(value)
            return self.linear(x)

    made = tnc.compile(Takes(), spec(), example=((value, torch.ones(2, 8)), {"last": value}))
    folder = tnc.save(made, tmp_path / "artifact")
    assert tnc.verify(folder, model=Takes()).ok


def test_an_input_that_cannot_be_stored_is_named(tmp_path: Path) -> None:
    made = replace(halved("prime"), probe=((*halved("prime").probe[0],), {"cache": nn.Module}))
    model = made.model
    made = replace(made, model=_Ignoring(model))
    with pytest.raises(ArtifactError, match=r"kwargs\.cache of the example input is a type"):
        tnc.save(made, tmp_path / "artifact")
    assert not list(tmp_path.iterdir())


class _Ignoring(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor, cache: object = None) -> torch.Tensor:
        return self.inner(x)


def loaded_modules(command: str) -> set[str]:
    """The modules of tnc in a fresh process that ran a command."""
    code = f"import sys, tnc\n{command}\nprint(*(m for m in sys.modules if m.startswith('tnc')))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return set(done.stdout.split())


def test_loading_needs_no_passes_no_planner_no_search(artifact: Path) -> None:
    forbidden = {
        "tnc.passes",
        "tnc.explore",
        "tnc.planner",
        "tnc.rewrite",
        "tnc.capture",
        "tnc.fit",
    }
    found = loaded_modules(f"tnc.load({str(artifact)!r})")
    assert "tnc.artifact.loading" in found and not found & forbidden
    assert "tnc.rewrite" in loaded_modules(f"tnc.verify({str(artifact)!r})"), "this check can fail"


def test_an_artifact_that_names_its_source_needs_no_model(artifact: Path) -> None:
    loaded, probe = tnc.load(artifact), case("prime").inputs()
    assert torch.equal(outputs_of(loaded, probe)[0], outputs_of(halved("prime").model, probe)[0])
    assert SOURCE["kind"] == "callable"


def test_an_artifact_without_a_source_asks_for_the_model(tmp_path: Path) -> None:
    folder = tnc.save(halved("prime"), tmp_path / "artifact")
    with pytest.raises(ArtifactError, match="does not say how to build its model") as caught:
        tnc.load(folder)
    assert "model=" in caught.value.hint


def test_another_model_is_refused_with_a_name(tmp_path: Path) -> None:
    folder = tnc.save(halved("prime"), tmp_path / "artifact")
    with pytest.raises(ArtifactError, match="has no module"):
        tnc.load(folder, model=case("half").build())
    with pytest.raises(ArtifactError, match="has no module"):
        tnc.load(folder, model=case("normed").build())


def test_the_model_that_is_given_stays_as_it_is(tmp_path: Path) -> None:
    folder, given = tnc.save(halved("half"), tmp_path / "artifact"), case("half").build(seed=1)
    given.append(nn.Identity())
    before = {name: value.clone() for name, value in given.state_dict().items()}
    modules = dict(given.named_modules())
    assert tnc.load(folder, model=given) is not given
    assert dict(given.named_modules()) == modules
    given[-1] = nn.Linear(3, 3)
    with pytest.raises(ArtifactError, match="do not fit"):
        tnc.load(folder, model=given)
    given[-1] = modules[str(len(given) - 1)]
    assert dict(given.named_modules()) == modules
    now = given.state_dict()
    assert list(now) == list(before) and all(torch.equal(now[n], before[n]) for n in now)


def test_the_dtype_that_was_stored_is_kept(tmp_path: Path) -> None:
    folder = tnc.save(halved("prime"), tmp_path / "artifact")
    loaded = tnc.load(folder, model=case("prime").build(seed=1).half())
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_savings_that_did_not_happen_are_not_saved(tmp_path: Path) -> None:
    example = case("prime").inputs()
    made = tnc.compile(case("prime").build(), spec(passes=("find-sites",)), example=example)
    with pytest.raises(PlanError, match="a structure, but no pass carried that out") as caught:
        tnc.save(made, tmp_path / "artifact")
    assert "'factorize'" in caught.value.hint and not list(tmp_path.iterdir())


def test_the_card_says_how_to_load_and_counts_what_is_there(artifact: Path, tmp_path: Path) -> None:
    folder = tnc.save(halved("resnet20"), tmp_path / "given")
    card, own = ((path / "README.md").read_text() for path in (folder, artifact))
    sizes = [sum(p.numel() for p in m.parameters()) for m in
             (case("resnet20").build(), halved("resnet20").model)]  # fmt: skip
    assert f"{sizes[0]:,} parameters became {sizes[1]:,}, " in card
    assert 'tnc.load("path/to/this/folder", model=YourModel())' in card
    assert 'tnc.load("path/to/this/folder")\n' in own
    assert "`tnc.verify(DIR, model=YourModel())`" in card and "`tnc verify DIR`" in own
