"""What each schedule promises of itself, and what is refused."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from scipy.optimize import minimize
from torch import nn

import tnc
from tests.laws.test_rank_adaptation import LAYERS, OPTIMIZERS, data, layer, model, train
from tnc.decide.spec_problems import SpecProblems
from tnc.derive.cut import cut
from tnc.errors import BindError, FitError, PlanError
from tnc.net import Network, Structure, parse_network
from tnc.nn import LinearView, StructuredLayer
from tnc.nn.dense import rebuild
from tnc.optim import move_
from tnc.rank_adaptation.proximal import envelope_factors, lasso_factors
from tnc.rank_adaptation.retraction import retract
from tnc.rank_adaptation.schedules.trp import nuclear_subgradient
from tnc.rank_adaptation.star import in_gauge, matrix_of, star_of
from tnc.rank_adaptation.tree import unfold

DOUBLE = torch.float64


def sgd(net, rate=0.05, **options):
    return torch.optim.SGD(net.parameters(), lr=rate, **options)


def dense_of(term: Network, cores) -> torch.Tensor:
    sizes = dict(term.size)
    for core in term.equation.cores:
        sizes.update(zip(core.indices, cores[core.name].shape))
    return rebuild(Structure.of(Network.of(term.equation, sizes)), cores)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("tolerance", [0.0, 0.05, 0.3, 0.7])
def test_dlrt_truncates_within_its_tolerance_and_is_exact_at_zero(kind, tolerance) -> None:
    made = layer(kind)
    term = made.structure.terms[0]
    star = star_of(term)
    assert star is not None
    cores = in_gauge(star, {n: c.detach() for n, c in made.cores.items()})
    generator = torch.Generator().manual_seed(3)
    moved = {
        n: 0.1 * torch.randn(c.shape, generator=generator, dtype=DOUBLE) for n, c in cores.items()
    }
    bounds = dict.fromkeys(star.bonds, (1, 1 << 30))
    found = retract(star, cores, moved, tolerance, bounds)
    exact = dense_of(term, cores | {star.root: cores[star.root] + moved[star.root]})
    for leaf in star.leaves:  # every change of K = U S, in the place of its leaf and normed rows
        norms = unfold(cores[star.root], leaf.root_axis).norm(dim=1)
        basis, change = (matrix_of(part[leaf.core], leaf.axis) for part in (cores, moved))
        outside = (change - basis @ (basis.T @ change)) / norms
        shape = [n for k, n in enumerate(cores[leaf.core].shape) if k != leaf.axis]
        tangent = outside.T.reshape(-1, *shape).movedim(0, leaf.axis)
        exact = exact + dense_of(term, cores | {leaf.core: tangent})
    error = (dense_of(term, found.cores) - exact).norm() / exact.norm()
    assert error <= tolerance + 1e-10
    for leaf in star.leaves:
        matrix = matrix_of(found.cores[leaf.core], leaf.axis)
        assert torch.allclose(matrix.T @ matrix, torch.eye(matrix.shape[1]).to(DOUBLE), atol=1e-10)


def steps_to_fit(schedule: str | None, small: float) -> float:
    """Return the loss after 40 steps towards a weight of rank 4, from cores nearly of rank 1."""
    generator = torch.Generator().manual_seed(0)
    u, v = (
        torch.linalg.qr(torch.randn(20, 4, generator=generator, dtype=DOUBLE)).Q for _ in range(2)
    )
    goal_u, goal_v = (
        torch.linalg.qr(torch.randn(20, 4, generator=generator, dtype=DOUBLE)).Q for _ in range(2)
    )
    spectrum = torch.tensor([1.0, small, small, small], dtype=DOUBLE)
    structure = Structure.of(parse_network("B[o r] A[r i] : i -> o | i=20 o=20 r=4"))
    cores = {"B": u * spectrum.sqrt(), "A": spectrum.sqrt()[:, None] * v.T}
    made = StructuredLayer(structure, LinearView(), cores)
    optimizer = sgd(made, 0.3)
    step = tnc.adapt_ranks(made, schedule, optimizer).step if schedule else optimizer.step
    for _ in range(40):
        optimizer.zero_grad()
        loss = 0.5 * (made.weight - goal_u @ goal_v.T).square().sum()
        loss.backward()
        step()
    return loss.item()


def test_dlrt_does_not_depend_on_small_singular_values_and_descent_does() -> None:
    losses = [steps_to_fit("dlrt{tolerance=0.001}", small) for small in (1e-1, 1e-4, 1e-8)]
    assert max(losses) < 1e-3
    assert steps_to_fit(None, 1e-8) > 0.5


def test_cond_lr_bounds_the_condition_number() -> None:
    net = model("low-rank")
    ranks = tnc.adapt_ranks(net, "cond-lr{condition=2}", sgd(net, momentum=0.9))
    train(net, ranks, 10)
    spectrum = torch.linalg.svdvals(net[0].weight)[:8]
    assert spectrum[0] / spectrum[-1] <= 2 * (1 + 1e-9)


@pytest.mark.parametrize("kind", LAYERS)
def test_trp_adds_the_gradient_of_the_nuclear_norm(kind) -> None:
    made = layer(kind)
    term = made.structure.terms[0]
    cores = {n: c.detach().clone().requires_grad_() for n, c in made.cores.items()}
    legs = (*term.equation.output_indices, *term.equation.input_indices)
    for bond in term.equation.bonds:
        parted = cut(term.equation, bond)
        assert parted is not None
        weight = rebuild(made.structure, cores).reshape([term.size[n] for n in legs])
        order = [legs.index(n) for n in (*parted.left, *parted.right)]
        rows = 1
        for name in parted.left:
            rows *= term.size[name]
        matrix = weight.permute(order).reshape(rows, -1)
        rank = torch.linalg.matrix_rank(matrix)
        norm = torch.linalg.svdvals(matrix)[:rank].sum()
        wanted = torch.autograd.grad(norm, list(cores.values()))
        detached = {n: c.detach() for n, c in cores.items()}
        found = nuclear_subgradient(term, detached, bond)
        for grad, name in zip(wanted, cores):
            assert torch.allclose(found[name], grad, atol=1e-8)


@pytest.mark.parametrize("strength", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("penalty", ["lasso", "envelope"])
def test_proximal_points_are_brute_force_minima(penalty, strength) -> None:
    generator = torch.Generator().manual_seed(7)
    groups = [torch.randn(n, generator=generator, dtype=DOUBLE) for n in (1, 2, 2, 3)]
    norms = torch.stack([g.norm() for g in groups])
    weights = torch.tensor([1.0, 2.0, 2.0, 3.0], dtype=DOUBLE)
    budget = 4.0
    if penalty == "lasso":
        factors = lasso_factors(norms, weights, strength)
    else:
        factors = envelope_factors(norms, weights, strength, budget)
    sizes = (factors * norms).numpy()  # the groups shrink along themselves

    def objective(point) -> float:
        """Half the squared distance plus the penalty; `point` are the new norms, then u."""
        new, u = point[:4], point[4:]
        near = 0.5 * ((new - norms.numpy()) ** 2).sum()
        if penalty == "lasso":
            return near + strength * (weights.sqrt().numpy() * abs(new)).sum()
        return near + 0.5 * strength * (new**2 / u).sum()

    limits = [(0, None)] * 4 + [(1e-9, 1)] * 4
    within = {"type": "ineq", "fun": lambda p: budget - (weights.numpy() * p[4:]).sum()}
    best = None
    for start in (0.2, 0.5):
        begin = [*norms.tolist(), *[start] * 4]
        found = minimize(
            objective,
            begin,
            bounds=limits,
            constraints=[within],
            options={"maxiter": 500, "ftol": 1e-13},
        )
        best = found if best is None or found.fun < best.fun else best
    assert best is not None
    assert abs(best.x[:4] - sizes).max() < 2e-3
    wrong = best.x.copy()
    wrong[:4] = 0.9 * sizes + 0.1 * norms.numpy()
    assert objective(wrong) > best.fun + 1e-6


def test_maestro_narrows_in_training_only() -> None:
    net = model("low-rank")
    ranks = tnc.adapt_ranks(net, "maestro", sgd(net))
    x, _ = data(net)
    whole = net.eval()(x)
    ranks.works[0].memory["width"] = ["r", 1]
    assert torch.equal(net(x), whole)
    narrow = net.train()(x)
    assert not torch.allclose(narrow, whole)
    narrow.sum().backward()
    assert float(net[0].cores["A"].grad[1:].abs().max()) == 0
    ranks.close()
    assert torch.equal(net(x), whole) and not net[0]._forward_hooks


def test_increments_keep_the_function_and_point_down_the_gradient() -> None:
    net = model("low-rank")
    ranks = tnc.adapt_ranks(net, "rank-increments{every=2}", sgd(net, 0.0))
    x, y = data(net)
    before = net(x)
    train(net, ranks, 2)
    assert ranks.ranks["0"]["r"] == 9
    assert torch.allclose(net(x), before, atol=1e-12)
    net.zero_grad()
    (net(x) - y).square().mean().backward()
    dense = nn.Sequential(nn.Linear(10, 12).double(), nn.Tanh())
    dense[0].weight.data, dense[0].bias.data = net[0].weight.detach(), net[0].bias.detach()
    (dense(x) - y).square().mean().backward()
    left, right = (
        torch.linalg.qr(m).Q for m in (net[0].cores["B"][:, :8], net[0].cores["A"][:8].T)
    )
    rest = dense[0].weight.grad
    rest = rest - left @ (left.T @ rest)
    rest = rest - (rest @ right) @ right.T
    added = net[0].cores["A"][8].detach()
    assert torch.allclose((rest @ added).norm() / added.norm(), torch.linalg.svdvals(rest)[0])


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_memory_of_dropped_ranks_is_freed(optimizer) -> None:
    net = nn.Sequential(layer("low-rank"))
    made = OPTIMIZERS[optimizer](net.parameters())
    ranks = tnc.adapt_ranks(net, "dlrt{tolerance=0.6, least=1}", made)
    old = weakref.ref(net[0].cores["B"])
    train(net, ranks, 3)
    gc.collect()
    assert old() is None
    tensors = [*net.parameters()]
    tensors += [v for s in made.state.values() for v in s.values() if torch.is_tensor(v)]
    for tensor in tensors:
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_momentum_moves_as_the_gradient_does() -> None:
    """Rotate a bond in mid-training: the trajectory of the weight is the same as without."""
    weights = []
    for turned in (False, True):
        net = model("low-rank")
        optimizer = sgd(net, momentum=0.9)
        ranks = tnc.adapt_ranks(net, "rank-increments{every=1000}", optimizer)
        train(net, ranks, 4)
        if turned:
            turn = torch.linalg.qr(torch.randn(8, 8, dtype=DOUBLE)).Q
            ranks.works[0].insert_("r", turn, turn.T)
        train(net, ranks, 4)
        weights.append(net[0].weight.detach())
    assert torch.allclose(weights[0], weights[1], atol=1e-10)


def test_second_moments_of_new_rows_are_never_zero() -> None:
    old, new = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(4, 3))
    adam = torch.optim.Adam([old])
    old.grad = torch.ones(2, 3)
    adam.step()
    move_(adam, old, new, {0: torch.eye(4)[:, :2]})
    state = adam.state[new]
    assert float(state["exp_avg_sq"].min()) > 0 and float(state["exp_avg"][2:].abs().max()) == 0
    assert float(state["step"]) == 1 and old not in adam.state


class Unknown(torch.optim.SGD):
    """An optimizer with a slot that nobody knows."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["lore"] = torch.ones_like(p)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda net: torch.optim.LBFGS(net.parameters()), "LBFGS keeps its state flattened"),
        (lambda net: torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1), "does not hold"),
    ],
)
def test_optimizers_that_cannot_follow_are_refused(make, told) -> None:
    net = model("low-rank")
    with pytest.raises(PlanError, match=told):
        tnc.adapt_ranks(net, "dlrt", make(net))


def test_an_unknown_slot_is_an_error_and_no_guess() -> None:
    net = model("low-rank")
    ranks = tnc.adapt_ranks(net, "dlrt", Unknown(net.parameters(), lr=0.1))
    with pytest.raises(BindError, match="'lore', whose kind is not known"):
        train(net, ranks, 1)


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        ("dlrt{tolerance=2}", "tolerance is 2"),
        ("dltr", "did you mean 'dlrt'"),
        ("dlrt{tol=1}", "tol"),
        ("trp{energy=0}", "energy"),
        ("maestro{every=0}", "every"),
    ],
)
def test_wrong_options_are_told(schedule, told) -> None:
    net = model("low-rank")
    with pytest.raises((SpecProblems, PlanError), match=told):
        tnc.adapt_ranks(net, schedule, sgd(net))
    with pytest.raises(SpecProblems, match=told):
        tnc.Spec(version=1, rules=[{"match": "*", "structure": "dense"}], train=schedule)


@pytest.mark.parametrize(
    ("equation", "told"),
    [
        ("A[o r s] B[r t i] C[t s j] : (i j) -> o | i=3 j=3 o=9 r=2 s=2 t=2", "part of a loop"),
        ("A[o r] B[i r] C[j r] : (i j) -> o | i=3 j=3 o=9 r=2", "joins 3 cores"),
        ("A[o r s] B[r s i] : i -> o | i=9 o=9 r=2 s=2", "share 2 bonds"),
    ],
)
def test_networks_that_are_no_trees_are_refused(equation, told) -> None:
    structure = Structure.of(parse_network(equation))
    net = StructuredLayer.initialised(structure, LinearView(), 0.1)
    with pytest.raises(PlanError, match=told):
        tnc.adapt_ranks(net, "dlrt", sgd(net))


def test_shared_cores_are_refused() -> None:
    net = nn.Sequential(layer("low-rank"), nn.Linear(12, 10).double(), layer("low-rank"))
    net[2].cores = nn.ParameterDict(dict(net[0].cores.items()))
    with pytest.raises(PlanError, match="shared with another module"):
        tnc.adapt_ranks(net, "dlrt", sgd(net))


def test_models_without_structure_are_refused() -> None:
    net = nn.Linear(3, 3)
    with pytest.raises(PlanError, match="no structured layer"):
        tnc.adapt_ranks(net, "dlrt", sgd(net))


def test_gradients_that_are_not_finite_stop_the_run_and_name_the_layer() -> None:
    net = model("tucker")
    ranks = tnc.adapt_ranks(net, "dlrt", sgd(net))
    x, _ = data(net)
    (net(x) * float("nan")).sum().backward()
    with pytest.raises(FitError, match="not finite") as caught:
        ranks.step()
    assert caught.value.where == "0"


def test_hooks_do_what_the_explicit_step_does() -> None:
    runs = []
    for hooked in (False, True):
        net = model("tucker")
        ranks = tnc.adapt_ranks(net, "dlrt{tolerance=0.5}", sgd(net, momentum=0.9))
        step = ranks.attach().optimizer.step if hooked else ranks.step
        x, y = data(net)
        for _ in range(5):
            ranks.optimizer.zero_grad()
            (net(x) - y).square().mean().backward()
            step()
        runs.append((net[0].weight.detach(), ranks.ranks, len(ranks.history)))
        ranks.close()
        assert not ranks.optimizer._optimizer_step_pre_hooks
    assert torch.equal(runs[0][0], runs[1][0]) and runs[0][1:] == runs[1][1:]


def test_a_closure_computes_the_loss_first() -> None:
    net = model("low-rank")
    ranks = tnc.adapt_ranks(net, "dlrt", sgd(net))
    x, y = data(net)

    def closure() -> torch.Tensor:
        ranks.optimizer.zero_grad()
        loss = (net(x) - y).square().mean()
        loss.backward()
        return loss

    loss = ranks.step(closure)
    assert ranks.history[0].loss == loss.item()


def test_spec_to_artifact_in_two_lines(tmp_path) -> None:
    torch.manual_seed(0)
    source = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 16))
    spec = tnc.Spec(
        version=1,
        rules=[{"match": "*", "structure": "tucker", "ranks": "full"}],
        train="dlrt{tolerance=0.4}",
    )
    example = torch.randn(5, 4, 4, 4)
    made = tnc.compile(source, spec, example=example)
    optimizer = torch.optim.AdamW(made.model.parameters(), lr=1e-3)
    ranks = tnc.adapt_ranks(made.model, spec, optimizer)
    for _ in range(4):
        optimizer.zero_grad()
        loss = made.model(example).square().mean()
        loss.backward()
        ranks.step(loss)
    told = str(ranks)
    assert "r1 8 -> " in told and "dlrt{tolerance=0.4}, step 4" in told
    folder = tnc.save(ranks.compiled(made), tmp_path / "artifact")
    again = tnc.load(folder, model=source)
    assert torch.allclose(again(example), made.model(example), atol=1e-6)
    plan = tnc.Plan.read(folder / "plan.json")
    assert plan.entry("3.weight").structure == made.model[3].structure
    assert plan.total.params < made.plan.total.params
    assert [r.params for r in ranks.history][-1] == sum(p.numel() for p in again.parameters())
