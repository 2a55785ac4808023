"""Fingerprints: of the architecture, not of values, seeds, modes or processes."""

from __future__ import annotations

import torch
from torch import nn

from tests import zoo
from tests.elsewhere import elsewhere
from tnc.capture import capture, fingerprint


def traced() -> str:
    """Return all that a trace says of a model."""
    case = zoo.case("shared")
    args, kwargs = case.inputs()
    trace = capture(case.build(), args, kwargs, graph=False)
    found = (trace.fingerprint, trace.sites, trace.links, trace.shared_inputs, trace.untraced)
    return " ".join(map(str, found))


def test_equal_under_every_hash_seed() -> None:
    told = elsewhere(f"{__name__}:traced")
    assert told == traced() and told


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
