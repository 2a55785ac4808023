"""The command line: exit codes, one JSON document, kind errors, no torch where none is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import tnc.recipe
from tnc.cli import main
from tnc.decide.plan import Entry, Plan, Skip, Total
from tnc.errors import InfeasibleBudget, PlanError, TncError
from tnc.net import Structure, parse_network
from tnc.report.run_report import RunReport, Size, Timing

ROOT = Path(__file__).parents[2]
LIGHT = (
    ["--help"],
    ["--version"],
    ["compile", "--help"],
    ["report", "--help"],
    ["spec", "check", "minilm"],
    ["spec", "check", "no-such-spec"],
    ["spec", "schema"],
    ["inspect", "minilm"],
)


def plan_of(rank: int = 2, reason: str = "it pays") -> Plan:
    """A small plan: one site factorised, one dense, one skipped."""
    structure = Structure.of(parse_network(f"B[o r] A[r i] : i -> o | i=8 o=8 r={rank}"))
    common = {"metric": "none", "error": 0.1, "relative": 0.1, "dense_params": 64, "flops": 64,
              "dense_flops": 128, "reason": reason, "rule": "s.yaml:4"}  # fmt: skip
    made = Entry(site="a.weight", members=("a.weight",), structure=structure, fit="svd",
                 family="low-rank", params=16 * rank, **common)  # fmt: skip
    kept = Entry(site="b.weight", members=("b.weight",), structure=None, fit="", family="dense",
                 params=64, **common)  # fmt: skip
    total = Total(64 + 16 * rank, 128, 192, 256)
    return Plan("f", 0, (made, kept), (Skip("c.weight", "no rule matches it"),), ("factorize",),
                (("params", 0.5),), "sum", total, total)  # fmt: skip


def report_of(gate: str = "") -> RunReport:
    """What a run might find."""
    return RunReport(
        before=Size(128, 512, 256),
        after=Size(96, 384, 192),
        timings=(Timing(1, 2.0, 1.5, 10), Timing(32, 20.0, 12.0, 10)),
        figures=(("cosine distance", 0.01), ("cosine similarity", 0.99)),
        held_out=16,
        seconds=(("load", 1.0),),
        plan=plan_of(),
        spec="d",
        artifact="" if gate else "out",
        gate=gate,
    )


@pytest.fixture
def spec(tmp_path: Path) -> str:
    """The path of a spec that is good."""
    path = tmp_path / "s.yaml"
    path.write_text("version: 1\nrules: [{match: '*', structure: low-rank, keep: 0.5}]\n")
    return str(path)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replace the recipe by one that only notes how it was called."""
    calls: list[Any] = []

    def run(resolved, out, plan, progress, *, force=False):  # type: ignore[no-untyped-def]
        progress("load", 0, 1)
        print("a library that chats")
        calls.append((resolved, out, plan, force))
        return report_of()

    monkeypatch.setattr(tnc.recipe, "run", run)
    return calls


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The one JSON document on stdout."""
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def test_compile_prints_tables(spec: str, runs: list[Any], tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["compile", spec, "--out", str(out), "--set", "seed=3"]) == 0
    printed = capsys.readouterr()
    for told in ("a.weight", "low-rank r=2", "s.yaml:4", "c.weight", "no rule matches it",
                 "parameters", "128", "96", "0.750", "ms, batch 32", "12.00", "cosine similarity",
                 "16 held-out samples", "artifact: out"):  # fmt: skip
        assert told in printed.out, told
    assert "a library that chats" in printed.err and "load ..." in printed.err
    resolved, given_out, plan, force = runs[0]
    assert (resolved.spec.seed, given_out, plan, force) == (3, out, None, False)


def test_compile_json_is_one_document(spec: str, runs: list[Any], tmp_path: Path, capsys) -> None:
    assert main(["compile", spec, "--out", str(tmp_path / "out"), "--json"]) == 0
    found = document(capsys)
    assert (found["version"], found["kind"], found["after"]["params"]) == (1, "run", 96)
    assert found["plan"] == plan_of().digest


def test_compile_takes_a_plan(spec: str, runs: list[Any], tmp_path: Path) -> None:
    plan_of().save(tmp_path / "plan.json")
    arguments = ["compile", spec, "--out", str(tmp_path / "out"), "--force"]
    assert main([*arguments, "--plan", str(tmp_path / "plan.json")]) == 0
    assert runs[0][2] == plan_of() and runs[0][3] is True


def test_compile_refuses_a_full_folder_before_it_works(spec: str, runs: list[Any], tmp_path: Path,
                                                       capsys) -> None:  # fmt: skip
    assert main(["compile", spec, "--out", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err and not runs


@pytest.mark.parametrize("out", [".", "..", "{folder}"])
@pytest.mark.parametrize("force", [False, True])
def test_the_folder_that_one_is_in_is_not_replaced(
    out: str, force: bool, spec: str, runs: list[Any], tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tnc.json").write_text("{}")
    given = [spec, "--out", out.format(folder=tmp_path), *(["--force"] if force else [])]
    for command in ("compile", "adapt"):
        assert main([command, *given]) == 2 and not runs
        assert "is the folder that you are in, or holds it" in capsys.readouterr().err
    assert main(["merge", "none", "none", *given[1:]]) == 2
    assert "name a folder in it" in capsys.readouterr().err
    assert (tmp_path / "tnc.json").is_file()


def test_force_replaces_artifacts_alone(spec: str, runs: list[Any], tmp_path: Path, capsys) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["compile", spec, "--out", str(tmp_path), "--force"]) == 2
    assert "is there already and is no artifact" in capsys.readouterr().err and not runs
    assert (tmp_path / "notes.txt").is_file()


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("s.yaml/out", "{folder}/s.yaml is no folder"),
        ("s.yaml/deep/out", "{folder}/s.yaml is no folder"),
        ("x" * 300, "File name too long"),
        ("locked/deep/out", "{folder}/locked is not writable"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    place: str, told: str, spec: str, runs: list[Any], tmp_path: Path, monkeypatch, capsys
) -> None:
    (tmp_path / "locked").mkdir()
    access = os.access
    monkeypatch.setattr(
        "tnc.files.os.access", lambda p, mode: Path(p).name != "locked" and access(p, mode)
    )
    monkeypatch.setattr("tnc.commands.plan._make", lambda *_: pytest.fail("it worked first"))
    out = str(tmp_path / place)
    for command in ("compile", "plan"):
        assert main([command, spec, "--out", out]) == 2
        wanted = f"error: cannot write {out}: {told.format(folder=tmp_path)}\n"
        assert capsys.readouterr().err.startswith(wanted) and not runs


def test_an_operating_system_that_refuses_is_no_internal_error(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    plan_of().save(tmp_path / "plan.json")
    for words in (
        ["plan", str(tmp_path / "plan.json"), "--out", str(tmp_path)],
        ["spec", "init", str(tmp_path / "file" / "s.yaml")],
        ["spec", "schema", "--out", str(tmp_path)],
        ["inspect", str(tmp_path), "--draw", "a.weight", "--svg", str(tmp_path / "file" / "a.svg")],
    ):
        assert main(words) == 2, words
        assert capsys.readouterr().err.startswith(f"error: cannot write {words[-1]}: ")
    with pytest.raises(PlanError, match="cannot write"):
        plan_of().save(tmp_path / "file" / "plan.json")


def test_quality_gate_exits_4(spec: str, tmp_path: Path, monkeypatch, capsys) -> None:
    gate = "cosine distance on held-out data is 0.1, above 0.05"
    monkeypatch.setattr(tnc.recipe, "run", lambda *a, **k: report_of(gate))
    assert main(["compile", spec, "--out", str(tmp_path / "o")]) == 4
    printed = capsys.readouterr()
    assert f"error: {gate}\n  at: quality.max_error" in printed.err and "a.weight" in printed.out
    assert main(["compile", spec, "--out", str(tmp_path / "o"), "--json"]) == 4
    found = document(capsys)
    assert found["error"]["exit_code"] == 4 and found["error"]["report"]["gate"] == gate


class OwnError(TncError):
    """An error without an exit code of its own."""


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (InfeasibleBudget("too tight", hint="0.6 is possible"), 3, "error: too tight\n  try: 0.6"),
        (OwnError("broken"), 1, "error: broken"),
        (ZeroDivisionError("by 0"), 1, "internal error: ZeroDivisionError: by 0\n  try: run it"),
        (KeyboardInterrupt(), 5, "interrupted"),
    ],
)
def test_errors_have_their_codes(error, code, told, spec, tmp_path, monkeypatch, capsys) -> None:
    def run(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(tnc.recipe, "run", run)
    arguments = ["compile", spec, "--out", str(tmp_path / "o")]
    assert main(arguments) == code
    printed = capsys.readouterr()
    assert printed.err.count(told) == 1 and not printed.out and "Traceback" not in printed.err
    assert main([*arguments, "--json"]) == code
    found = document(capsys)
    assert found["kind"] == "error" and found["error"]["exit_code"] == code
    if not isinstance(error, KeyboardInterrupt):
        assert main([*arguments, "--traceback"]) == code
        assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["compil"], "No such command 'compil'. Did you mean 'compile'"),
        (["compile"], "Missing argument 'spec'"),
        (["compile", "minilm"], "Missing option '--out'"),
        (["plan", "minilm", "--frobnicate"], "No such option: --frobnicate"),
        (["export", "x", "--to", "tflite", "--out", "y"], "'tflite' is not one of"),
    ],
)
def test_usage_errors_exit_2(arguments: list[str], told: str, capsys) -> None:
    assert main(arguments) == 2
    assert told in capsys.readouterr().err
    assert main([*arguments, "--json"]) == 2
    assert document(capsys)["error"]["exit_code"] == 2


def test_spec_errors_as_json_have_places(tmp_path: Path, capsys) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("version: 1\nsed: 1\n")
    assert main(["spec", "check", str(path), "--json"]) == 2
    first = document(capsys)["error"]["problems"][0]
    assert (first["line"], first["column"], first["path"]) == (2, 1, "sed")


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace loading and planning; the keywords of the call to `tnc.api.plan`."""
    seen: dict[str, Any] = {}

    def plan(model, spec, **given):  # type: ignore[no-untyped-def]
        seen.update(given)
        return plan_of()

    inputs = types.SimpleNamespace(
        loaded=types.SimpleNamespace(model="model"), given={"example": ((), {})}
    )
    fake = types.ModuleType("tnc.api")
    fake.plan = plan  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tnc.api", fake)
    monkeypatch.setattr(tnc, "api", fake, raising=False)
    monkeypatch.setattr("tnc.inputs.load", lambda spec: inputs)
    return seen


def test_plan_prints_saves_and_explains(spec: str, planned, tmp_path: Path, capsys) -> None:
    saved = tmp_path / "plan.json"
    assert main(["plan", spec, "--out", str(saved)]) == 0
    printed = capsys.readouterr()
    assert "low-rank r=2" in printed.out and "whole model: 128 -> 96 parameters" in printed.out
    assert Plan.read(saved) == plan_of() and "written to" in printed.err
    assert planned["locations"]["rules.0"] == "s.yaml:2"
    assert main(["plan", str(saved), "--explain", "a.weight"]) == 0
    assert "because it pays" in capsys.readouterr().out
    assert main(["plan", str(saved), "--json"]) == 0
    assert document(capsys)["digest"] == plan_of().digest


def test_plan_diff_and_its_exit_code(spec: str, planned, tmp_path: Path, capsys) -> None:
    plan_of().save(tmp_path / "same.json")
    plan_of(rank=3).save(tmp_path / "other.json")
    same, other = ["--diff", str(tmp_path / "same.json")], ["--diff", str(tmp_path / "other.json")]
    assert main(["plan", spec, *same, "--detailed-exitcode"]) == 0
    assert "no changes" in capsys.readouterr().out
    assert main(["plan", spec, *other]) == 0
    assert main(["plan", spec, *other, "--detailed-exitcode"]) == 6
    assert "(48)" in capsys.readouterr().out
    assert main(["plan", spec, *other, "--json"]) == 0
    assert len(document(capsys)["changes"]) == 1


def test_inspect_draws(tmp_path: Path, capsys) -> None:
    plan_of().save(tmp_path / "plan.json")
    assert main(["inspect", str(tmp_path)]) == 0
    assert "low-rank r=2" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path), "--draw", "a.weight"]) == 0
    assert "r = 2: B - A" in capsys.readouterr().out
    picture = tmp_path / "a.svg"
    assert main(["inspect", str(tmp_path), "--draw", "a.weight", "--svg", str(picture)]) == 0
    assert picture.read_text().startswith("<svg")
    assert main(["inspect", str(tmp_path), "--draw", "b.weight"]) == 2
    assert "stays dense" in capsys.readouterr().err


def test_init_writes_a_spec_that_is_good(tmp_path: Path, capsys) -> None:
    file = tmp_path / "new.yaml"
    assert main(["spec", "init", str(file)]) == 0
    assert main(["spec", "check", str(file)]) == 0
    assert main(["spec", "init", str(file)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_schema_goes_to_stdout_or_a_file(tmp_path: Path, capsys) -> None:
    assert main(["spec", "schema"]) == 0
    text = capsys.readouterr().out
    assert main(["spec", "schema", "--out", str(tmp_path / "s.json")]) == 0
    assert (tmp_path / "s.json").read_text() == text and json.loads(text)["$schema"]


def test_doctor(capsys) -> None:
    assert main(["doctor", "--json"]) == 0
    found = document(capsys)
    assert found["versions"]["torch"] and "GFLOP/s" in found["machine"]["float32 product"]
    assert "minilm" in found["data"]["recipes"]


def test_doctor_calibrates(capsys, tmp_path: Path, monkeypatch) -> None:
    from tnc.kernels import calibrate, machine, predictions

    monkeypatch.setenv("TNC_CACHE", str(tmp_path))
    monkeypatch.setattr(predictions, "fits", lambda machine: ())

    def calibrated(dtype: str, threads: int, report: Any, device: str) -> dict[str, Any]:
        return {**machine.shipped(dtype), "key": machine.fingerprint(dtype, threads)}

    monkeypatch.setattr(calibrate, "calibrate", calibrated)
    words = ["doctor", "--json", "--dtype", "bfloat16", "--threads", "3"]
    assert main(words) == 0
    found = document(capsys)["calibration"]
    assert "not calibrated" in found["measured"] and "--calibrate" in found["measured"]
    assert main([*words, "--calibrate"]) == 0
    found = document(capsys)
    assert Path(found["calibration"]["file"]).is_file()
    assert "not calibrated" not in found["calibration"]["measured"]
    assert "refused" in found["prices"]["mkl"] and "GFLOP/s" in found["prices"]["onednn"]
    assert main(["doctor", "--calibrate", "--dtype", "int4"]) == 1
    assert main(["doctor", "--json", "--device", "cuda"]) == 0
    found = document(capsys)["calibration"]
    assert "--device cuda" in found["measured"] and "tf32" in found["products"]
    assert main(["doctor", "--device", "tpu"]) == 1


def importers(commands: tuple[list[str], ...], first: str = "") -> list[str]:
    """Run commands one after another in a fresh process; those after which torch was imported."""
    code = (
        f"{first}\nimport json, sys\nfrom tnc.cli import main\n"
        f"for words in json.loads({json.dumps(list(commands))!r}):\n"
        "    main(words)\n"
        "    print('torch' if 'torch' in sys.modules else 'light', *words, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    lines = [line for line in done.stderr.split("\n") if line.startswith(("torch", "light"))]
    assert len(lines) == len(commands)
    return [line for line in lines if line.startswith("torch")]


def test_no_torch_where_none_is_needed() -> None:
    assert importers(LIGHT) == []


def test_the_check_for_torch_can_fail() -> None:
    assert importers((["--version"],), first="import torch") == ["torch --version"]
