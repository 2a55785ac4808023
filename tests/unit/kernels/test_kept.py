"""What is made of cores is made once, and anew where a core changes, however it is written to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tnc.kernels.kept import SMALL, Kept, Shelf, apart

Core = nn.Parameter


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Core:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return Core(made.to(dtype), requires_grad=False)


def in_place(core: Core) -> None:
    core.mul_(2)


def through_data(core: Core) -> None:
    core.data.mul_(2)


def copied_through_data(core: Core) -> None:
    core.data.copy_(core.data + 1)


def one_entry_through_data(core: Core) -> None:
    core.data[(0,) * core.dim()] += 1


def other_memory(core: Core) -> None:
    core.data = core.data.clone()


def turned_in_its_memory(core: Core) -> None:
    core.data = core.data.as_strided(core.shape, core.stride()[::-1])


CHANGES: tuple[Callable[[Core], None], ...] = (
    in_place,
    through_data,
    copied_through_data,
    one_entry_through_data,
    other_memory,
    turned_in_its_memory,
)
CORES: dict[str, Callable[[], Core]] = {
    "small": lambda: drawn(6, 6),
    "odd": lambda: drawn(3, 3),
    "large": lambda: drawn(*[int((SMALL // 2) ** 0.5)] * 2),
    "bfloat16": lambda: drawn(3, 3, dtype=torch.bfloat16),
    "float64": lambda: drawn(5, 5, dtype=torch.float64),
    "complex": lambda: drawn(5, 5, dtype=torch.complex128),
    "strided": lambda: Core(drawn(6, 12)[:, ::2], requires_grad=False),
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("kind", CORES)
def test_every_write_to_a_copied_core_is_seen(kind: str, change: Callable[[Core], None]) -> None:
    cores = [CORES[kind](), drawn(2)]
    kept = Kept.of(cores[0] + 1, cores, cores)
    assert kept.holds(cores)
    change(cores[0])
    assert not kept.holds(cores)


def test_a_view_needs_no_watch_and_memory_in_common_is_no_view() -> None:
    flat = torch.randn(20)
    cores = [Core(flat[:10], requires_grad=False), Core(flat[10:], requires_grad=False)]
    view, copy = cores[0].view(2, 5), cores[1].clone()
    assert not apart(view, cores[:1]) and apart(copy, cores[1:]) == cores[1:]
    kept = Kept.of((view, copy), cores, [*apart(view, cores[:1]), *apart(copy, cores[1:])])
    cores[0].data.mul_(2)
    assert kept.holds(cores) and torch.equal(kept.made[0].view(-1), cores[0])
    cores[1].data.mul_(2)
    assert not kept.holds(cores)


def test_a_shelf_makes_once_and_holds_so_many() -> None:
    shelf: Shelf[Tensor] = Shelf(2)
    cores, calls = [drawn(4)], []

    def ask(how: str, of: list[Core] = cores) -> Tensor:
        def make() -> Tensor:
            calls.append(how)
            return of[0] + 1

        return shelf.take(how, of, make, lambda made: apart(made, of))

    assert ask("a") is ask("a") and calls == ["a"]
    for how in "bcba":
        ask(how)
    assert calls == ["a", "b", "c", "a"] and len(shelf) == 2
    cores[0].data.zero_()
    assert torch.equal(ask("a"), torch.ones(4))
    shelf.forget()
    assert not len(shelf)
    with torch.inference_mode():
        unwatched = [Core(torch.ones(4), requires_grad=False)]
        ask("d", unwatched)
        unwatched[0].zero_()
        assert torch.equal(ask("d", unwatched), torch.ones(4))
    assert not len(shelf)
