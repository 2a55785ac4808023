"""SOAP: a frozen basis is Adam on the rotated parameter; refreshes rotate m and sort v."""

from __future__ import annotations

import torch

from tests.unit.optim.given import drawn, near, run, state
from tnc.optim.rules.soap import Soap

START, GRADIENTS = torch.zeros(5, 5, dtype=torch.float64), drawn(25, 5, 5)


def eigenvectors(gram: torch.Tensor) -> torch.Tensor:
    return torch.linalg.eigh(gram).eigenvectors.flip(-1)


def test_a_frozen_basis_is_adam_on_the_rotated_parameter() -> None:
    options = {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0}
    found, _ = run(lambda p: Soap(p, update_every=1000, **options), START, GRADIENTS)
    first = GRADIENTS[0]
    left, right = eigenvectors(first @ first.T), eigenvectors(first.T @ first)
    rotated = [left.T @ g @ right for g in GRADIENTS[1:]]
    # eps stands beside the root before it is debiased, as in the paper's code
    adam, _ = run(lambda p: torch.optim.Adam(p, **{**options, "eps": 0.0}), START, rotated)
    near(found, left @ adam @ right.T, 1e-6)


def test_steps_with_refreshes_are_the_formula() -> None:
    b1, b2, b, eps, lr, wd, every = 0.9, 0.95, 0.9, 1e-8, 0.1, 0.2, 4
    start = drawn(1, 5, 5, seed=2)[0]
    weight, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    grams = [torch.zeros(5, 5).double(), torch.zeros(5, 5).double()]
    bases: list[torch.Tensor] = []
    for count, g in enumerate(GRADIENTS):
        if count:
            turned = bases[0].T @ g @ bases[1]
            v = b2 * v + (1 - b2) * turned**2
            m = b1 * m + (1 - b1) * g  # in the parameter's own coordinates
            step = bases[0] @ ((bases[0].T @ m @ bases[1]) / (v.sqrt() + eps)) @ bases[1].T
            weight = weight - lr * (1 - b2**count) ** 0.5 / (1 - b1**count) * step
            weight = (1 - lr * wd) * weight
        grams = [b * grams[0] + (1 - b) * g @ g.T, b * grams[1] + (1 - b) * g.T @ g]
        if count == 0:
            bases = [eigenvectors(gram) for gram in grams]
        elif count % every == 0:
            for k, gram in enumerate(grams):
                values = torch.diag(bases[k].T @ gram @ bases[k])
                order = values.argsort(descending=True)
                v = v[order] if k == 0 else v[:, order]
                bases[k] = torch.linalg.qr(gram @ bases[k][:, order]).Q
    found, rule = run(
        lambda p: Soap(
            p, lr=lr, betas=(b1, b2), beta=b, eps=eps, weight_decay=wd, update_every=every
        ),
        start,
        GRADIENTS,
    )
    near(found, weight, 1e-8)
    read = rule.read(state(rule), found, rule.param_groups[0])
    near(read["exp_avg"], m, 1e-12)


def test_bases_are_orthonormal_and_v_keeps_its_sum_when_read() -> None:
    _, rule = run(lambda p: Soap(p, update_every=3), START, GRADIENTS)
    held = state(rule)
    for mode in (0, 1):
        basis = held[f"basis_{mode}"]
        near(basis.T @ basis, torch.eye(len(basis)).double(), 1e-13)
    read = rule.read(held, START, rule.param_groups[0])
    near(read["exp_avg_sq"].sum(), held["exp_avg_sq"].sum(), 1e-12)


def test_what_is_read_and_written_back_has_the_same_momentum_and_sum() -> None:
    _, rule = run(lambda p: Soap(p, update_every=3), START, GRADIENTS)
    group = rule.param_groups[0]
    read = rule.read(state(rule), START, group)
    for moved in (read, {k: v for k, v in read.items() if not k.startswith("gram")}):
        written = rule.write(moved, START, group)
        again = rule.read(written, START, group)
        near(again["exp_avg"], read["exp_avg"], 1e-12)
        near(again["exp_avg_sq"].sum(), read["exp_avg_sq"].sum(), 1e-12)
    near(again["exp_avg_sq"], read["exp_avg_sq"], 1e-12)  # a basis of units: entry by entry


def test_long_axes_vectors_and_ones_are_not_rotated() -> None:
    for shape, options, slots in [
        ((5,), {}, []),
        ((5,), {"vectors": True}, ["gram_0"]),
        ((4, 20), {"largest": 10}, ["gram_0"]),
        ((1, 4, 3), {}, ["gram_0", "gram_1"]),
    ]:
        _, rule = run(
            lambda p, o=options: Soap(p, **o), torch.zeros(shape).double(), drawn(3, *shape)
        )
        assert [slot for slot in state(rule) if slot.startswith("gram")] == slots


def test_without_rotation_it_is_adam_a_step_late() -> None:
    gradients, start = drawn(9, 7), torch.zeros(7, dtype=torch.float64)
    options = {"lr": 0.1, "betas": (0.9, 0.95), "weight_decay": 0.0}
    found, _ = run(lambda p: Soap(p, eps=0.0, **options), start, gradients)
    adam, _ = run(lambda p: torch.optim.Adam(p, eps=0.0, **options), start, gradients[1:])
    near(found, adam, 1e-12)
