"""What a wrong spec is told: exact words, exact place."""

from __future__ import annotations

from pathlib import Path

import pytest

from tnc.decide.spec import Spec, read_spec
from tnc.errors import SpecError
from tnc.structures import families

HEAD = "version: 1\nbudget: {params: 0.5}\n"
RULES = "rules:\n  - match: '*'\n    structure: low-rank\n"
GOOD = HEAD + RULES


def rule(*lines: str) -> str:
    """A spec whose rule starts in line 4 and holds further lines from line 5 on."""
    return HEAD + "rules:\n  - match: '*'\n" + "".join(f"    {line}\n" for line in lines)


CASES = {
    "unknown key": (
        GOOD + "sed: 1\n",
        "s.yaml:6:1: sed: unknown key 'sed'; did you mean 'seed'?\n  sed: 1\n  ^",
    ),
    "unknown key without a likeness": (
        "version: 1\nbudget:\n  zzz: 1\n  params: 0.5\n" + RULES,
        "s.yaml:3:3: budget.zzz: unknown key 'zzz'; keys are: scope, params, flops, bytes, "
        "latency, error, minimise\n    zzz: 1\n    ^",
    ),
    "nested key": (
        "version: 1\nbudget:\n  flop: 0.2\n" + RULES,
        "s.yaml:3:3: budget.flop: unknown key 'flop'; did you mean 'flops'?\n    flop: 0.2\n    ^",
    ),
    "missing version": (
        "budget: {params: 0.5}\n" + RULES,
        "s.yaml:1:1: version: missing key 'version'\n  budget: {params: 0.5}\n  ^",
    ),
    "other version": (
        GOOD.replace("version: 1", "version: 2"),
        "s.yaml:1:10: version: expected 1, got 2\n  version: 2\n           ^",
    ),
    "missing structure": (
        rule("op: linear"),
        "s.yaml:4:5: rules.0.structure: missing key 'structure'\n    - match: '*'\n      ^",
    ),
    "misspelt structure is one error": (
        rule("structur: low-rank"),
        "s.yaml:5:5: rules.0.structur: unknown key 'structur'; did you mean 'structure'?\n"
        "      structur: low-rank\n      ^",
    ),
    "unknown structure": (
        rule("structure: tuker"),
        "s.yaml:5:16: rules.0.structure: no structure is named 'tuker'; did you mean 'tucker'?\n"
        "      structure: tuker\n                 ^",
    ),
    "unknown kind in a map": (
        rule("structure:", "  kind: tuker", "  factors: 2"),
        "s.yaml:6:13: rules.0.structure.kind: no structure is named 'tuker'; "
        "did you mean 'tucker'?\n        kind: tuker\n              ^",
    ),
    "option of the chosen kind": (
        rule("structure:", "  kind: tucker", "  factor: 2"),
        "s.yaml:7:7: rules.0.structure.factor: unknown key 'factor'; did you mean 'factors'?\n"
        "        factor: 2\n        ^",
    ),
    "option in the text form": (
        rule("structure: tucker{factor=2}"),
        "s.yaml:5:16: rules.0.structure.factor: unknown key 'factor'; did you mean 'factors'?\n"
        "      structure: tucker{factor=2}\n                 ^",
    ),
    "text form that does not parse": (
        rule("structure: tucker{factors}"),
        "s.yaml:5:16: rules.0.structure: expected '=' at character 15 of 'tucker{factors}'\n"
        "      structure: tucker{factors}\n                 ^",
    ),
    "map without a kind": (
        rule("structure: {factors: 2}"),
        "s.yaml:5:5: rules.0.structure: a structure needs a 'kind': one of "
        f"{', '.join(families.all())}\n"
        "      structure: {factors: 2}\n      ^",
    ),
    "candidate of a list": (
        rule("structure: [low-rank, {kind: tucker, factors: x}]"),
        "s.yaml:5:51: rules.0.structure.1.factors: expected a whole number, got 'x'\n"
        "      structure: [low-rank, {kind: tucker, factors: x}]\n"
        "                                                    ^",
    ),
    "dense among candidates": (
        rule("structure: [low-rank, dense]"),
        "s.yaml:5:16: rules.0.structure: 'dense' is always a candidate; leave it out of the list\n"
        "      structure: [low-rank, dense]\n                 ^",
    ),
    "a choice that refuses its options": (
        rule("structure: tucker{factors=0}"),
        "s.yaml:5:16: rules.0.structure: tucker: factors is 0; use 1 or more\n"
        "      structure: tucker{factors=0}\n                 ^",
    ),
    "a word of a few": (
        GOOD + "objective: summ\n",
        "s.yaml:6:12: objective: expected 'sum' or 'max', got 'summ'; did you mean 'sum'?\n"
        "  objective: summ\n             ^",
    ),
    "text for a number": (
        GOOD + "seed: 'one'\n",
        "s.yaml:6:7: seed: expected a whole number, got 'one'\n  seed: 'one'\n        ^",
    ),
    "yes is no truth value": (
        rule("structure: low-rank", "allow_empty: yes"),
        "s.yaml:6:18: rules.0.allow_empty: expected true or false, got 'yes'\n"
        "      allow_empty: yes\n                   ^",
    ),
    "budget of nothing": (
        "version: 1\nbudget: {scope: a}\n" + RULES,
        "s.yaml:2:9: budget: a budget needs one of params, flops, bytes, latency, error\n"
        "  budget: {scope: a}\n          ^",
    ),
    "fraction above 1": (
        GOOD.replace("0.5", "1.5"),
        "s.yaml:2:18: budget.params: expected a fraction such as 0.5 (of the dense value) or a "
        "whole number above 1, got 1.5\n  budget: {params: 1.5}\n                   ^",
    ),
    "one parameter": (
        GOOD.replace("0.5", "1"),
        "s.yaml:2:18: budget.params: expected a fraction such as 0.5 (of the dense value) or a "
        "whole number above 1, got 1: write 1.0 for all of it\n"
        "  budget: {params: 1}\n                   ^",
    ),
    "keep out of range": (
        rule("structure: low-rank", "keep: 2.0"),
        "s.yaml:6:11: rules.0.keep: expected less than or equal to 1, got 2.0\n"
        "      keep: 2.0\n            ^",
    ),
    "ranks and keep": (
        rule("structure: low-rank", "ranks: {r: 4}", "keep: 0.5"),
        "s.yaml:7:11: rules.0.keep: ranks and keep both fix the size; give one\n"
        "      keep: 0.5\n            ^",
    ),
    "ranks of dense": (
        rule("structure: dense", "ranks: {r: 4}"),
        "s.yaml:6:12: rules.0.ranks: a dense weight has no ranks\n"
        "      ranks: {r: 4}\n             ^",
    ),
    "rank zero": (
        rule("structure: low-rank", "ranks: {r: 0}"),
        "s.yaml:6:16: rules.0.ranks.r: expected greater than or equal to 1, got 0\n"
        "      ranks: {r: 0}\n                 ^",
    ),
    "ranks in a word": (
        rule("structure: low-rank", "ranks: fully"),
        "s.yaml:6:12: rules.0.ranks: expected ranks by name such as {r: 64}, or 'full', got "
        "'fully'\n      ranks: fully\n             ^",
    ),
    "no size at all": (
        "version: 1\n" + RULES,
        "s.yaml:3:3: rules: nothing says how small rule 0 (*) should become; add a budget, or "
        "ranks or keep to the rule\n    - match: '*'\n    ^",
    ),
    "no rules": (
        HEAD + "rules: []\n",
        "s.yaml:3:8: rules: expected at least one entry, got none\n  rules: []\n         ^",
    ),
    "source": (
        GOOD + "model: {kind: hf, pth: x}\n",
        "s.yaml:6:19: model.pth: unknown key 'pth'; did you mean 'path'?\n"
        "  model: {kind: hf, pth: x}\n                    ^",
    ),
    "source that refuses": (
        GOOD + "model: {kind: hf, path: x, auto: BertModel}\n",
        "s.yaml:6:8: model: 'BertModel' is no Auto class; such as AutoModelForCausalLM\n"
        "  model: {kind: hf, path: x, auto: BertModel}\n         ^",
    ),
    "data": (
        GOOD + "calibration: topic\n",
        "s.yaml:6:14: calibration: no data source is named 'topic'; did you mean 'topics'?\n"
        "  calibration: topic\n               ^",
    ),
    "export": (
        GOOD + "export: [onnx, tflite]\n",
        "s.yaml:6:16: export.1: expected 'torch-export', 'onnx' or 'dense', got 'tflite'\n"
        "  export: [onnx, tflite]\n                 ^",
    ),
    "doubled key": (
        GOOD + "seed: 1\nseed: 2\n",
        's.yaml:7:1: not YAML: found duplicate key "seed" with value "2" (original value: "1")\n'
        "  seed: 2\n  ^",
    ),
    "not YAML": (
        "version: [1\nseed: 2\n",
        "s.yaml:2:5: not YAML: expected ',' or ']', but got ':'\n  seed: 2\n      ^",
    ),
    "not a map": (
        "- version: 1\n",
        "s.yaml:1:1: a spec is a map of keys, got a list\n  - version: 1\n  ^\n"
        "  try: start with 'version: 1', or run `tnc spec init`",
    ),
    "an empty file": (
        "",
        "s.yaml:1:1: a spec is a map of keys, got an empty file\n  \n  ^\n"
        "  try: start with 'version: 1', or run `tnc spec init`",
    ),
    "a date": (
        GOOD + "seed: 2024-01-02\n",
        "s.yaml:6:7: expected text, a number, true or false, got 2024-01-02\n"
        "  seed: 2024-01-02\n        ^\n  try: put it into quotes",
    ),
    "base that is not there": (
        "extends: [nowhere.yaml]\n" + GOOD,
        "s.yaml:1:11: extends: no file 'nowhere.yaml' beside s.yaml, and no recipe of that name\n"
        "  extends: [nowhere.yaml]\n            ^",
    ),
}


def told(path: Path, overrides: tuple[str, ...] = ()) -> str:
    """The error's text, without the folder."""
    with pytest.raises(SpecError) as caught:
        read_spec(path, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(f"{path.parent}/", "")


MISSING = (
    "missing key 'rules'; they say what `tnc compile` does; a spec for `tnc adapt` alone may have "
    "`adapters` instead, such as adapters: lora{rank=8}"
)


@pytest.mark.parametrize(("text", "message"), CASES.values(), ids=CASES)
def test_message(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    assert told(path) == message


def test_the_spec_that_cases_spoil_is_good(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(GOOD)
    read_spec(path)


def test_all_errors_are_told_root_causes_first(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("version: 1\nseed: -1\nbudget: {flop: 0.2}\nobjectiv: sum\n")
    lines = [line for line in told(path).split("\n") if line.startswith("s.yaml")]
    assert lines == [
        "s.yaml:3:10: budget.flop: unknown key 'flop'; did you mean 'flops'?",
        "s.yaml:4:1: objectiv: unknown key 'objectiv'; did you mean 'objective'?",
        "s.yaml:2:7: seed: expected greater than or equal to 0, got -1",
        f"s.yaml:1:1: rules: {MISSING}",
    ]


def test_a_spec_without_rules_is_told_of_adapters(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("version: 1\nseed: 1\n")
    assert told(path).startswith(f"s.yaml:1:1: rules: {MISSING}\n")
    remedy = MISSING.partition("such as ")[2]
    path.write_text(f"version: 1\nseed: 1\n{remedy}\n")
    assert read_spec(path).spec.adapters
    with pytest.raises(SpecError, match="instead, such as adapters"):
        Spec(version=1)


def test_an_error_in_a_base_names_the_base(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(GOOD + "sed: 1\n")
    path = tmp_path / "s.yaml"
    path.write_text("extends: base.yaml\nversion: 1\n")
    assert told(path).startswith("base.yaml:6:1: sed: unknown key 'sed'")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            "budget.params=2.5",
            "<--set>:1:15: budget.params: expected a fraction such as 0.5 (of the dense value) or "
            "a whole number above 1, got 2.5\n  budget.params=2.5\n                ^",
        ),
        (
            "buget.params=0.5",
            "<--set>:1:1: buget: unknown key 'buget'; did you mean 'budget'?\n"
            "  buget.params=0.5\n  ^",
        ),
        (
            "rules.3.keep=0.5",
            "'3' is no index of a list of 1\n  at: --set rules.3.keep=0.5\n"
            "  try: items count from 0",
        ),
        ("budget", "'budget' is no assignment\n  at: --set\n  try: write --set key.key=value"),
    ],
)
def test_overrides(assignment: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(GOOD)
    assert told(path, (assignment,)) == message


def test_python_is_told_the_same_without_places() -> None:
    with pytest.raises(SpecError) as caught:
        Spec(version=1, buget={"params": 0.5}, rules=[{"match": "*", "structure": "tuker"}])
    assert str(caught.value) == (
        "buget: unknown key 'buget'; did you mean 'budget'?\n"
        "rules.0.structure.0: no structure is named 'tuker'; did you mean 'tucker'?"
    )


def test_unknown_recipe() -> None:
    with pytest.raises(SpecError) as caught:
        Spec.read("minilmm")
    assert str(caught.value).startswith(
        "no spec file and no recipe is named 'minilmm'\n  try: did you mean 'minilm'? recipes: "
    )


def test_a_folder_is_no_spec(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        Spec.read(str(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path} is a folder, not a spec file\n"
        f"  try: name the file in it; `tnc inspect {tmp_path}` shows an artifact"
    )
