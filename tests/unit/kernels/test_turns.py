"""Blocks in turns, by a clock that the runs themselves set forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tnc.kernels.turns import (
    Turns,
    block,
    calls_in,
    clock,
    fastest,
    interleaved,
    probe,
    typical,
)


class Hours:
    """A clock, and runs that take some of its time and write down their name."""

    def __init__(self) -> None:
        self.time, self.called = 0.0, ""

    def __call__(self) -> float:
        return self.time

    def run(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.time += seconds
            self.called += name

        return run


def test_a_block_is_divided_by_its_calls_and_a_probe_is_short() -> None:
    now = Hours()
    assert block(now.run("a", 0.5), 4, now) == 0.5 and now.called == "aaaa"
    assert probe(now.run("b", 1.0), now, seconds=2.5) == 1.0 and now.called == "aaaabbb"
    assert block(lambda: None, 1, now) > 0
    assert [calls_in(1.0, guess) for guess in (0.26, 3.0, 0.0)] == [4, 1, 10**9]


def test_rounds_start_with_another_run_and_slow_ones_sit_out() -> None:
    now, held = Hours(), []

    @contextmanager
    def around(place: int) -> Iterator[None]:
        held.append(place)
        yield

    runs = [now.run("a", 1.0), now.run("b", 2.0), now.run("c", 9.0)]
    found = interleaved(runs, (1.0, 2.0, 9.0), now, Turns(2.0, blocks=3, slow=5.0), around)
    assert found == [[1.0] * 3, [2.0] * 3, [9.0, None, 9.0]]
    # two calls of `a` fill a block, after one that warms the caches
    assert now.called == "aaa" + "b" + "c" + "b" + "aaa" + "c" + "aaa" + "b"
    assert held == [0, 1, 2, 1, 0, 2, 0, 1]
    assert [typical(times) for times in found] == [1.0, 2.0, 9.0]


def test_what_is_behind_after_a_few_calls_sits_out() -> None:
    now = Hours()
    runs = [now.run("a", 3.0), now.run("b", 1.0), now.run("c", 2.0), now.run("d", 4.0)]
    found = fastest(runs, now, Turns(1.0, blocks=1), 2, calls=2, always={3})
    assert found == {1: 1.0, 2: 2.0, 3: 4.0} and list(found) == [1, 2, 3]
    assert now.called == "aabbccdd" + "bcd"


def test_one_thread_is_timed_by_what_the_processor_spends() -> None:
    import time

    assert clock(1) is time.process_time and clock(2) is time.perf_counter
