"""Compiled models of the zoo: each made once a process, shared by tests that do not edit them."""

from __future__ import annotations

from functools import cache
from typing import Any

import tnc
from tests.zoo import case
from tnc.api import Compiled
from tnc.decide.spec import Spec

HALF: list[dict[str, Any]] = [
    {"match": "*", "op": "linear", "structure": "low-rank", "keep": 0.5, "min_params": 60},
    {"match": "*", "op": "conv", "structure": "tucker", "keep": 0.5},
    {"match": "*", "op": "embedding", "structure": "low-rank", "keep": 0.5, "min_params": 60},
]


def spec(*rules: dict[str, Any], **more: Any) -> Spec:
    """A spec of rules that may match nothing; half of every weight where none is given."""
    made = [{"allow_empty": True, **rule} for rule in rules or HALF]
    return Spec(version=1, rules=made, **{"metric": "none", **more})


@cache
def halved(name: str) -> Compiled:
    """A case of the zoo with every weight at half of its parameters; not to be edited."""
    example = case(name)
    return tnc.compile(example.build(), spec(), example=example.inputs())
