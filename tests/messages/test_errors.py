"""Wrong situations at the command line: the exit code, and the first words that a person reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tnc.cli import main

MODELS = "tests.messages.models"
DATA = "calibration: {kind: random, shapes: [[16]], samples: 16, held_out: 8, batch: 8}\n"


def text(rule: str, more: str = "", model: str = "small", options: str = "") -> str:
    """A spec with one rule for the small model."""
    return (
        f"version: 1\nmodel: {{kind: callable, function: '{MODELS}:{model}'{options}}}\n"
        f"rules:\n  - {{match: '*', {rule}}}\n{more}"
    )


HALF = text("structure: low-rank, keep: 0.5")


@dataclass(frozen=True)
class Wrong:
    """A spec, what is prepared beside it, the command after it, and what must come of it."""

    spec: str
    code: int
    told: str
    words: tuple[str, ...] = ("plan", "{spec}")
    prepare: Callable[[Path], None] = lambda folder: None


def compiled(folder: Path) -> None:
    """Compile the small model into `made` beside the spec, with its plan in `plan.json`."""
    (folder / "good.yaml").write_text(HALF)
    assert main(["plan", str(folder / "good.yaml"), "--out", str(folder / "plan.json")]) == 0
    assert main(["compile", str(folder / "good.yaml"), "--out", str(folder / "made")]) == 0


def corrupt(folder: Path) -> None:
    compiled(folder)
    file = next((folder / "made").glob("tnc-*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


def truncated(folder: Path) -> None:
    compiled(folder)
    (folder / "made" / "tnc.json").write_text("{")


def edited_plan(folder: Path) -> None:
    compiled(folder)
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | {"seed": 9}))


COMPILE = ("compile", "{spec}", "--out", "{folder}/out")
CASES = {
    "a rule that matches nothing": Wrong(
        HALF.replace("'*'", "'nowhere'"), 2, "error: rule 'nowhere' matches no site"
    ),
    "an unknown key": Wrong(
        HALF + "bugdet: {params: 0.5}\n", 2,
        "error: {spec}:5:1: bugdet: unknown key 'bugdet'; did you mean 'budget'?",
    ),
    "an unknown structure": Wrong(
        text("structure: low-rnk, keep: 0.5"), 2,
        "error: {spec}:4:29: rules.0.structure: no structure is named 'low-rnk'; did you mean",
    ),
    "a bad equation": Wrong(
        text("structure: {kind: free-form, equation: 'B[o r] A[i] : i -> o'}, keep: 0.5"), 2,
        'error: free-form{equation="B[o r] A[i] : i -> o"} does not fit 0.weight (12 <- 16): '
        "index r has one end",
    ),
    "an unknown fit": Wrong(
        text("structure: low-rank, keep: 0.5, fit: svdd"), 2, "error: no fit is named 'svdd'"
    ),
    "a fit that does not take the structure": Wrong(
        text("structure: tensor-ring, keep: 0.9, fit: svd"), 2,
        "error: fit 'svd' does not take tensor-ring",
    ),
    "a metric without data": Wrong(
        text("structure: low-rank, keep: 0.5, metric: both"), 2,
        "error: the metric 'both' needs calibration data",
    ),
    "a budget that cannot be met": Wrong(
        text("structure: low-rank", "budget: {params: 0.05}\n"), 3,
        "error: no plan meets the budget: params 17 is asked for",
    ),
    "a share that no rank keeps": Wrong(
        text("structure: low-rank, keep: 0.01"), 3, "error: no rank of B[o r] A[r i] : i -> o keeps"
    ),
    "a model of a module that is not there": Wrong(
        HALF.replace(MODELS, "tests.messages.modles"), 2,
        "error: cannot import 'tests.messages.modles'",
    ),
    "a function that is not there": Wrong(
        HALF.replace(":small", ":smal"), 2, f"error: module '{MODELS}' has no 'smal'"
    ),
    "a function that returns no model": Wrong(
        HALF.replace(":small", ":number"), 2, "error: the function returned int, not a model"
    ),
    "a function that raises": Wrong(
        HALF.replace(":small", ":failing"), 2, f"error: {MODELS}:failing fails: ValueError: no way"
    ),
    "a function that takes no such argument": Wrong(
        text("structure: low-rank, keep: 0.5", options=", kwargs: {widht: 20}"), 2,
        f"error: {MODELS}:small fails: TypeError: small() got an unexpected keyword",
    ),
    "data whose function raises": Wrong(
        HALF + f"calibration: {{kind: callable, function: '{MODELS}:failing_batches'}}\n", 2,
        f"error: {MODELS}:failing_batches fails: ValueError: no more",
    ),
    "no input to run the model on": Wrong(
        HALF.replace(":small", ":without_input"), 2,
        "error: there is no example input to run the model on",
    ),
    "data that does not fit the model": Wrong(
        HALF + DATA.replace("[[16]]", "[[7]]"), 2, "error: the model fails on an input"
    ),
    "a gate that the quality does not pass": Wrong(
        HALF + DATA + "quality: {max_error: 1.0e-9}\nevaluation: output\n", 4, "error: ", COMPILE
    ),
    "an interruption": Wrong(
        HALF.replace(":small", ":interrupted"), 5, "interrupted; nothing was written", COMPILE
    ),
    "a plan of another model": Wrong(
        text("structure: low-rank, keep: 0.5", options=", kwargs: {width: 20}"), 2,
        "error: the plan was made for another model: the fingerprints differ",
        (*COMPILE, "--plan", "{folder}/plan.json"), compiled,
    ),
    "an edited plan": Wrong(
        HALF, 2, "error: the plan does not match its digest: it was edited or damaged",
        (*COMPILE, "--plan", "{folder}/plan.json"), edited_plan,
    ),
    "a plan above the spec's budget": Wrong(
        text("structure: low-rank", "budget: {params: 0.4}\n"), 2,
        "error: the given plan has 150 params in its budget's scope, the spec allows 133",
        (*COMPILE, "--plan", "{folder}/plan.json"), compiled,
    ),
    "passes that do not carry the plan out": Wrong(
        HALF, 2, "error: the plan gives 0.weight a structure, but no pass carried that out",
        (*COMPILE, "--set", "passes=[]"),
    ),
    "passes that undo the plan": Wrong(
        HALF, 2, "error: the compiled model has 334 parameters, the plan promised 150",
        (*COMPILE, "--set", "passes=[factorize, densify]"),
    ),
    "a corrupt artifact": Wrong(
        HALF, 2, "error: tnc-00001-of-00001.safetensors: changed since it was saved",
        ("verify", "{folder}/made"), corrupt,
    ),
    "an artifact with half a manifest": Wrong(
        HALF, 2, "error: the manifest cannot be read", ("verify", "{folder}/made"), truncated
    ),
    "a folder that is no artifact": Wrong(
        HALF, 2, "error: {folder} is no artifact", ("verify", "{folder}")
    ),
    "an extra that is not installed": Wrong(
        HALF, 2, "error: the ONNX export needs onnx",
        ("export", "{folder}/made", "--to", "onnx", "--out", "{folder}/m.onnx"), compiled,
    ),
    "an artifact in the way": Wrong(
        HALF, 2, "error: {folder}/made is there already",
        ("compile", "{spec}", "--out", "{folder}/made"), compiled,
    ),
    "a recipe that is not there": Wrong(HALF, 2, "error: ", ("plan", "minilmm")),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_situation_is_told_in_its_first_line(
    name: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    wrong = CASES[name]
    places = {"spec": str(tmp_path / "s.yaml"), "folder": str(tmp_path)}
    (tmp_path / "s.yaml").write_text(wrong.spec)
    wrong.prepare(tmp_path)
    monkeypatch.setattr("tnc.artifact.exporting.find_spec", lambda name: None)
    before = {path.name for path in tmp_path.iterdir()}
    capsys.readouterr()
    code = main([word.format(**places) for word in wrong.words])
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if not line.endswith(" ...")]
    assert code == wrong.code, printed.err
    told = wrong.told.replace("{spec}", places["spec"]).replace("{folder}", places["folder"])
    assert lines[0].startswith(told), printed.err
    assert "Traceback" not in printed.err and "internal error" not in printed.err
    assert any(line.startswith(("  try:", "  at:", "  ")) for line in lines[1:]) or code == 5
    assert {path.name for path in tmp_path.iterdir()} == before, "something was left behind"


def test_the_good_spec_is_good(tmp_path: Path) -> None:
    compiled(tmp_path)
    assert main(["verify", str(tmp_path / "made")]) == 0


def test_a_function_that_raises_is_told_with_its_line(tmp_path: Path, capsys) -> None:
    (tmp_path / "s.yaml").write_text(HALF.replace(":small", ":failing"))
    assert main(["plan", str(tmp_path / "s.yaml")]) == 2
    source = Path(__file__).with_name("models.py")
    line = source.read_text().split("\n").index('    raise ValueError("no way")') + 1
    assert f"  at: {source}:{line}\n" in capsys.readouterr().err
