"""Laws of every adaptation method under torch.compile and torch.export."""

from __future__ import annotations

import pytest
import torch

from tests.laws.adapters_data import eventful
from tests.laws.test_adapters import made, moved
from tests.laws.test_adapters_training import batches, every, optimizer_of, value_of, values
from tnc.adapters import Adapters
from tnc.adapters.following import Followed, follow


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


@every
def test_exports(method: str) -> None:
    """For any number of rows; the exported program needs nothing of tnc."""
    _, x, adapters = made(eventful(method), "linear")
    moved(adapters)
    y = adapters.model(x)
    shapes = ({0: torch.export.Dim("rows", min=2)},)
    program = torch.export.export(adapters.model, (x,), dynamic_shapes=shapes).module()
    assert torch.allclose(program(x), y, rtol=1e-10, atol=1e-11)
    assert torch.allclose(program(torch.cat([x, x])), torch.cat([y, y]), rtol=1e-10, atol=1e-11)


@every
def test_compiled_in_one_graph(method: str) -> None:
    _, x, adapters = made(eventful(method), "linear")
    moved(adapters)
    y = adapters.model(x)
    model = torch.compile(adapters.model, backend="eager", fullgraph=True)
    assert torch.allclose(model(x), y, rtol=1e-10, atol=1e-11)


@every
def test_compiled_training_is_training(method: str) -> None:
    """Events, changed ranks and watched gradients included: the graph is traced anew."""
    found: list[tuple[Adapters, Followed]] = []
    for compiles in (False, True):
        _, x, adapters = made(eventful(method), "linear")
        optimizer = optimizer_of(adapters)
        followed = follow(adapters, optimizer)
        adapters.model.train()
        model = torch.compile(adapters.model, backend="eager") if compiles else adapters.model
        data = batches(x)
        for _ in range(4):
            inputs, target = next(data)
            optimizer.zero_grad()
            value_of(model(inputs), target).backward()
            optimizer.step()
        found.append((adapters, followed))
    plain, compiled = (values(adapters) for adapters, _ in found)
    assert plain.keys() == compiled.keys()
    assert all(torch.allclose(plain[n], compiled[n], rtol=1e-8, atol=1e-9) for n in plain)
    assert found[0][1].events == found[1][1].events
    assert found[1][1].steps == 4
