"""Grass: lines that are chosen are Adam's, the others stay, and what is chosen again is kept."""

from __future__ import annotations

import pytest
import torch

from tests.unit.optim.training import gap, gradients, train, weight
from tnc.errors import BindError
from tnc.optim.rules.grass import Grass


def test_all_lines_are_adamw() -> None:
    given = gradients(9, 6, count=25)
    one, two = weight(9, 6), weight(9, 6)
    ours = train(Grass([one], lr=0.01, rank=6, update_every=3, weight_decay=0.1), one, given)
    assert gap(ours, train(torch.optim.AdamW([two], lr=0.01, weight_decay=0.1), two, given)) < 1e-12


def test_chosen_lines_are_adam_and_the_others_stay() -> None:
    given = gradients(6, 9, count=25)
    one, two = weight(6, 9), weight(6, 9)
    rule = Grass([one], lr=0.01, rank=2, update_every=1000)
    ours = train(rule, one, given)
    chosen = rule.state[one]["index"].long()
    assert set(chosen.tolist()) == set(given[0].norm(dim=1).topk(2).indices.tolist())
    adam = train(torch.optim.Adam([two], lr=0.01), two, given)
    assert gap([x[chosen] for x in ours], [x[chosen] for x in adam]) < 1e-12
    rest = [row for row in range(6) if row not in chosen.tolist()]
    assert gap(ours[-1][rest], weight(6, 9)[rest].detach()) == 0


def test_moments_of_a_line_that_is_chosen_again_go_on_exactly() -> None:
    """Line 0 is always chosen, so that it is Adam's at every refresh."""
    given = gradients(9, 6, count=25)
    for gradient in given:
        gradient[:, 0] *= 100
    one, two = weight(9, 6), weight(9, 6)
    rule = Grass([one], lr=0.01, rank=3, update_every=2)
    choices = set()
    ours = []
    for gradient in given:
        ours += train(rule, one, [gradient])
        choices.add(tuple(rule.state[one]["index"].tolist()))
    assert len(choices) > 3
    adam = torch.optim.Adam([two], lr=0.01)
    assert gap([x[:, 0] for x in ours], [x[:, 0] for x in train(adam, two, given)]) < 1e-12
    place = rule.state[one]["index"].tolist().index(0)
    assert gap(rule.state[one]["exp_avg_sq"][:, place], adam.state[two]["exp_avg_sq"][:, 0]) < 1e-10
    assert int(rule.state[one]["age"][place]) == 25


def test_no_line_moves_by_more_than_lr_at_its_first_step() -> None:
    w = weight(9, 6)
    rule = Grass([w], lr=0.01, rank=2, update_every=1, choice="uniform", betas=(0.0, 0.999))
    before = w.detach().clone()
    for gradient in gradients(9, 6, count=100):
        train(rule, w, [gradient])
        new = rule.state[w]["index"].long()[rule.state[w]["age"] == 1]
        assert float((w.detach() - before)[:, new].abs().max() if len(new) else 0.0) < 0.01 + 1e-12
        before = w.detach().clone()


@pytest.mark.parametrize("choice", ["norm", "uniform"])
def test_drawn_lines_differ_between_refreshes(choice: str) -> None:
    w = weight(9, 6)
    rule = Grass([w], rank=2, update_every=1, choice=choice)
    seen = set()
    for gradient in gradients(9, 6, count=1) * 12:
        train(rule, w, [gradient])
        seen.add(tuple(rule.state[w]["index"].tolist()))
    assert len(seen) > 2


def test_lines_are_drawn_by_their_norms() -> None:
    w = weight(9, 6)
    gradient = torch.zeros(9, 6, dtype=torch.float64)
    gradient[:, 2], gradient[:, 5] = 1.0, 2.0
    rule = Grass([w], rank=2, update_every=1, choice="norm")
    for _ in range(5):
        train(rule, w, [gradient])
        assert rule.state[w]["index"].tolist() == [2, 5]


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(BindError, match="choice is 'best'"):
        Grass([weight(4, 4)], choice="best")
