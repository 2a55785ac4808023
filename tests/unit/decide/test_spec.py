"""Specs: one model for YAML and Python, with where everything was written."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

import tnc
from tnc.decide.pipeline import DEFAULT, shipped
from tnc.decide.spec import Spec, check_tree, read_spec
from tnc.decide.spec_parts import Budget, Rule
from tnc.decide.spec_schema import schema_text, spec_schema
from tnc.decide.specfile import recipes
from tnc.decide.spectree import parse_tree
from tnc.errors import SpecError
from tnc.structures import families

ROOT = Path(__file__).parents[3]
SPECS = sorted(p for p in (ROOT / "specs").rglob("*.yaml") if p.parent.name != "search")
SMALL = "version: 1\nbudget: {params: 0.5}\nrules:\n  - match: '*'\n    structure: low-rank\n"


def written(folder: Path, **files: str) -> Path:
    """Write files `name.yaml` and return the first."""
    paths = [folder / f"{name}.yaml" for name in files]
    for path, text in zip(paths, files.values()):
        path.write_text(text)
    return paths[0]


def test_python_and_yaml_make_the_same_spec(tmp_path: Path) -> None:
    tucker = families.get("tucker")
    made = Spec(
        version=1,
        budget=Budget(scope="encoder.*", params=0.5),
        rules=[
            Rule(match="a.*", op="linear", structure=tucker(factors=2)),
            Rule(match=["b", "c"], structure="dense"),
        ],
    )
    text = """
version: 1
budget: {scope: "encoder.*", params: 0.5}
rules:
  - {match: "a.*", op: linear, structure: {kind: tucker, factors: 2}}
  - {match: [b, c], structure: dense}
"""
    read = read_spec(written(tmp_path, spec=text)).spec
    assert read == made and read.digest == made.digest
    assert made.rules[0].structure == (tucker(factors=2),) and made.rules[1].structure == ()
    assert tnc.Spec is Spec


def test_spec_is_frozen_and_pickles() -> None:
    spec = Spec.read("minilm")
    with pytest.raises(ValueError, match="frozen"):
        spec.seed = 1  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(spec)) == spec


texts = st.sampled_from(["low-rank", "tucker{factors=2}", "tensor-train", "cp{factors=1}"])
rules = st.fixed_dictionaries(
    {"match": st.sampled_from(["*", "a.*", ["b", "c*"]])},
    optional={
        "op": st.sampled_from(["linear", "conv", "embedding"]),
        "keep": st.floats(0.1, 1.0),
        "metric": st.sampled_from(["none", "inputs", "both", "auto"]),
        "min_params": st.integers(0, 10**6),
        "allow_empty": st.booleans(),
    },
).flatmap(
    lambda rule: (texts | st.lists(texts, min_size=1, max_size=3, unique=True)).map(
        lambda structure: {**rule, "structure": structure}
    )
)
amounts = st.floats(0.01, 1.0) | st.integers(2, 10**9)
specs = st.fixed_dictionaries(
    {
        "version": st.just(1),
        "budget": st.fixed_dictionaries({"params": amounts}, optional={"flops": amounts}),
        "rules": st.lists(rules, min_size=1, max_size=3),
    },
    optional={
        "seed": st.integers(0, 99),
        "objective": st.sampled_from(["sum", "max"]),
        "passes": st.just(["find-sites", "fold-batch-norm"]),
        "evaluation": st.sampled_from(["logits", {"kind": "embedding"}]),
        "calibration": st.just({"kind": "topics", "samples": 8}),
        "model": st.just({"kind": "hf", "path": "package:a/b"}),
        "quality": st.just({"max_error": 0.5}),
        "export": st.sampled_from(["onnx", ["onnx", "dense"]]),
    },
)


@given(specs)
@settings(max_examples=60, deadline=None)
def test_resolved_text_reads_back_as_the_same_spec(data: dict[str, object]) -> None:
    spec = Spec(**data)
    again = check_tree(parse_tree(spec.to_yaml(), "resolved.yaml")).spec
    assert again == spec and again.digest == spec.digest
    jsonschema.Draft7Validator(spec_schema()).validate(spec.to_data())


def test_locations_name_file_and_line(tmp_path: Path) -> None:
    read = read_spec(written(tmp_path, small=SMALL), ["rules.0.keep=0.5"])
    assert read.locations["rules.0"] == "small.yaml:4"
    assert read.locations["rules.0.structure"] == "small.yaml:5"
    assert read.locations["budget.params"] == "small.yaml:2"
    assert read.locations["rules.0.keep"] == "--set rules.0.keep=0.5"


def test_extends_merges_maps_and_replaces_lists(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        top="version: 1\nextends: [one, two.yaml]\nbudget: {flops: 0.4}\n",
        two="seed: 2\nobjective: max\n",
    )
    (tmp_path / "one").write_text(SMALL + "seed: 1\n")
    read = read_spec(path)
    assert read.spec.budget == Budget(params=0.5, flops=0.4)
    assert (read.spec.seed, read.spec.objective) == (2, "max")
    assert read.locations["rules.0"] == "one:4"
    assert read.locations["seed"] == "two.yaml:1"
    over = written(tmp_path, over="extends: one\nrules: [{match: b, structure: dense}]\n")
    assert [rule.match for rule in read_spec(over).spec.rules] == [("b",)]


def test_another_kind_replaces_the_whole_map(tmp_path: Path) -> None:
    base = SMALL + "calibration: {kind: topics, samples: 8, max_length: 16}\n"
    path = written(
        tmp_path,
        top="extends: base.yaml\ncalibration: {kind: random, shapes: [[2]]}\n",
        base=base,
        same="extends: base.yaml\ncalibration: {samples: 4}\n",
    )
    assert type(read_spec(path).spec.calibration).__name__ == "RandomData"
    same = read_spec(tmp_path / "same.yaml").spec.calibration
    assert (same.samples, same.max_length) == (4, 16)  # type: ignore[union-attr]


def test_circles_are_told(tmp_path: Path) -> None:
    path = written(tmp_path, a="extends: b.yaml\n", b="extends: a.yaml\n")
    with pytest.raises(SpecError, match=r"in a circle: a\.yaml -> b\.yaml -> a\.yaml"):
        read_spec(path)


def test_overrides_come_before_checking(tmp_path: Path) -> None:
    path = written(tmp_path, spec=SMALL.replace("0.5", "nonsense"))
    read = read_spec(path, ["budget.params=0.25", "quality.max_error=1e-3", "export=[onnx]"])
    assert read.spec.budget == Budget(params=0.25)
    assert read.spec.quality is not None and read.spec.quality.max_error == 1e-3
    assert read.spec.export == ("onnx",)


def test_digest_sees_wishes_and_not_how_they_are_written(tmp_path: Path) -> None:
    plain = read_spec(written(tmp_path, plain=SMALL))
    other = "# words\n" + SMALL.replace("structure: low-rank", "structure: [{kind: low-rank}]")
    assert read_spec(written(tmp_path, other=other)).digest == plain.digest
    assert read_spec(tmp_path / "plain.yaml", ["seed=1"]).digest != plain.digest


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_every_spec_that_comes_with_tnc_is_valid(path: Path) -> None:
    read_spec(path)
    data = YAML(typ="safe").load(path.read_text())
    jsonschema.Draft7Validator(json.loads(schema_text())).validate(data)
    assert "$schema=../tnc.schema.json" in path.read_text().split("\n")[0]


def test_recipes_are_found_by_bare_name() -> None:
    assert {"minilm", "svd-llm", "plain-svd", "resnet-tucker"} <= set(recipes())
    assert Spec.read("svd-llm").allocate == "uniform"


def test_committed_schema_is_fresh() -> None:
    committed = (ROOT / "specs" / "tnc.schema.json").read_text()
    assert committed == schema_text(), "run `tnc spec schema --out specs/tnc.schema.json`"


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": 2},
        {"budgets": {}},
        {"budget": {"params": 0}},
        {"rules": []},
        {"rules": [{"match": "*", "structure": "tuker"}]},
        {"rules": [{"match": "*", "structure": {"kind": "tucker", "factor": 2}}]},
        {"passes": ["find-sits"]},
    ],
)
def test_schema_refuses_what_is_wrong(wrong: dict[str, object]) -> None:
    good = {"version": 1, "rules": [{"match": "*", "structure": "tucker{factors=2}"}]}
    validator = jsonschema.Draft7Validator(spec_schema())
    assert validator.is_valid(good) and not validator.is_valid({**good, **wrong})


def test_default_passes_come_with_tnc() -> None:
    assert set(DEFAULT) <= set(shipped())
    assert Spec.read("minilm").passes == DEFAULT
