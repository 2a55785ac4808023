"""Drawings: their form, what they show, that nothing lies on anything, and what cannot be drawn."""

from __future__ import annotations

import json
import re
from itertools import combinations
from math import hypot
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.laws.data import structures
from tests.unit.test_cli import plan_of
from tnc.cli import main
from tnc.derive.draw import Panel, draw_sheet, draw_svg
from tnc.derive.pen import Box, Node, draw
from tnc.derive.places import form, places
from tnc.derive.sketch import Sketch, thickness
from tnc.explore import Topology
from tnc.net import Network, parse_network, to_json
from tnc.net.network import Structure

LOW = "B[o r] A[r i] : i -> o | i=8 o=4 r=2"
FORMS = {
    "line": "4x4x4x4 0-1:2 1-2:3 2-3:2",
    "ring": "4x4x4x4x4 0-1:2 1-2:3 2-3:2 3-4:2 0-4:5",
    "star": "4x4x4x4 +1 0-4:2 1-4:2 2-4:3 3-4:2",
    "tree": "4x4x4x4x4 +3 0-5:3 1-5:3 2-6:3 3-6:3 5-7:4 6-7:4 4-7:3",
    "circle": "4x4x4x4 0-1:2 0-2:3 0-3:2 1-2:2 1-3:2 2-3:4",
    "springs": "4x4x4x4x4x4 0-1:2 1-2:3 3-4:2 4-5:3 0-3:2 1-4:3 2-5:2",
}
each_form = pytest.mark.parametrize("kind", FORMS)


def network(kind: str) -> Network:
    return Topology.parse(FORMS[kind]).network()


def boxes(drawn: Network) -> list[Box]:
    nodes = {core.name: Node("#000", "#fff", "") for core in drawn.equation.cores}
    return draw(Sketch.of(drawn), nodes, True).boxes


def overlaps(found: list[Box]) -> float:
    return sum(a.over(b, -1.0) for a, b in combinations(found, 2))


@each_form
def test_a_topology_has_its_form(kind: str) -> None:
    sketch = Sketch.of(network(kind))
    assert form(sketch.graph) == kind
    found = places(sketch.graph)
    assert set(found) == {*sketch.cores, *sketch.dots}
    away = [hypot(a[0] - b[0], a[1] - b[1]) for a, b in combinations(found.values(), 2)]
    assert min(away) > 0.6


def test_chains_are_level_and_rings_round() -> None:
    assert {y for _, y in places(Sketch.of(network("line")).graph).values()} == {0.0}
    ring = np.array(list(places(Sketch.of(network("ring")).graph).values()))
    radius = np.hypot(*(ring - ring.mean(axis=0)).T)
    assert np.ptp(radius) < 1e-9


@each_form
def test_nothing_lies_on_anything(kind: str) -> None:
    assert overlaps(boxes(network(kind))) == 0


def test_an_overlap_is_seen() -> None:
    assert overlaps([Box(0, 0, 10, 10), Box(8, 8, 10, 10)]) > 0


def test_no_family_is_drawn_with_labels_on_cores() -> None:
    for name, family, signature in structures():
        template = family.template(signature)
        for term in template.at(template.scaled(0.5)).terms:
            cores = len(term.equation.cores)
            found = boxes(term)
            hidden = sum(a.over(b, -1.0) for a in found[:cores] for b in found if a is not b)
            assert hidden <= 60, name


def test_every_index_is_named_with_its_size_and_arrows_follow_the_map() -> None:
    drawn = draw_svg(parse_network(LOW))
    (words,) = re.findall(r'<g class="told"[^>]*>(.*?)</g>', drawn)
    labels = re.findall(r">([^<]+)<", words)
    assert sorted(labels) == ["i=8", "o=4", "r=2"]
    assert drawn.count("<polygon") == 2
    tensor = draw_svg(network("ring"), named=False)
    assert "<polygon" not in tensor and ">5<" in tensor and ">r1_5=5<" not in tensor


def test_an_index_of_three_ends_is_a_dot() -> None:
    sketch = Sketch.of(parse_network("A[g o i] : (g i) -> (g o) | g=2 i=3 o=4"))
    assert sketch.dots == ("·g",) and {leg.way for leg in sketch.legs if leg.node == "·g"} == {
        "in", "out",
    }  # fmt: skip
    cp = Sketch.of(parse_network("A[o r] B[p r] C[i r] : i -> o p | i=3 o=4 p=5 r=6"))
    assert form(cp.graph) == "star" and len(cp.wires) == 3


def test_wide_bonds_are_thick() -> None:
    widths = [thickness(size) for size in (1, 2, 8, 64, 4096)]
    assert widths == sorted(widths) and widths[-1] == 9.0
    drawn = draw_svg(parse_network(LOW.replace("r=2", "r=64")))
    assert f'stroke-width="{thickness(64):.1f}"' in drawn


def test_names_are_escaped_and_the_drawing_is_xml() -> None:
    panel = Panel((network("tree"),), "<b> & 'x'")
    root = ElementTree.fromstring(draw_sheet([panel, panel, panel], columns=2))
    assert "<b> & 'x'" in [node.text for node in root.iter()]
    assert float(root.get("width")) > 0
    assert "style" not in draw_sheet([panel])


def test_a_topology_is_read_back() -> None:
    for text in (*FORMS.values(), "3x3 no bonds"):
        assert str(Topology.parse(text)) == str(Topology.parse(str(Topology.parse(text))))
    assert str(Topology.parse("3x3 no bonds")) == "3x3 no bonds"


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["draw", *words])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def test_whatever_holds_a_network_is_drawn(drawn) -> None:
    Path("structure.json").write_text(json.dumps(to_json(Structure.of(parse_network(LOW)))))
    Path("topology.json").write_text(json.dumps(Topology.parse(FORMS["ring"]).to_json()))
    Path("two.txt").write_text(f"{LOW}\n\n{LOW}\n")
    plan_of().save(Path("plan.json"))
    site = next(entry.site for entry in plan_of().entries if entry.structure)
    for words, told in (
        ((LOW,), "r = 2: B - A"),
        ((f"{LOW} + {LOW.replace('B', 'D').replace('A', 'C')}",), "r = 2: D - C"),
        ((FORMS["tree"],), "G8"),
        (('{"modes": [3, 3], "bonds": [[0, 1, 2]]}',), "r1_2 = 2"),
        (("tensor-train", "--shape", "768x3072", "--set", "factors=3", "--rank", "8"), "r2 = 8"),
        (("tucker{factors=2}", "--shape", "16x16"), "G"),
        (("structure.json",), "r = 2"),
        (("topology.json",), "r1_5 = 5"),
        (("two.txt",), "r = 2"),
        (("plan.json", site), "r = "),
    ):
        code, out, err = drawn(*words, "--out", "x.svg")
        assert code == 0 and told in out and "drawn in x.svg" in err, words
        ElementTree.parse("x.svg")
        Path("x.svg").unlink()
    assert drawn(LOW)[0] == 0 and Path("network.svg").is_file()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("nothing",), "'nothing' is nothing that can be drawn"),
        (("B[o r] A[r i] : i -> o",), "has no sizes"),
        (("3x3 0-7:2",), "does not join two of 2 vertices"),
        (("3x3 0-1",), "is no topology"),
        (("low-rank",), "needs the shape of a weight"),
        (("low-rank", "--shape", "8"), "--shape 8 is no shape"),
        (("low-rank", "--shape", "8x8", "--set", "x=1"), "unknown key 'x'"),
        (("tensor-train", "--shape", "8x8", "--set", "factors=1"), "a train has 2 or more"),
        ((LOW, "--rank", "2"), "are for a structure family"),
        ((LOW, "a.weight"), "a site is of an artifact or a plan"),
        ((".",), "neither an artifact nor a search"),
        (("absent.json",), "cannot read absent.json"),
        (("{broken",), "is no JSON"),
        (('{"a": 1}',), "holds no network"),
        (('{"modes": [3, 3], "bonds": [0]}',), "holds no network"),
        ((LOW, "--out", "x.png"), "drawings are SVG"),
    ],
)
def test_what_cannot_be_drawn_is_told(words: tuple[str, ...], told: str, drawn) -> None:
    code, out, err = drawn(*words)
    assert code == 2 and told in err and not out
    assert not Path("network.svg").exists()


def test_a_site_has_to_be_named(drawn) -> None:
    plan_of().save(Path("plan.json"))
    code, _, err = drawn("plan.json")
    assert code == 2 and "one has to be named" in err
    code, _, err = drawn("plan.json", "absent.weight")
    assert code == 2 and "the plan has no site 'absent.weight'" in err
