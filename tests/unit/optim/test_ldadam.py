"""LDAdam: Adam where bases permute, nothing lost by error feedback, exact resuming."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from tests.unit.optim.stepping import apart, gradients, parameter, run
from tnc.optim.kinds import Group
from tnc.optim.rules.ldadam import LdAdam


class Permuting(LdAdam):
    """Whole subspaces whose bases are permutations with signs, another at every step."""

    def subspace(self, matrix: Tensor, mean: Tensor, projector: Tensor, group: Group) -> Tensor:
        size = len(projector)
        signs = torch.randint(0, 2, (size, 1)) * 2.0 - 1
        return (torch.eye(size)[torch.randperm(size)] * signs).to(matrix)


@pytest.mark.parametrize("feedback", [False, True])
def test_permuted_bases_are_adam(feedback: bool) -> None:
    """A whole basis that permutes at every step loses nothing: 2e-15 was measured."""
    one, two, given = parameter((9, 6)), parameter((9, 6)), gradients((9, 6), 30)
    rule = Permuting([one], lr=0.1, rank=6, betas=(0.9, 0.9), error_feedback=feedback)
    run(rule, one, [torch.zeros(9, 6)])  # the first basis is that of zeros: unit vectors
    adam = torch.optim.Adam([two], lr=0.1, betas=(0.9, 0.9))
    run(adam, two, [torch.zeros(9, 6)])
    assert apart(run(rule, one, given), run(adam, two, given)) < 1e-12


@pytest.mark.parametrize("shape", [(9, 6), (6, 9)])
def test_nothing_is_lost(shape: tuple[int, int]) -> None:
    """`m_new P + (1 - b1) E = b1 m P_old + (1 - b1) (G + E_old)`."""
    weight, first = parameter(shape), 0.908
    rule = LdAdam([weight], lr=0.01, rank=3)
    whole = torch.zeros(shape, dtype=torch.float64)
    error = whole.clone()
    for gradient in gradients(shape, 12):
        expected = first * whole + (1 - first) * (gradient + error)
        run(rule, weight, [gradient])
        state = rule.state[weight]
        mean, projector = state["exp_avg"], state["projector"]
        whole = mean @ projector if state["right"] else projector.mT @ mean
        error = state["error"].clone()
        assert apart(whole + (1 - first) * error, expected) < 1e-13
        assert apart(projector @ projector.mT, torch.eye(3)) < 1e-13


@pytest.mark.parametrize("shape", [(9, 6), (6, 9)])
def test_it_is_the_formula(shape: tuple[int, int]) -> None:
    weight, given = parameter(shape), gradients(shape, 12)
    tall = shape[0] >= shape[1]
    w = weight.detach().clone() if tall else weight.detach().clone().mT
    b1, b2, share = 0.908, 0.99, 0.7
    error, m, v, p = torch.zeros_like(w), 0.0, 0.0, torch.zeros(3, w.shape[1])
    for t, gradient in enumerate(given, 1):
        a = (gradient if tall else gradient.mT) + error
        if t == 1:
            p = torch.linalg.svd(a)[2][:3]
            lost = 0.0
        else:
            mh, vh = m / (1 - b1 ** (t - 1)), v / (1 - b2 ** (t - 1))
            mixed = share * mh @ p + (1 - share) * a
            new = torch.linalg.qr((p @ mixed.mT @ mixed).mT)[0].mT
            r = new @ p.mT
            lost = b1 / (1 - b1) * (m @ p - m @ r.mT @ new)
            vh = ((vh - mh**2) @ (r * r).mT + (mh @ r.mT) ** 2).abs()
            m, v, p = (1 - b1 ** (t - 1)) * mh @ r.mT, (1 - b2 ** (t - 1)) * vh, new
        g = a @ p.mT
        error = a - g @ p + lost
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        w = w - 0.05 * (m / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + 1e-8)) @ p
    found = run(LdAdam([weight], lr=0.05, rank=3, mixing=share), weight, given)
    assert apart(found, w if tall else w.mT) < 1e-11


def test_it_resumes_exactly() -> None:
    """The official counters are attributes: a resumed run starts from a projector of zeros."""
    weight, given = parameter((9, 6)), gradients((9, 6), 12)
    rule = LdAdam([weight], lr=0.05, rank=3)
    run(rule, weight, given[:6])
    again = torch.nn.Parameter(weight.detach().clone())
    other = LdAdam([again], lr=0.05, rank=3)
    other.load_state_dict(copy.deepcopy(rule.state_dict()))
    assert torch.equal(run(other, again, given[6:]), run(rule, weight, given[6:]))
