"""Run folders and the commands on them: what is written, read, refused, and gone on with."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tnc
from tests.unit.explore.toys import Toy
from tnc.cli import main
from tnc.errors import SearchError
from tnc.explore import Counts, Found, Limits, Topology, strategies
from tnc.explore.evaluator import rse
from tnc.explore.waiting import Waiting
from tnc.net import from_json, parse_network
from tnc.searching.folder import RunFolder
from tnc.searching.progress import Progress
from tnc.searching.running import load

ROOT = Path(__file__).resolve().parents[3]
SPEC = """\
search:
  target: {ring: [3, 3, 3, 3], ranks: [2, 2, 2, 2], seed: 3}
  space: {bonds: ring, rank: 3}
  strategy: {random: {batch: 4}}
  evaluator: toy
  engine: serial
  limits: {evaluations: 20}
"""


@pytest.fixture
def spec(tmp_path: Path) -> str:
    (tmp_path / "s.yaml").write_text(SPEC)
    return str(tmp_path / "s.yaml")


@pytest.fixture
def run(spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A run that came to its end."""
    assert main(["search", "run", spec, "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    gc.collect()
    return tmp_path / "run"


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def test_a_run_is_a_folder(run: Path) -> None:
    assert {file.name for file in run.iterdir()} - {"evals.sqlite-shm", "evals.sqlite-wal"} == {
        "run.json", "evals.sqlite", "events.jsonl", ".lock",
    }  # fmt: skip
    folder = RunFolder.open(run)
    assert folder.spec().search.limits.evaluations == 20
    kinds = [event["event"] for event in folder.events()]
    assert kinds[0] == "begin" and kinds[-1] == "end" and set(kinds[1:-1]) == {"round"}
    asked = [key for event in folder.events() for key in event.get("asked", ())]
    assert len(asked) == len(set(asked)) == 20
    assert [told.trial.key for told in load(folder).found.trials] == asked


def test_the_commands_agree(spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    assert main(["search", "run", spec, "--out", run, "--set", "search.seed=1", "--json"]) == 0
    made = document(capsys)
    assert (made["kind"], made["ended"]) == ("search", "20 evaluations")
    assert made["counts"]["evaluations"] == made["counts"]["fitted"] == 20
    for command, kind in (("best", "search-best"), ("resume", "search"),
                          ("status", "search-status")):  # fmt: skip
        assert main(["search", command, run, "--json"]) == 0
        told = document(capsys)
        assert told["kind"] == kind and told["best"][0] == made["best"][0]
        assert told["front"] == made["front"] and told["ended"] == made["ended"]
    assert told["state"] == "ended: 20 evaluations"
    scores = [each["score"] for each in made["best"]]
    assert len(scores) == 10 and scores == sorted(scores)
    assert main(["search", "best", run, "--count", "3"]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert lines[0].split() == ["rank", "score", "params", "ratio", "rse", "network"]
    assert made["best"][2]["topology"] in lines[3] and not lines[4]
    assert main(["search", "status", run]) == 0
    assert "ended: 20 evaluations" in capsys.readouterr().out


def test_an_ended_run_needs_other_limits(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = (run / "events.jsonl").read_bytes()
    assert main(["search", "resume", str(run)]) == 0
    told = capsys.readouterr().err
    assert "it came to its end: 20 evaluations; with --set search.limits.KEY=VALUE" in told
    assert (run / "events.jsonl").read_bytes() == events
    more = ["search", "resume", str(run), "--set", "search.limits.evaluations=30", "--json"]
    assert main(more) == 0
    counts = document(capsys)["counts"]
    assert (counts["evaluations"], counts["fitted"]) == (30, 10)
    assert len(load(RunFolder.open(run)).found.trials) == 30


def test_what_hung_is_tried_again(spec: str, tmp_path: Path, capsys) -> None:
    run = str(tmp_path / "run")
    slow = ["--set", "search.evaluator={toy: {seconds: 0.4}}", "--set", "search.engine={processes: "
            "{workers: 2, timeout: 0.2}}", "--set", "search.limits.evaluations=4"]  # fmt: skip
    assert main(["search", "run", spec, "--out", run, *slow, "--json"]) == 0
    assert document(capsys)["counts"]["failed"] == 4
    words = ["search", "resume", run, "--set", "search.engine=serial", "--json"]
    assert main(words) == 0
    assert document(capsys)["counts"]["failed"] == 4
    assert main([*words, "--retry"]) == 0
    printed = capsys.readouterr()
    assert "4 candidates without an answer are evaluated again" in printed.err
    assert json.loads(printed.out)["counts"]["failed"] == 0


@pytest.mark.parametrize("key", ["seed=1", "strategy=tnale", "space.rank=2", "objective.kind=x"])
def test_a_run_keeps_what_it_searches(key: str, run: Path, capsys) -> None:
    assert main(["search", "resume", str(run), "--set", f"search.{key}"]) == 2
    told = capsys.readouterr().err
    assert "objective" in told if "objective" in key else "a run that goes on keeps its " in told


def test_another_evaluator_cannot_go_on(run: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(Toy, "version", 7)
    words = ["search", "resume", str(run), "--set", "search.limits.evaluations=30"]
    assert main(words) == 2
    assert "the evaluator is another one than when" in capsys.readouterr().err


def test_seconds_are_those_of_all_processes(spec: str, tmp_path: Path, capsys) -> None:
    run, limit = str(tmp_path / "run"), "search.limits.seconds=0.5"
    slow = ["--set", "search.evaluator={toy: {seconds: 0.05}}"]
    assert main(["search", "run", spec, "--out", run, *slow, "--set", limit]) == 0
    folder = RunFolder.open(Path(run))
    first = len(load(folder).found.trials)
    assert 4 <= first < 20 and folder.events()[-1]["ended"] == "0.5 seconds"
    assert main(["search", "resume", run, "--set", "search.limits.seconds=0.51"]) == 0
    assert len(load(folder).found.trials) <= first + 4
    assert main(["search", "resume", run, "--set", "search.limits.seconds=60"]) == 0
    assert len(load(folder).found.trials) == 20


def test_runs_share_a_record(spec: str, tmp_path: Path, capsys) -> None:
    record = str(tmp_path / "all.sqlite")
    shared = ["search", "run", spec, "--record", record, "--json", "--out"]
    assert main([*shared, str(tmp_path / "one")]) == 0
    first = document(capsys)
    assert main([*shared, str(tmp_path / "two")]) == 0
    second = document(capsys)
    assert second["counts"]["fitted"] == 0 and second["best"] == first["best"]
    assert main(["search", "best", str(tmp_path / "two"), "--json"]) == 0
    assert document(capsys)["best"] == first["best"]
    assert main([*shared, str(tmp_path / "three"), "--set", "search.seed=1"]) == 0
    assert document(capsys)["counts"]["fitted"] == 20
    assert not (tmp_path / "two" / "evals.sqlite").exists()


def test_networks_are_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = np.random.default_rng(0).standard_normal((3, 4, 5))
    found = tnc.search(
        target,
        space={"bonds": "chain", "rank": 3, "places": False},
        strategy="random",
        engine="serial",
        limits={"evaluations": 6},
        out=tmp_path / "run",
    )
    export = ["search", "export", str(tmp_path / "run"), "--out"]
    assert main([*export, str(tmp_path / "a.json"), "--count", "3"]) == 0
    networks = json.loads((tmp_path / "a.json").read_text())["networks"]
    wanted = found.ranked(3)
    assert [from_json(each["structure"]) for each in networks] == [c.structure for c in wanted]
    assert main([*export, str(tmp_path / "a.txt"), "--rank", "2", "--json"]) == 0
    assert document(capsys)["networks"][0]["score"] == wanted[1].score
    assert parse_network((tmp_path / "a.txt").read_text().strip()) == wanted[1].network
    assert main([*export, str(tmp_path / "a.safetensors")]) == 0
    from safetensors import safe_open

    with safe_open(tmp_path / "a.safetensors", "np") as file:
        structure = from_json(json.loads(file.metadata()["structure"]))
        cores = tuple(file.get_tensor(core.name) for core in structure.terms[0].equation.cores)
    assert structure == wanted[0].structure
    assert rse(target, cores, wanted[0].topology) == pytest.approx(wanted[0].scored.rse)
    for words, told in (
        ([*export, str(tmp_path / "a.zip")], "end it with one of .json, .txt, .safetensors"),
        ([*export, str(tmp_path / "b.safetensors"), "--count", "2"], "it holds one"),
        ([*export, str(tmp_path / "b.txt"), "--rank", "99"], "no network of rank 99"),
        ([*export, str(tmp_path / "no" / "b.txt" / "c.txt")], ""),
    ):
        assert main(words) == (0 if not told else 2) and told in capsys.readouterr().err


def test_a_search_in_memory_is_saved_and_goes_on(tmp_path: Path, capsys) -> None:
    import torch

    target = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(0))
    parts: dict[str, Any] = {"strategy": "random", "evaluator": "toy", "engine": "serial"}
    found = tnc.search(target, **parts, limits={"evaluations": 10}, seed=4)
    assert found.best is not None and found.best.cores is not None and found.front
    assert found.best.dense().shape == (3, 3, 3) and "after 10 evaluations" in str(found)
    found.save(tmp_path / "saved")
    again = load(RunFolder.open(tmp_path / "saved"))
    assert again.to_json() == found.to_json()
    (tmp_path / "saved").rename(tmp_path / "moved")
    words = ["search", "resume", str(tmp_path / "moved"), "--json"]
    assert main([*words, "--set", "search.limits.evaluations=14"]) == 0
    assert document(capsys)["counts"]["fitted"] == 4
    direct = tnc.search(target, **parts, limits={"evaluations": 14}, seed=4)
    assert load(RunFolder.open(tmp_path / "moved")).to_json()["best"] == direct.to_json()["best"]
    with pytest.raises(SearchError, match="is there already"):
        found.save(tmp_path / "moved")


def test_a_cut_line_is_left_out_and_what_follows_is_read(run: Path) -> None:
    folder = RunFolder.open(run)
    events = folder.events()
    with (run / "events.jsonl").open("a") as file:
        file.write('{"event": "round", "asked": ["ab')
    assert folder.events() == events
    folder.log(Waiting(), "begin")
    assert [*events, "begin"] == [*folder.events()[:-1], folder.events()[-1]["event"]]
    (run / "events.jsonl").unlink()
    assert folder.events() == [] and len(load(folder).found.trials) == 20


def test_one_process_at_a_time(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder.open(run)
    words = ["search", "resume", str(run), "--set", "search.limits.evaluations=30"]
    assert not folder.live
    with folder.alone():
        assert folder.live
        assert main(["search", "status", str(run), "--json"]) == 0
        assert document(capsys)["state"] == "running"
        assert main(words) == 2
        assert "another process is at" in capsys.readouterr().err
    assert not folder.live and main(words) == 0


def test_status_reads_only(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def kept() -> dict[str, bytes]:
        """All but what SQLite keeps for readers."""
        own = (file for file in run.iterdir() if not file.name.endswith(("-shm", "-wal")))
        return {file.name: file.read_bytes() for file in own}

    before = kept()
    for command in ("status", "best"):
        assert main(["search", command, str(run)]) == 0
    assert kept() == before


def test_runs_are_named_after_their_spec(spec: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("s", "s-2"):
        assert main(["search", "run", spec]) == 0
        assert (tmp_path / "runs" / name / "run.json").is_file()


def test_progress_in_words() -> None:
    tell = Progress(Limits(evaluations=10, seconds=100.0))
    found = Found(counts=Counts(evaluations=4))
    assert tell(found) == "nothing yet, 0 hits, 1:40 left"
    found.counts.fitted, found.counts.hits = 2, 7
    words = tell(found)
    assert words.startswith("nothing yet, ") and "evaluations/s, 7 hits, 0:00 left" in words


LIGHT = (
    ["search", "--help"],
    ["search", "schema"],
    ["search", "run", "no-such-search"],
)


@pytest.mark.parametrize("words", LIGHT, ids=" ".join)
def test_what_needs_no_torch_does_not_import_it(words: list[str]) -> None:
    script = (
        "import sys; from tnc.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=ROOT, capture_output=True,
                          env={**os.environ}, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_search_that_comes_with_tnc(tmp_path: Path, capsys) -> None:
    words = ["search", "run", "ring", "--out", str(tmp_path / "ring"), "--json"]
    assert main([*words, "--set", "search.engine=serial", "--set", "search.limits.patience=8"]) == 0
    best = document(capsys)["best"][0]
    ring = [(k, (k + 1) % 6, size) for k, size in enumerate((2, 2, 2, 3, 3, 4))]
    assert best["topology"] == str(Topology.of((3,) * 6, ring)) and best["metrics"]["rse"] < 1e-8


def test_the_schema_takes_what_the_specs_say() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    from tnc.decide.specfile import read_tree, recipes
    from tnc.searching.spec import schema

    made = schema()
    for file in recipes("search").values():
        jsonschema.validate(read_tree(file).plain, made)
    good = read_tree(recipes("search")["ring"]).plain["search"]
    for name in strategies.all():
        for form in (name, {name: None}):
            jsonschema.validate({"search": good | {"strategy": form}}, made)
    for change in ({"sed": 1}, {"strategy": {"tnala": {}}}, {"strategy": {"tnale": {"r": 1}}},
                   {"target": {"rnig": 1}}, {"space": {"bonds": "rnig"}}):  # fmt: skip
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"search": good | change}, made)
