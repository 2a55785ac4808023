"""`tnc compile` leaves a report in the artifact, whose command makes the same model again."""

from __future__ import annotations

import json
from pathlib import Path

from tests.messages.test_errors import DATA, text
from tnc.artifact.manifest import Manifest
from tnc.cli import main
from tnc.decide.plan import Plan
from tnc.report.page import NAME

SPEC = text(
    "structure: [low-rank, tucker], min_params: 130",
    DATA + "evaluation: output\nbudget: {params: 0.7}\nquality: {max_error: 100.0}\n"
    "allocate: surrogate\nround_to: 1\n",
)


def test_the_report_and_the_command_in_it(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(SPEC)
    assert main(["compile", "s.yaml", "--out", "made"]) == 0
    assert main(["verify", "made"]) == 0
    page = Path("made", NAME).read_text()
    assert "tnc compile made/spec.yaml --plan made/plan.json --out DIR" in page

    capsys.readouterr()
    assert main(["report", "made", "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["gate"] == 100.0 and run["timings"] and run["figures"] and run["held_out"] == 8
    assert {"torch", "threads", "machine"} <= dict(run["environment"]).keys()
    assert run["budgets"][0]["used"] <= run["budgets"][0]["limit"]
    assert run["frontier"] and run["curves"] and run["strip"]
    assert all("slower" in warning for warning in run["warnings"])

    words = run["command"].replace("--out DIR", "--out again").split()
    assert main(words[1:]) == 0
    assert Plan.read("again/plan.json") == Plan.read("made/plan.json")
    first, second = (Manifest.read(Path(folder)) for folder in ("made", "again"))
    tensors = next(name for name in first.files if name.startswith("tnc-"))
    assert first.files[tensors] == second.files[tensors]
