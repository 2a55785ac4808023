"""Laws of every adaptation method in training: resuming, scalers, accumulation, many optimizers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.laws.adapters_data import VARIANTS, eventful
from tests.laws.test_adapters import made
from tnc.adapters import Adapters, storing
from tnc.adapters.following import Followed, acts, follow
from tnc.adapters.method import methods
from tnc.errors import BindError

STEPS = 8
every = pytest.mark.parametrize("method", sorted((*methods.all(), *VARIANTS)))


def optimizer_of(adapters: Adapters, kind: str = "") -> torch.optim.Optimizer:
    """Return Adam, or SGD with momentum where asked, or where the method takes SGD alone."""
    return built(list(adapters.parameters()), adapters, kind)


def built(
    parameters: list[torch.nn.Parameter], adapters: Adapters, kind: str = ""
) -> torch.optim.Optimizer:
    adam = torch.optim.Adam(parameters, lr=0.02)
    delta = next(iter(adapters.deltas().values()))
    if kind == "sgd" or delta.method.unfit(adam):
        return torch.optim.SGD(parameters, lr=0.02)
    return adam


def batches(x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    while True:
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
        target = torch.randn(len(x), 5, generator=generator, dtype=torch.float64).to(x)
        yield x + noise, target


def value_of(y: Tensor, target: Tensor) -> Tensor:
    return ((y - target) ** 2).mean()


def train(
    adapters: Adapters,
    optimizer: torch.optim.Optimizer,
    data: Iterator[tuple[Tensor, Tensor]],
    n: int,
) -> None:
    adapters.model.train()
    for _ in range(n):
        x, target = next(data)
        optimizer.zero_grad()
        value_of(adapters.model(x), target).backward()
        optimizer.step()


def values(adapters: Adapters) -> dict[str, Tensor]:
    found = {name: p.detach().clone() for name, p in adapters.named_parameters()}
    for path, delta in adapters.deltas().items():
        found |= {f"{path}/{name}": delta.constant(name).clone() for name in delta.constants}
        found |= {f"{path}/{name}": core.detach().clone() for name, core in delta.cores.items()}
    return found


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def close(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.allclose(first[n], second[n], rtol=1e-7, atol=1e-9) for n in first
    )


@every
@pytest.mark.parametrize("case", ["linear", "tied"])
def test_resumes_bit_for_bit(method: str, case: str, tmp_path: Path) -> None:
    """Adapters from a folder, optimizer and hooks from `torch.load(weights_only=True)`."""
    for stop in (4, 5):  # once just before an event is due, once with none in sight
        base, x, adapters = made(eventful(method), case, torch.float32)
        optimizer = optimizer_of(adapters)
        followed = follow(adapters, optimizer, seed=11)
        data = iter_of(case, x)
        train(adapters, optimizer, data, stop)
        storing.save(adapters, tmp_path / f"a{stop}")
        saved = {"optimizer": optimizer.state_dict(), "followed": followed.state_dict()}
        torch.save(saved, tmp_path / "state.pt")
        train(adapters, optimizer, data, STEPS - stop)

        again = storing.load(base, tmp_path / f"a{stop}")
        resumed = optimizer_of(again)
        hooks = follow(again, resumed)
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        resumed.load_state_dict(state["optimizer"])
        hooks.load_state_dict(state["followed"])
        data = iter_of(case, x)
        for _ in range(stop):
            next(data)
        train(again, resumed, data, STEPS - stop)
        assert same(values(adapters), values(again))
        assert hooks.events == followed.events
        assert hooks.steps == followed.steps == STEPS


def iter_of(case: str, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    if case == "linear":
        return batches(x)
    generator = torch.Generator().manual_seed(3)

    def drawn() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield (
                torch.randint(0, 11, x.shape, generator=generator),
                torch.randn(*x.shape, 11, generator=generator),
            )

    return drawn()


@every
def test_keeps_the_memory_that_it_tells(method: str) -> None:
    _, x, adapters = made(eventful(method), "linear")
    optimizer = optimizer_of(adapters)
    follow(adapters, optimizer)
    train(adapters, optimizer, batches(x), 2)
    for delta in adapters.deltas().values():
        held = sum(v.numel() * v.element_size() for v in delta.memory.values())
        assert held == delta.method.memory_bytes(delta.site)


@every
def test_accumulated_passes_are_one_step(method: str) -> None:
    _, x, first = made(eventful(method), "linear")
    _, _, second = made(eventful(method), "linear")
    found: list[Followed] = []
    for adapters, parts in ((first, 1), (second, 3)):
        optimizer = optimizer_of(adapters, "sgd")
        found.append(follow(adapters, optimizer))
        adapters.model.train()
        data = batches(x)
        for _ in range(4):
            inputs, target = next(data)
            optimizer.zero_grad()
            for part, wanted in zip(inputs.chunk(parts), target.chunk(parts)):
                (value_of(adapters.model(part), wanted) / parts).backward()
            optimizer.step()
    assert close(values(first), values(second))
    assert found[0].steps == found[1].steps == 4
    assert [e[:2] for e in found[0].events] == [e[:2] for e in found[1].events]


@every
@pytest.mark.parametrize("backwards", [False, True])
def test_an_optimizer_for_every_parameter_is_one_for_all(method: str, backwards: bool) -> None:
    """Hooks run once a step, in whatever order the optimizers step."""
    _, x, first = made(eventful(method), "linear")
    _, _, second = made(eventful(method), "linear")
    one = optimizer_of(first)
    whole = follow(first, one)
    several = [built([p], second) for p in second.parameters()]
    parted = follow(second, *several)
    second.model.train()
    data, same_data = batches(x), batches(x)
    for _ in range(4):
        train(first, one, data, 1)
        inputs, target = next(same_data)
        for optimizer in several:
            optimizer.zero_grad()
        value_of(second.model(inputs), target).backward()
        for optimizer in several[:: -1 if backwards else 1]:
            optimizer.step()
    assert close(values(first), values(second))
    assert sorted(parted.events) == sorted(whole.events)
    assert parted.steps == whole.steps == 4


@every
def test_steps_within_the_backward_pass(method: str) -> None:
    """As steps after it; where a hook needs all gradients at once, an error and no half a hook."""
    _, x, first = made(eventful(method), "linear")
    _, _, second = made(eventful(method), "linear")
    one = optimizer_of(first)
    whole = follow(first, one)
    several = {p: built([p], second) for p in second.parameters()}
    parted = follow(second, *several.values())

    def stepped(parameter: torch.nn.Parameter) -> None:
        optimizer = several.get(parameter) or built([parameter], second)
        optimizer.step()
        parameter.grad = None

    for parameter in several:
        parameter.register_post_accumulate_grad_hook(stepped)
    second.model.train()
    delta = next(iter(second.deltas().values()))
    needs = any(acts(delta.method, hook) for hook in ("gradients_", "penalty"))
    data, same_data = batches(x), batches(x)
    for _ in range(2):
        train(first, one, data, 1)
        inputs, target = next(same_data)
        value = value_of(second.model(inputs), target)
        if needs and len(delta.trained) > 1:
            with pytest.raises(BindError, match="has the gradient that a hook needs"):
                value.backward()
            return
        value.backward()
    assert close(values(first), values(second))
    assert parted.steps == whole.steps == 2


@every
def test_a_scaler_skips_steps_with_their_hooks(method: str) -> None:
    """With scaled gradients as without; a step whose gradients are infinite does nothing."""
    _, x, first = made(eventful(method), "linear")
    _, _, second = made(eventful(method), "linear")
    one, other = optimizer_of(first), optimizer_of(second)
    plain, scaled = follow(first, one), follow(second, other)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    first.model.train()
    second.model.train()
    data, same_data = batches(x), batches(x)
    for number in range(5):
        inputs, target = next(same_data)
        other.zero_grad()
        bad = number == 2
        scaler.scale(value_of(second.model(inputs), target)).backward()
        if bad:
            next(second.parameters()).grad.fill_(torch.inf)
            before, steps = values(second), scaled.steps
        scaler.step(other)
        scaler.update()
        if bad:
            assert same(before, values(second))
            assert scaled.steps == steps
            next(data)
        else:
            train(first, one, data, 1)
    assert scaled.steps == plain.steps == 4
    if method != "loqt":  # its watched gradient also holds what the skipped pass brought
        assert close(values(first), values(second))
        assert scaled.events == plain.events


@every
def test_checkpointed_passes_have_the_same_gradients(method: str) -> None:
    _, x, adapters = made(eventful(method), "linear")
    optimizer = optimizer_of(adapters)
    follow(adapters, optimizer)
    train(adapters, optimizer, batches(x), 2)
    adapters.model.train()
    found = []
    for recompute in (False, True):
        optimizer.zero_grad()
        model = adapters.model
        y = checkpoint(model, x, use_reentrant=False) if recompute else model(x)
        (y**2).mean().backward()
        found.append([p.grad.clone() for p in adapters.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found))


@every
def test_state_is_plain(method: str) -> None:
    _, x, adapters = made(eventful(method), "linear")
    optimizer = optimizer_of(adapters)
    followed = follow(adapters, optimizer)
    train(adapters, optimizer, batches(x), 3)
    file = io.BytesIO()
    torch.save(followed.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert [tuple(event) for event in state["events"]] == followed.events
    if method in ("fedsvd", "loqt", "sara", "sora"):
        assert followed.events
