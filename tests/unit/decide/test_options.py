"""Options: one text form, one mapping form, one instance; they say the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tnc.decide.option_text import OptionText, parse_form, print_form
from tnc.decide.options import as_mapping, as_plain, build, options_model, print_option
from tnc.decide.pipeline import schedules
from tnc.decide.spec_problems import SpecProblems
from tnc.registry import Registry
from tnc.sources import datas, evaluations, models
from tnc.structures import families
from tnc.structures.low_rank import LowRank
from tnc.structures.tucker import Tucker

SAMPLES = {
    ("model source", "hf"): {"path": "package:some/where"},
    ("model source", "callable"): {"function": "a.b:c", "kwargs": {"width": 3}},
    ("model source", "safetensors"): {"function": "a.b:c", "state": "x y.safetensors"},
    ("data source", "text"): {"file": "a.txt", "unit": "blocks"},
    ("data source", "npz"): {"file": "a.npz", "mean": (0.5, 0.25), "std": (1.0, 2.0)},
    ("data source", "images"): {"files": ("a.npz", "b.npz"), "mean": (0.5,), "crop": 2},
    ("data source", "random"): {"shapes": ((3, 8, 8), (2,))},
    ("data source", "callable"): {"function": "a.b:c"},
    ("structure", "free-form"): {"equation": "B[o r] A[r i] : i -> o", "sizes": {"r": 4}},
    ("structure", "tucker"): {"factors": 2},
    ("structure", "stacked"): {"of": Tucker(factors=2), "shared": ("V1",)},
    ("structure", "sum"): {"terms": (LowRank(), Tucker(factors=2))},
}
EVERY = [
    pytest.param(registry, name, id=f"{registry.kind}-{name}")
    for registry in (families, models, datas, evaluations, schedules)
    for name in registry.all()
]

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6
)
names = st.from_regex(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", fullmatch=True)
keys = st.from_regex(r"[a-z_][a-z0-9_]*", fullmatch=True).filter(lambda key: key != "kind")


@given(names, st.dictionaries(keys, values, max_size=4))
@example("a", {"high": float("inf"), "low": float("-inf"), "words": ["Infinity", float("inf")]})
@example("a", {"word": "Infinity", "other": "NaN", "third": "-Infinity"})
def test_text_form_round_trips(name: str, options: dict[str, object]) -> None:
    whole = {"kind": name, **options}
    assert parse_form(print_form(whole)) == whole


@pytest.mark.parametrize(("registry", "name"), EVERY)
def test_every_registered_thing_is_text_mapping_and_instance(registry, name: str) -> None:
    thing = registry.get(name)(**SAMPLES.get((registry.kind, name), {}))
    assert build(registry, print_option(registry, thing)) == thing
    assert build(registry, as_mapping(registry, thing)) == thing
    assert build(registry, as_plain(registry, thing)) == thing
    assert build(registry, thing) is thing


@pytest.mark.parametrize(("registry", "name"), EVERY)
def test_every_registered_thing_is_a_frozen_dataclass_with_a_model(registry, name: str) -> None:
    thing = registry.get(name)
    assert thing.__dataclass_params__.frozen
    model = options_model(name, thing)
    assert set(model.model_fields) == {"kind", *thing.__dataclass_fields__}
    assert model.model_config["extra"] == "forbid"


def test_defaults_are_not_printed() -> None:
    assert print_option(families, families.get("tucker")()) == "tucker"
    assert print_option(families, build(families, "tucker{ factors = 3 }")) == "tucker{factors=3}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a name at character 1 of ''"),
        ("tucker(2)", "expected '{' at character 7 of 'tucker(2)'"),
        ("tucker{factors 2}", "expected '=' at character 16 of 'tucker{factors 2}'"),
        ("tucker{factors=}", "expected a value: a number, a word or JSON at character 16"),
        ("tucker{factors=2", "expected ',' at character 17 of 'tucker{factors=2'"),
        ("tucker{a=1, a=2}", "option 'a' is given twice at character 13"),
        ("tucker{} x", "expected nothing more at character 9"),
    ],
)
def test_wrong_text_says_where(text: str, message: str) -> None:
    with pytest.raises(OptionText) as caught:
        parse_form(text)
    assert str(caught.value).startswith(message)


@dataclass(frozen=True)
class Plugged:
    """A thing from a plug-in."""

    depth: int
    shape: tuple[int, ...] = (1, 2)
    names: Mapping[str, float] = field(default_factory=dict)


def plugged() -> Registry[type[Plugged]]:
    """A registry with one thing, as a plug-in would fill it."""
    registry: Registry[type[Plugged]] = Registry("gadget", "tnc.structures")
    registry.register("plugged")(Plugged)
    return registry


def test_a_plug_in_needs_nothing_but_its_dataclass() -> None:
    made = build(plugged(), {"kind": "plugged", "depth": 2, "shape": [4, 5], "names": {"a": 1}})
    assert made == Plugged(2, (4, 5), {"a": 1.0})
    text = 'plugged{depth=2, shape=[4, 5], names={"a": 1.0}}'
    assert print_option(plugged(), made) == text


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("pluged", "no gadget is named 'pluged'; did you mean 'plugged'?"),
        ({"depth": 2}, "a gadget needs a 'kind': one of plugged"),
        (3, "expected a gadget (plugged), got 3"),
        ("plugged", "depth: missing key 'depth'"),
        ("plugged{depht=2}", "depht: unknown key 'depht'; did you mean 'depth'?"),
        ('plugged{depth="2"}', "depth: expected a whole number, got '2'"),
        ("plugged{depth=true}", "depth: expected a whole number, got True"),
        ("plugged{depth=2, shape=3}", "shape: expected a list, got 3"),
        ("plugged{depth=2, names=3}", "names: expected a map of keys, got 3"),
        ("plugged{depth=2, q=3}", "q: unknown key 'q'; keys are: depth, shape, names"),
    ],
)
def test_wrong_options_are_told(value: object, message: str) -> None:
    with pytest.raises(SpecProblems) as caught:
        build(plugged(), value)
    assert str(caught.value) == message


def test_an_instance_of_something_else_is_refused() -> None:
    with pytest.raises(SpecProblems, match="Plugged is no registered structure"):
        build(families, Plugged(1))


def test_a_pass_lies_in_the_file_of_its_name() -> None:
    """Specs know passes by file name, so that checking one needs no torch."""
    from tnc.decide.pipeline import canonical, passes, pipeline, shipped

    assert set(passes.all()) == set(shipped())
    for name, thing in pipeline(shipped()):
        assert canonical(thing) == canonical({"kind": name}) == canonical(name) == name
