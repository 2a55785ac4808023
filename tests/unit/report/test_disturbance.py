"""Medians of times say when threads had to wait for processors."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.unit.test_cli import report_of
from tnc.report import disturbance
from tnc.report.disturbance import Disturbance, busy_seconds
from tnc.report.latency import latency
from tnc.report.run_report import Timing
from tnc.report.table import run_tables, show


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 4 cores on which nobody else works."""
    monkeypatch.setattr(disturbance, "busy_seconds", lambda: time.process_time())
    monkeypatch.setattr(disturbance, "usable_cores", lambda: 4)
    monkeypatch.setattr("os.cpu_count", lambda: 4)


class Waiting(nn.Module):
    """Off the processor for most of its time, as a thread is that others keep from it."""

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.002)
        return x


class Working(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        until = time.thread_time() + 0.002
        while time.thread_time() < until:
            pass
        return x


@pytest.mark.usefixtures("quiet")
def test_a_thread_that_waits_is_told() -> None:
    (timing,) = latency(Waiting(), Working(), [(torch.ones(2, 3),)], seconds=0.05)
    assert "the timed thread waited for a tenth of the time or more" in timing.unreliable


@pytest.mark.usefixtures("quiet")
def test_a_few_disturbed_rounds_leave_the_median() -> None:
    found = Disturbance(2)
    for number in range(20):
        found.add(1.0, 0.5 if number < 5 else 0.99)
    assert found.reason() == ""
    found.add(1.0, 0.89)
    assert found.reason().startswith("the timed thread waited")
    assert "in 6 of 21 rounds" in found.reason()


@pytest.mark.usefixtures("quiet")
def test_more_threads_than_cores_are_told() -> None:
    assert Disturbance(5).reason() == "5 threads shared 4 cores"
    assert Disturbance(4).reason() == ""


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(("others", "told"), [(2.0, ""), (3.5, "other processes took 3.5 of 4")])
def test_what_others_take_is_told(others: float, told: str) -> None:
    """Two threads of four cores leave two to others."""
    found = Disturbance(2)
    assert found._all is not None
    found._wall, found._all = found._wall - 100, found._all - 100 * others
    reason = found.reason()
    assert reason.startswith(told) and bool(reason) == bool(told)


def test_the_systems_counters(tmp_path: Path) -> None:
    assert busy_seconds(tmp_path / "none") is None
    (tmp_path / "stat").write_text("cpu  200 100 50 9000 7 10 20 20 5 0\ncpu0 1 1 1\n")
    assert busy_seconds(tmp_path / "stat") == pytest.approx(
        4.0 * 100 / disturbance.os.sysconf("SC_CLK_TCK")
    )
    (tmp_path / "stat").write_text("cpu x\n")
    assert busy_seconds(tmp_path / "stat") is None


def test_the_report_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    from dataclasses import replace

    from rich.console import Console

    found = report_of()
    assert "unreliable" not in str(found.as_json()).replace("'unreliable': ''", "")
    spoilt = replace(found, timings=(Timing(8, 2.0, 1.5, 10, "3 threads shared 1 core"),))
    assert spoilt.as_json()["timings"][0]["unreliable"] == "3 threads shared 1 core"
    show(run_tables(spoilt), Console())
    told = "milliseconds at batch 8 are unreliable: 3 threads shared 1 core"
    assert told in capsys.readouterr().out
