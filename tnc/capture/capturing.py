"""Capture: find every weight of a model that could be rewritten, and how each is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from tnc.capture import links as neighbours
from tnc.capture.batches import run
from tnc.capture.fingerprint import fingerprint
from tnc.capture.graph import escaping, graphs, remembered
from tnc.capture.model import model_of
from tnc.capture.observe import observe
from tnc.capture.record import Recorder
from tnc.capture.sites import sort_out
from tnc.capture.trace import Trace, Traced
from tnc.capture.undisturbed import evaluating
from tnc.capture.weights import Weights
from tnc.errors import CaptureError


def capture(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    graph: bool = True,
) -> Trace:
    """Run the model once on an example, in evaluation mode, and return its trace.

    Sites are found by operation on that run; the graph comes from torch.export or torch.fx and may
    be left out (`graph=False`, seconds on large models). The model is as before afterwards. Raises
    CaptureError when the forward pass fails or the model has uninitialised parameters.

    >>> import torch
    >>> trace = capture(torch.nn.Sequential(torch.nn.Linear(4, 3)), (torch.ones(2, 4),))
    >>> [(site.name, str(site.signature), site.work.rows) for site in trace.sites]
    [('0.weight', '3 <- 4', 2)]
    """
    kwargs = dict(kwargs or {})
    model = model_of(model)
    _check(model)
    weights = Weights(model)
    recorder = Recorder(model, weights)
    with evaluating(model):
        output, calls = observe(model, weights, recorder, lambda: run(model, args, kwargs))
        returned = tuple(escaping(output))
        if not returned:
            raise CaptureError(
                f"the model returned {type(output).__name__}, which holds no tensor",
                where=type(model).__name__,
                hint="the outputs are what compilation keeps: let forward return them",
            )
        kept = [recorder.flow.value(t) for t in (*returned, *remembered(model))]
        del returned
        del output
    traced: tuple[Traced, ...] = ()
    if graph:
        with evaluating(model):
            traced = graphs(model, args, kwargs)
    sites, untraced = sort_out(model, weights, recorder)
    return Trace(
        sites=sites,
        untraced=untraced,
        links=neighbours.links(recorder.flow, kept, calls),
        shared_inputs=neighbours.shared_inputs(sites),
        calls=calls,
        dead=neighbours.dead(recorder.flow, kept, weights.parameters),
        fingerprint=fingerprint(model),
        graphs=traced,
    )


def _check(model: nn.Module) -> None:
    lazy = [n for n, p in model.named_parameters() if nn.parameter.is_lazy(p)]
    if lazy:
        raise CaptureError(
            f"{len(lazy)} parameters are not initialised yet, the first is {lazy[0]}",
            where=type(model).__name__,
            hint="run the model once on an example, then capture it",
        )
