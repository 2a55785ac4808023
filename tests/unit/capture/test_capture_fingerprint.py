"""Fingerprints: of the architecture, not of values, seeds, modes or processes."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from tests import zoo
from tnc.capture import capture, fingerprint

PROGRAM = """
from tests import zoo
from tnc.capture import capture
case = zoo.case("shared")
args, kwargs = case.inputs()
trace = capture(case.build(), args, kwargs, graph=False)
print(trace.fingerprint, trace.sites, trace.links, trace.shared_inputs, trace.untraced)
"""


def test_equal_under_every_hash_seed() -> None:
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONHASHSEED": "123"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    here = io.StringIO()
    with contextlib.redirect_stdout(here):
        exec(PROGRAM, {})  # under the hash seed of this process
    assert told == here.getvalue() and told


def test_independent_of_values_and_modes() -> None:
    for case in zoo.CASES:
        assert fingerprint(case.build(0)) == fingerprint(case.build(1).train())


def test_different_for_shapes_dtypes_ties_and_classes() -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        return model

    models = [
        nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)),
        nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 4)),
        nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, bias=False)),
        nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).to(torch.bfloat16),
        nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.ReLU()),
        tied(),
    ]
    assert len({fingerprint(model) for model in models}) == len(models)


def test_traces_are_equal_from_run_to_run() -> None:
    for case in map(zoo.case, ("branching", "convolutions", "functional", "seq2seq", "shared")):
        args, kwargs = case.inputs()
        one, two = (capture(case.build(), args, kwargs, graph=False) for _ in range(2))
        assert (one.sites, one.links, one.untraced) == (two.sites, two.links, two.untraced)
