"""The choice among allotments: on batches its fits have not seen, the same on other machines."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import tnc
from tests.compiled import spec
from tests.elsewhere import carried, elsewhere
from tnc.capture import Measurements, measure
from tnc.sources import evaluations


class Layer(nn.Module):
    """One attention and one hidden layer, residual."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.up, self.down = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(scaled_dot_product_attention(*self.qkv(x).chunk(3, -1)))
        return x + self.down(torch.relu(self.up(x)))


class Tiny(nn.Module):
    """A transformer of two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(50, 24)
        self.layers = nn.Sequential(Layer(24), Layer(24))

    def forward(self, ids: Tensor) -> Tensor:
        return self.layers(self.table(ids)).mean(1)


def batch(seed: int) -> tuple[Tensor]:
    return (torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(seed)),)


RULE = {"match": "layers.*", "op": "linear", "structure": "low-rank"}
BATCHES = tuple(map(batch, range(8)))
OUTPUT = evaluations.get("output")()
DATA = {"calibration": BATCHES, "evaluation": OUTPUT}
WISH = spec(
    RULE,
    budget={"scope": "layers.*", "params": 0.5},
    metric="auto",
    allocate="measured",
    round_to=1,
)


def measured(batches: tuple[object, ...], **options: object) -> Measurements:
    model = Tiny()
    sites = tnc.trace(model, *BATCHES[0]).sites
    return measure(model, sites, batches, gradients=OUTPUT.probe, **options)


def same(first: Measurements, second: Measurements) -> bool:
    return all(
        torch.equal(getattr(first.of(name), part), getattr(second.of(name), part))
        for name in first.sites
        for part in ("moment", "mean", "outputs")
        if getattr(first.of(name), part) is not None
    )


def test_figures_without_the_held_back_batches_come_beside_the_same_whole() -> None:
    apart, whole = measured(BATCHES, apart=True), measured(BATCHES)
    kept = measured(tuple(b for k, b in enumerate(BATCHES) if k not in apart.held))
    assert apart.held == (2, 6) and whole.without is None and apart.without is not None
    assert same(apart, whole) and same(apart.without, kept) and not same(apart, kept)
    assert apart.without.samples == kept.samples < apart.samples


def test_a_choice_on_held_back_batches_is_told_and_its_plan_replays_bit_by_bit() -> None:
    model = Tiny()
    made = tnc.compile(model, WISH, **DATA)
    assert any("2 calibration batches held back from its fits" in n for n in made.plan.notes)
    again = tnc.compile(model, WISH, plan=made.plan, **DATA).model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in made.model.state_dict().items())


def test_too_few_batches_to_hold_any_back_are_told() -> None:
    plan = tnc.plan(Tiny(), WISH, calibration=BATCHES[:4], evaluation=OUTPUT)
    assert any("too few to hold back" in note for note in plan.notes)


def test_the_choice_is_the_same_with_other_threads_and_hash_seeds() -> None:
    told = elsewhere(f"{__name__}:chosen")
    assert told == carried(chosen()) and "held back" in str(told)


def chosen() -> tuple[str, ...]:
    """Return the digest and the notes of a plan that was chosen by trials."""
    plan = tnc.plan(Tiny(), WISH, **DATA)
    return plan.digest, *plan.notes
