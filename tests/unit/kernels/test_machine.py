"""Prices: of the shipped table and of one that is measured, kept and read again."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from tnc.errors import KernelError
from tnc.kernels import backend, calibrate, machine, predictions, price, timing

SHIPPED = json.loads(machine.GENERIC.read_text())["tables"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TNC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid that takes a moment to measure."""
    axis = (1, 4, 32)
    axes = {"mm": (axis, axis, axis), "bmm": ((4,), *3 * (axis,)), "shared": ((4,), *3 * (axis,))}
    monkeypatch.setattr(calibrate, "AXES", axes)
    monkeypatch.setattr(calibrate, "COPIED", (4096, 16384))
    monkeypatch.setattr(calibrate, "STREAMED", (1 << 16, 1 << 18))
    monkeypatch.setattr(calibrate, "FRESH", (1 << 16, 1 << 18))
    monkeypatch.setattr(timing, "MOST_BYTES", 1 << 20)
    monkeypatch.setattr(calibrate, "MOST_BYTES", 1 << 20)
    monkeypatch.setattr(predictions, "MOST_BYTES", 1 << 20)


def test_every_dtype_has_a_shipped_table() -> None:
    assert {table["dtype"] for table in SHIPPED} == set(price.ITEM_BYTES)


@pytest.mark.parametrize("table", SHIPPED, ids=lambda table: table["dtype"])
def test_prices_are_the_measured_times_at_the_measured_points(table: dict[str, Any]) -> None:
    read = price.from_data(table)
    for name in read.backends:
        for kind in price.KINDS:
            found = table["backends"][name][kind]
            for sizes, seconds in zip(product(*found["axes"]), found["values"], strict=True):
                if seconds is None or seconds < 1.1 * found["overhead"]:
                    continue
                batch, m, n, k = (1, *sizes) if kind == "mm" else sizes
                asked = read.gemm(name, batch, m, n, k, shared=kind == "shared")
                if kind != "shared" or name not in price.COPYING:
                    assert asked == pytest.approx(seconds, rel=0.05), (name, kind, sizes)


@pytest.mark.parametrize("dtype", sorted(price.ITEM_BYTES))
@pytest.mark.parametrize("threads", [1, 4])
def test_all_prices_are_finite_and_cover_the_dispatch(dtype: str, threads: int) -> None:
    prices, draw = machine.current(dtype, threads), random.Random(0)
    assert prices.dtype == dtype and prices.threads == threads and not prices.made
    assert prices.backends and set(prices.peak) == set(prices.backends)
    for _ in range(300):
        batch, m, n, k = (round(9000 ** draw.random()) for _ in range(4))
        for name in prices.backends:
            cost = prices.gemm(name, batch, m, n, k, shared=draw.random() < 0.5)
            assert 1e-7 < cost < math.inf
            assert cost == prices.gemm(name, batch, m, n, k) or batch > 1
            assert 2 * batch * m * n * k / cost < 3 * prices.peak[name]
        assert 1e-7 < prices.copy(batch * m, n) < math.inf
        assert 1e8 < prices.bandwidth(batch * m) < 1e13
        assert 0 <= prices.fresh(batch * m) < math.inf
    assert 1e-8 < prices.statement < 1e-3


def test_larger_things_cost_more() -> None:
    prices = machine.current("float32", 1)
    for name in prices.backends:
        squares = [prices.gemm(name, 1, size, size, size) for size in (64, 256, 1024, 8192)]
        assert squares == sorted(squares)
        batches = [prices.gemm(name, batch, 64, 64, 64) for batch in (2, 16, 256, 10**5)]
        assert batches == sorted(batches)
    copies = [prices.copy(size, 64) for size in (1 << 12, 1 << 16, 1 << 20, 1 << 30)]
    assert copies == sorted(copies)
    assert prices.copy(1 << 20, 4) > prices.copy(1 << 20, 1 << 20)
    assert prices.copy(1 << 20, 1 << 16) == prices.copy(1 << 20, 1 << 20)
    assert prices.fresh(128 << 20) > prices.fresh(1 << 20)


def test_empty_things_cost_a_call() -> None:
    prices = machine.current("float32", 1)
    (mkl, *_) = prices.backends
    assert prices.gemm(mkl, 1, 0, 8, 8) == prices.libraries[mkl].products["mm"].small
    assert prices.gemm(mkl, 0, 4, 8, 8) > 0 and prices.copy(0, 0) > 0 and prices.fresh(0) == 0


def test_ragged_columns_are_priced_as_measured() -> None:
    table = next(table for table in SHIPPED if table["dtype"] == "float32")
    read, found = price.from_data(table), table["backends"]["mkl"]["mm"]
    step = [found["columns"][n - 1] / found["columns"][15] for n in (12, 15, 16)]
    prices = [read.gemm("mkl", 1, 256, n, 64) for n in (12, 15, 16)]
    assert [each / prices[-1] for each in prices] == pytest.approx(step, rel=0.1)


def test_more_threads_never_cost_more_in_estimates() -> None:
    one, four = (machine.generic("float32", threads) for threads in (1, 4))
    for sizes in ((1, 8, 8, 8), (1, 1024, 1024, 1024), (64, 64, 64, 64)):
        assert four.gemm("mkl", *sizes) <= one.gemm("mkl", *sizes)
    assert four.gemm("mkl", 1, 1024, 1024, 1024) < one.gemm("mkl", 1, 1024, 1024, 1024) / 3


def test_a_backend_that_the_shipped_table_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "available_backends", lambda dtype: ("mkl",))
    prices = machine.generic("bfloat16", 1)
    assert prices.backends == ("mkl",) and prices.gemm("mkl", 1, 64, 64, 64) > 0
    assert machine.generic("float32", 1).backends == ("mkl",)


def test_unknown_names() -> None:
    with pytest.raises(KernelError, match="'int3'") as raised:
        machine.current("int3")
    assert "float32" in raised.value.hint
    with pytest.raises(KernelError, match="'cublas'") as raised:
        machine.current("float32", 1).gemm("cublas", 1, 2, 2, 2)
    assert "mkl" in raised.value.hint


@pytest.mark.usefixtures("small")
def test_a_calibration_is_kept_and_found_again(cache: Path) -> None:
    assert not machine.current("float32", 1).made
    before = torch.get_num_threads()
    data = calibrate.calibrate("float32", 1, seconds_limit=0.5)
    assert torch.get_num_threads() == before
    machine.store(data, machine.path("float32", 1))
    found = machine.current("float32", 1)
    assert found.made and found.key == machine.fingerprint("float32", 1)
    assert found is machine.current("float32", 1)
    assert machine.state("float32", 1).startswith(found.made)
    assert [file.parent for file in cache.iterdir()] == [cache]
    whole = data["backends"]["mkl"]["mm"]["values"][-1]
    assert found.gemm("mkl", 1, 32, 32, 32) == pytest.approx(whole, rel=0.05)
    assert not machine.current("float32", 2).made, "threads are priced apart"
    (first, *_) = predictions.fits(found, count=4, seconds_limit=0.1)
    assert first.most >= first.middle >= 1


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        "null",
        '{"version": 1}',
        '{"version": 99, "dtype": "float32"}',
        "nan",
        "wrong",
    ],
)
def test_a_damaged_file_is_one_warning_and_the_shipped_table(cache: Path, damage: str) -> None:
    file = machine.path("float32", 1)
    file.parent.mkdir(parents=True)
    data = json.loads(json.dumps(next(t for t in SHIPPED if t["dtype"] == "float32")))
    if damage == "nan":
        data["backends"]["mkl"]["mm"]["values"][0] = float("nan")
    if damage == "wrong":
        data["copy"]["values"].pop()
    file.write_text(json.dumps(data) if damage in ("nan", "wrong") else damage)
    with pytest.warns(UserWarning, match="cannot be read") as caught:
        found = machine.current("float32", 1)
    assert len(caught) == 1
    assert str(file) in str(caught[0].message) and "--calibrate" in str(caught[0].message)
    assert not found.made and found.gemm("mkl", 1, 8, 8, 8) > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert machine.current("float32", 1) is found
        assert "not readable" in machine.state("float32", 1)
    file.unlink()


def test_a_table_of_another_dtype_is_refused(cache: Path) -> None:
    file = machine.path("float32", 1)
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(next(t for t in SHIPPED if t["dtype"] == "float64")))
    with pytest.warns(UserWarning, match="float64"):
        assert machine.current("float32", 1).dtype == "float32"


def test_the_place_of_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TNC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = machine.path("bfloat16", 3)
    assert file.parent == tmp_path / "tnc" and file.name.endswith("-3t-bfloat16.json")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert machine.path("bfloat16", 3).parent == Path.home() / ".cache" / "tnc"
    assert machine.path("float32") != machine.path("float64")


def test_prices_import_no_torch() -> None:
    code = "import sys, tnc.kernels.machine; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_disturbed_bandwidth_is_no_dip() -> None:
    assert calibrate._falling([9.0, 1.0, 5.0, 2.0]) == [9.0, 5.0, 5.0, 2.0]
