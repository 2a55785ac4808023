"""`tnc adapt` and `tnc merge` on a small model: files, figures, exit codes, refusals."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tnc
from tnc import adapters
from tnc.cli import main
from tnc.errors import ArtifactError, PlanError

HERE = "tests.unit.test_adapt_command"
SOURCE = f'callable{{function="{HERE}:make"}}'
X = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
Capture = pytest.CaptureFixture[str]


class Net(nn.Module):
    """Two linear layers around a norm; `stop_at` is the training step that a signal comes in."""

    stop_at = 0
    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(16, 12), nn.LayerNorm(12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.tanh(self.norm(self.first(x))))
        if y.requires_grad and torch.is_grad_enabled() and Net.stop_at:
            Net.steps += 1
            if Net.steps == Net.stop_at:
                os.kill(os.getpid(), signal.SIGINT)
        return y


def make() -> tuple[nn.Module, tuple[Tensor]]:
    """The model that the specs name, and an input."""
    torch.manual_seed(0)
    return Net(), (X,)


BASE = f"""version: 1
model: {{kind: callable, function: "{HERE}:make"}}
calibration: {{kind: random, shapes: [[16]], samples: 64, held_out: 16, batch: 8}}
"""
RULES = "rules: [{match: '*', structure: low-rank, keep: 0.4}]\n"
LORA = "adapters: {rules: [{match: first, method: 'lora{rank=2}'}]}\n"
STARTED = "adapters: {rules: [{match: '*', method: 'pissa{rank=2}'}]}\n"
DISTILL = "optimizer: adamw{lr=0.01}\ndistill: {steps: STEPS, layerwise: 0.0, blocks: 0.0}\n"


@pytest.fixture
def spec(tmp_path: Path) -> Callable[..., str]:
    """Write a spec of parts and return its path."""

    def written(*parts: str, name: str = "s.yaml") -> str:
        (tmp_path / name).write_text(BASE + "".join(parts), encoding="utf-8")
        return str(tmp_path / name)

    return written


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of the model compressed by RULES."""
    folder = tmp_path_factory.mktemp("half")
    (folder / "half.yaml").write_text(BASE + RULES, encoding="utf-8")
    assert main(["compile", str(folder / "half.yaml"), "--out", str(folder / "a")]) == 0
    return folder / "a"


def document(capsys: Capture) -> dict[str, Any]:
    """The one JSON document on stdout."""
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def original() -> nn.Module:
    return make()[0].eval()


def answers(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(X)
    return found


def deltas(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """What the adapters of a folder hold, all tensors by path."""
    state = adapters.load(model, folder).model.state_dict()
    return {path: value for path, value in state.items() if "adapters_." in path}


def test_adapters_are_written_and_load(spec, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "a"
    given = ["adapt", spec(STARTED), "--out", str(out)]
    assert main(given) == 0
    printed = capsys.readouterr()
    for told in ("first.weight", "last.weight", "pissa", "16 held-out samples", "with adapters",
                 f"adapters: {out}"):  # fmt: skip
        assert told in printed.out.replace("\n", ""), told
    loaded = adapters.load(original(), out)
    made = tnc.adapt(original(), tnc.Spec.read(given[1]), example=X)
    assert set(loaded.deltas()) == {"first.weight", "last.weight"}
    assert torch.equal(answers(loaded.model), answers(made.model))
    assert torch.allclose(answers(loaded.model), answers(original()), atol=1e-5)
    mine, theirs = loaded.model.state_dict(), made.model.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
    held = json.loads((out / "tnc-adapter.json").read_text())["report"]
    assert held["folder"] == str(out) and (out / "spec.yaml").is_file()


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_other_things_is_not_replaced_for_peft(
    force: bool, spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("tnc.adapt_recipe.subject_of", lambda *_: pytest.fail("it worked first"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    given = ["adapt", spec(LORA), *(["--force"] if force else [])]
    for place, told in (("other", "holds no adapter"), (".", "the folder that you are in")):
        assert main([*given, "--peft", place]) == 2
        assert told in capsys.readouterr().err
    assert (tmp_path / "other" / "notes.txt").is_file()


def test_json_is_one_document(spec, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "a"
    assert main(["adapt", spec(LORA), "--out", str(out), "--json"]) == 0
    found = document(capsys)
    assert (found["version"], found["kind"], found["folder"]) == (1, "adapt", str(out))
    assert [entry["weight"] for entry in found["plan"]["entries"]] == ["first.weight"]
    assert found["held_out"] == 16 and found["steps"] == 0 and found["trained"] == {}
    assert found["before"] == pytest.approx(found["attached"]), "LoRA starts at zero"
    assert main(["adapt", spec(LORA), "--json"]) == 0
    assert document(capsys)["folder"] == "", "without --out nothing is written"
    assert main(["merge", SOURCE, str(out), "--out", str(tmp_path / "m"), "--json"]) == 0
    merged = document(capsys)
    assert (merged["version"], merged["kind"], merged["weights"]) == (1, "merge", 1)


def test_distillation_trains_adapters_alone(spec, half: Path, tmp_path: Path,
                                            capsys: Capture) -> None:  # fmt: skip
    out = tmp_path / "a"
    held = {file.name: file.read_bytes() for file in half.glob("*.safetensors")}
    text = spec(LORA, DISTILL.replace("STEPS", "5"))
    given = ["adapt", text, "--base", str(half), "--out", str(out)]
    assert main([*given, "--json"]) == 0
    found = document(capsys)
    assert found["base"] == str(half) and found["steps"] == 5
    assert found["before"].keys() == found["attached"].keys() == found["trained"].keys()
    name = next(iter(found["before"]))
    assert found["trained"][name] < found["before"][name] == pytest.approx(found["attached"][name])
    assert "distill" in found["seconds"] and not Path(f"{out}.distill").exists()
    assert all((half / name).read_bytes() == value for name, value in held.items())
    loaded, base = adapters.load(tnc.load(half), out), tnc.load(half)
    assert loaded.deltas().keys() == {"first.weight"}
    kept = {name for name in loaded.model.state_dict() if "adapters_." not in name}
    for name, value in base.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value), name
    assert kept == set(base.state_dict())
    assert not torch.allclose(answers(loaded.model), answers(base), atol=1e-4)
    manifest = json.loads((out / "tnc-adapter.json").read_text())
    assert manifest["beside"] == []
    assert main([*given, "--force"]) == 0
    assert "after 5 steps" in capsys.readouterr().out


def test_an_interrupted_distillation_goes_on(spec, half: Path, tmp_path: Path, monkeypatch,
                                             capsys: Capture) -> None:  # fmt: skip
    text = spec(LORA, DISTILL.replace("STEPS", "12"))
    whole, out = tmp_path / "whole", tmp_path / "parts"
    given = ["adapt", text, "--base", str(half), "--out"]
    assert main([*given, str(whole)]) == 0
    monkeypatch.setattr(Net, "stop_at", 7)
    monkeypatch.setattr(Net, "steps", 0)
    capsys.readouterr()
    assert main([*given, str(out)]) == 5
    told = capsys.readouterr().err
    assert "parts.distill" in told and "it goes on from" in told
    assert not out.exists() and (tmp_path / "parts.distill").is_dir()
    monkeypatch.setattr(Net, "stop_at", 0)
    assert main([*given, str(out), "--json"]) == 0
    assert document(capsys)["steps"] == 12 and not (tmp_path / "parts.distill").exists()
    once, twice = deltas(tnc.load(half), whole), deltas(tnc.load(half), out)
    assert once.keys() == twice.keys() and all(torch.equal(once[k], twice[k]) for k in once)


def test_a_wrong_option_is_at_its_line(spec, tmp_path: Path, capsys: Capture) -> None:
    text = spec("adapters:\n  rules:\n    - match: first\n      method: lora{rang=2}\n")
    assert main(["adapt", text, "--out", str(tmp_path / "a")]) == 2
    told = capsys.readouterr().err
    assert f"{text}:7" in told and "rang" in told and "rank" in told, told
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ((RULES, LORA), "adapters come after that"),
        ((LORA, DISTILL.replace("STEPS", "2")), "which the base does already"),
        ((RULES,), "adapters"),
    ],
)
def test_what_cannot_be_adapted(parts, told: str, spec, tmp_path: Path, capsys: Capture) -> None:
    assert main(["adapt", spec(*parts), "--out", str(tmp_path / "a")]) == 2
    found = capsys.readouterr().err
    assert told in found and "try: " in found and not (tmp_path / "a").exists()


def test_the_quality_gate(spec, half: Path, tmp_path: Path, capsys: Capture) -> None:
    out, peft = tmp_path / "a", tmp_path / "p"
    text = spec(LORA, "quality: {max_error: 1.0e-9}\n")
    given = ["adapt", text, "--base", str(half), "--out", str(out), "--peft", str(peft)]
    assert main(given) == 4
    told = capsys.readouterr().err
    assert "above 1e-09" in told and "at: quality.max_error" in told
    assert not out.exists() and not peft.exists()
    assert main([*given, "--json"]) == 4
    error = document(capsys)["error"]
    assert error["exit_code"] == 4 and error["report"]["kind"] == "adapt"
    assert error["report"]["folder"] == "" and not out.exists()
    text = spec(LORA, DISTILL.replace("STEPS", "2"), "quality: {max_error: 1.0e-9}\n")
    assert main(["adapt", text, "--base", str(half), "--out", str(out)]) == 4
    assert not out.exists()


def test_existing_folders_are_refused_first(spec, tmp_path: Path, monkeypatch,
                                            capsys: Capture) -> None:  # fmt: skip
    out, other, merged = tmp_path / "a", tmp_path / "other", tmp_path / "m"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    text = spec(LORA)
    assert main(["adapt", text, "--out", str(out)]) == 0
    assert main(["merge", SOURCE, str(out), "--out", str(merged)]) == 0
    capsys.readouterr()
    with monkeypatch.context() as patched:
        patched.setattr("tnc.adapt_recipe.run", lambda *_, **__: pytest.fail("it worked first"))
        patched.setattr("tnc.merge_recipe.merge", lambda *_, **__: pytest.fail("it worked first"))
        for words in (["adapt", text, "--out", str(out)],
                      ["merge", SOURCE, str(out), "--out", str(merged)]):  # fmt: skip
            assert main(words) == 2
            assert "--force" in capsys.readouterr().err
        for words in (["adapt", text, "--out", str(other), "--force"],
                      ["merge", SOURCE, str(out), "--out", str(other), "--force"]):  # fmt: skip
            assert main(words) == 2
            assert (other / "notes.txt").read_text() == "mine"
    assert main(["adapt", text, "--out", str(out), "--force"]) == 0
    assert main(["merge", SOURCE, str(out), "--out", str(merged), "--force"]) == 0


def test_places_for_peft_are_refused_first(spec, tmp_path: Path, monkeypatch,
                                           capsys: Capture) -> None:  # fmt: skip
    out, held = tmp_path / "a", tmp_path / "held"
    held.mkdir()
    (held / "notes.txt").write_text("mine")
    monkeypatch.setattr("tnc.adapt_recipe._trained", lambda *_: pytest.fail("it trained first"))
    for peft, told in ((held, "holds no adapter"), (out, "the same folder")):
        assert main(["adapt", spec(LORA), "--out", str(out), "--peft", str(peft)]) == 2
        assert told in capsys.readouterr().err and not out.exists()


def test_the_folder_one_is_in(spec, tmp_path: Path, monkeypatch, capsys: Capture) -> None:
    (tmp_path / "here").mkdir()
    text = spec(LORA)
    monkeypatch.chdir(tmp_path / "here")
    assert main(["adapt", text, "--out", "."]) == 2
    assert "name a folder in it" in capsys.readouterr().err


@pytest.mark.parametrize("compressed", [False, True])
def test_merge_writes_an_artifact(compressed: bool, spec, half: Path, tmp_path: Path,
                                  capsys: Capture) -> None:  # fmt: skip
    out, merged = tmp_path / "a", tmp_path / "m"
    base = str(half) if compressed else SOURCE
    train = (LORA, DISTILL.replace("STEPS", "5")) if compressed else (STARTED,)
    assert main(["adapt", spec(*train), "--base", base, "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["merge", base, str(out), "--out", str(merged)]) == 0
    printed = capsys.readouterr().out
    assert "max |difference| of outputs on the probe" in printed and "artifact: " in printed
    below = tnc.load(half) if compressed else original()
    adapted = adapters.load(below, out)
    found = tnc.load(merged)
    assert torch.allclose(answers(found), answers(adapted.model), atol=1e-5)
    assert not any("adapters_" in path for path in found.state_dict())
    assert main(["verify", str(merged)]) == 0
    capsys.readouterr()
    assert main(["verify", str(merged), "--json"]) == 0
    assert document(capsys)["ok"] is True


def test_a_merged_artifact_tells_what_it_is_now(
    spec, half: Path, tmp_path: Path, capsys: Capture
) -> None:
    out, merged = tmp_path / "a", tmp_path / "m"
    assert main(["adapt", spec(LORA), "--base", str(half), "--out", str(out)]) == 0
    assert main(["merge", str(half), str(out), "--out", str(merged)]) == 0
    before, now = (tnc.Plan.read(folder / "plan.json") for folder in (half, merged))
    rows = 5  # of the example
    more = 2 * (16 + 12)
    for kind in ("total", "scope"):
        old, new = getattr(before, kind), getattr(now, kind)
        assert (new.params - old.params, new.flops - old.flops) == (more, 2 * rows * more)
    changed, left = now.entry("first.weight"), now.entry("last.weight")
    assert changed.error is None and left == before.entry("last.weight")
    capsys.readouterr()
    assert main(["inspect", str(merged)]) == 0
    told = capsys.readouterr().out
    assert "not known" in told and f"{now.total.flops:,} FLOPs" in told
    assert (
        f"FLOPs (of the weights, on the example input) {now.total.flops:,}"
        in (merged / "README.md").read_text()
    )
    assert main(["report", str(merged), "--out", str(tmp_path / "page.html")]) == 0


def test_merge_refuses_what_does_not_fit(spec, tmp_path: Path, capsys: Capture) -> None:
    out, merged = tmp_path / "a", tmp_path / "m"
    assert main(["adapt", spec(LORA), "--out", str(out)]) == 0
    wrong = 'callable{function="tests.messages.models:small"}'
    for words, told in (
        ([wrong, str(out)], "first.weight"),
        ([SOURCE, str(tmp_path / "none")], "none"),
        ([str(tmp_path), str(out)], "holds no model"),
        ([SOURCE, str(out), "--use", "other"], "other"),
    ):
        capsys.readouterr()
        assert main(["merge", *words, "--out", str(merged)]) == 2, words
        assert told in capsys.readouterr().err and not merged.exists()


def test_plan_tells_every_weight(spec, half: Path, capsys: Capture) -> None:
    mixed = (
        "adapters:\n  rules:\n    - {match: first, method: 'lora{rank=2}'}\n"
        "    - {match: '*', method: lora, min_params: 1000}\n"
    )
    assert main(["plan", spec(mixed)]) == 0
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if "first.weight" in line)
    assert "lora" in row and "s.yaml:6" in row and str(2 * (16 + 12)) in row
    left = next(line for line in printed.splitlines() if "last.weight" in line)
    assert "1,000" in left or "1000" in left, left
    assert main(["plan", spec(LORA), "--json"]) == 0
    found = document(capsys)
    assert (found["version"], found["kind"]) == (1, "plan")
    told = {skip["site"]: skip["reason"] for skip in found["adapters"]["skips"]}
    assert told.keys() >= {"last.weight"} and all(told.values())
    assert main(["plan", spec(LORA), "--base", str(half)]) == 0
    assert "first.weight" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["save", "compile", "densify"])
def test_an_adapted_model_is_refused_elsewhere(what: str, half: Path, tmp_path: Path) -> None:
    tuned = tnc.adapt(tnc.load(half), "lora{rank=2}", example=X)
    plan = tnc.Spec(version=1, rules=[{"match": "*", "structure": "low-rank", "keep": 0.5}])
    kind = ArtifactError if what == "save" else PlanError
    with pytest.raises(kind, match="adapters") as caught:
        if what == "save":
            made = tnc.compile(original(), plan, example=X)
            tnc.adapters.adapt_(made.model, "lora{rank=2}", example=X)
            tnc.save(made, tmp_path / "a")
        elif what == "compile":
            tnc.compile(tuned.model, plan, example=X)
        else:
            tnc.densify(tuned.model)
    way = "tnc.adapters.folded(made" if what == "save" else "unload()"
    assert caught.value.where and way in caught.value.hint
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "schedule", ["trp{every=1}", "maestro{every=1}", "group-sparsity{every=1}"]
)
def test_a_schedule_waits_for_a_product_that_is_zero(schedule: str) -> None:
    """A fresh LoRA delta is zero: nothing can be balanced, cut or pulled in it yet."""
    torch.manual_seed(0)
    tuned = tnc.adapt(original(), "lora{rank=4}", example=X)
    fresh = {name: p.detach().clone() for name, p in tuned.named_parameters()}
    optimizer = torch.optim.SGD(tuned.parameters(), lr=0.1)
    ranks = tnc.adapt_ranks(tuned.model, schedule, optimizer)
    assert all(torch.equal(fresh[name], p) for name, p in tuned.named_parameters())
    ranks.step()
    assert ranks.history[0].ranks == {path: {"r": 4} for path in ranks.ranks}
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = tuned.model(X).square().mean()
        loss.backward()
        ranks.step(loss)
        losses.append(float(loss.detach()))
        assert all(bool(p.isfinite().all()) for p in tuned.parameters())
    assert losses[-1] < losses[0]


LABELLESS = "adapters: {rules: [{match: first, method: 'lora-ga{rank=2}'}]}\n"


def test_a_base_that_is_not_there(spec, tmp_path: Path, capsys: Capture) -> None:
    """Also one whose name is like a source's."""
    for base in ("nothere", "half", str(tmp_path / "none")):
        for words in (["adapt", spec(LORA), "--base", base], ["merge", base, str(tmp_path)]):
            assert main([*words, "--out", str(tmp_path / "a")]) == 2
            told = capsys.readouterr().err
            assert f"there is no folder {base}" in told and "at: the base" in told, told
            assert "an artifact's folder" in told and "safetensors" in told


def test_a_start_from_gradients_without_labels(spec, tmp_path: Path, capsys: Capture) -> None:
    """The remedies are those of the command line."""
    assert main(["adapt", spec(LABELLESS), "--out", str(tmp_path / "a")]) == 2
    told = capsys.readouterr().err
    assert "there is no loss" in told and "the data has no labels" in told, told
    assert "at: calibration" in told and "--base" in told and "function of" not in told


def test_adapters_that_are_not_kept(spec, tmp_path: Path, capsys: Capture) -> None:
    before = {p.name for p in tmp_path.iterdir()} | {"s.yaml"}
    assert main(["adapt", spec(LORA)]) == 0
    told = capsys.readouterr()
    assert "not kept" in told.err and "--out FOLDER keeps them" in told.out
    assert {p.name for p in tmp_path.iterdir()} == before
    assert main(["adapt", spec(LORA), "--out", str(tmp_path / "a")]) == 0
    told = capsys.readouterr()
    assert "not kept" not in told.err + told.out


def test_adapters_where_an_artifact_is_asked_for(spec, tmp_path: Path, capsys: Capture) -> None:
    out, peft = tmp_path / "a", tmp_path / "p"
    assert main(["adapt", spec(LORA), "--out", str(out), "--peft", str(peft)]) == 0
    page = ["--out", str(tmp_path / "page.html")]
    for folder, kind in ((out, "holds adapters, and"), (peft, "holds adapters in PEFT's format")):
        for words in (["inspect"], ["verify"], ["report", *page], ["inspect", "--kernels"]):
            capsys.readouterr()
            assert main([words[0], str(folder), *words[1:]]) == 2
            told = capsys.readouterr().err
            assert f"{folder} {kind}" in told and f"`tnc merge BASE {folder}" in told, told
    assert main(["adapt", spec(LORA), "--base", str(out), "--out", str(tmp_path / "b")]) == 2
    assert f"{out} holds adapters" in capsys.readouterr().err
