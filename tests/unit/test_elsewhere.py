"""The process of `tests.elsewhere` is another one indeed, and tells what goes wrong."""

from __future__ import annotations

import pytest

from tests.elsewhere import carried, elsewhere, seed


def test_it_has_another_hash_seed_and_two_threads() -> None:
    there = elsewhere("tests.elsewhere:seed")
    assert there[0] != carried(seed())[0] and there[1] == 2
    assert there == elsewhere("tests.elsewhere:seed")


def test_what_goes_wrong_there_is_told() -> None:
    with pytest.raises(AssertionError, match="no_such_function"):
        elsewhere("tests.elsewhere:no_such_function")
