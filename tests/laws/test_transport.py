"""Laws of transport: every registered structure, every map, against the dense Jacobian."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from tests.laws.data import CONV, structures
from tests.laws.test_structures import layer, small
from tnc.net import Signature, Structure
from tnc.nn import ConvView, LinearView
from tnc.nn.dense import rebuild
from tnc.optim.transport import Transport
from tnc.structures import Family

ALL = list(structures())


def one_of_a_kind() -> list[tuple[str, Family, Signature]]:
    """Return one linear and one convolution's weight for every member, the sizes in turn."""
    kinds: dict[tuple[Family, bool], list[tuple[str, Family, Signature]]] = {}
    for name, family, signature in ALL:
        kinds.setdefault((family, signature in CONV), []).append((name, family, signature))
    return [found[place % len(found)] for place, found in enumerate(kinds.values())]


def over(chosen: list[tuple[str, Family, Signature]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("family", "signature"), [(f, s) for _, f, s in chosen], ids=[name for name, _, _ in chosen]
    )


each = over(ALL)
each_kind = over(one_of_a_kind())  # for what is slow: iterations, and operands that come twice

Setting = tuple[Structure, dict[str, Tensor], Transport, dict[str, Tensor]]


@cache
def setting(family, signature) -> Setting:
    """Return a structure, its cores, its transport, and the Jacobian `[weight, core]` by core."""
    structure = small(family, signature)
    made = layer(structure, LinearView() if len(signature.inputs) == 1 else ConvView())
    cores = {name: core.detach().clone() for name, core in made.tensors().items()}
    moves = Transport(structure, cores)

    def weight(**some: Tensor) -> Tensor:
        return rebuild(structure, cores | some)

    jacobians = {}
    for name in moves.trainable:
        found = torch.autograd.functional.jacobian(
            lambda core, name=name: weight(**{name: core}), cores[name], vectorize=True
        )
        jacobians[name] = found.reshape(signature.parameters, -1)
    return structure, cores, moves, jacobians


def near(a: Tensor, b: Tensor, limit: float = 1e-12) -> None:
    assert a.shape == b.shape
    assert float((a - b).norm()) <= limit * (1 + float(b.norm()))


@each
def test_maps_are_those_of_the_dense_jacobian(family, signature) -> None:
    structure, cores, moves, jacobians = setting(family, signature)
    weight = torch.randn(structure.signature.shape, dtype=torch.float64)
    for name, pulled in moves.pull(weight).items():
        near(pulled, (jacobians[name].T @ weight.flatten()).reshape(cores[name].shape))
        assert pulled.is_contiguous()
    for name, pulled in moves.pull_squared(weight.square()).items():
        near(pulled, (jacobians[name].square().T @ weight.square().flatten()).view_as(pulled))
        assert pulled.is_contiguous() and bool((pulled >= -1e-15).all())
    for name, pulled in moves.pull_absolute(weight.abs()).items():
        exact = (jacobians[name].abs().T @ weight.abs().flatten()).view_as(pulled)
        assert bool((pulled >= exact - 1e-12).all())
    changes = {name: torch.randn_like(cores[name]) for name in moves.trainable}
    pushed = sum(jacobians[name] @ change.flatten() for name, change in changes.items())
    near(moves.push(changes), pushed.reshape(weight.shape))
    squares = {name: change.square() for name, change in changes.items()}
    spread = sum(jacobians[name].square() @ u.flatten() for name, u in squares.items())
    near(moves.spread(squares), spread.reshape(weight.shape))


@each
def test_second_moments_lie_within_their_bounds(family, signature) -> None:
    structure, cores, moves, jacobians = setting(family, signature)
    generator = torch.Generator().manual_seed(1)
    shape = (40, *structure.signature.shape)
    gradients = torch.randn(shape, generator=generator, dtype=torch.float64)
    gradients = gradients + gradients.mean(0)  # correlated, as gradients are
    upper = moves.pull_absolute(gradients.square().mean(0).sqrt())
    mean = moves.pull(gradients.mean(0))
    for name in moves.trainable:
        seen = (gradients.flatten(1) @ jacobians[name]).square().mean(0).view_as(cores[name])
        assert bool((seen <= upper[name].square() + 1e-12).all())
        assert bool((seen >= mean[name].square() - 1e-12).all())


@each_kind
def test_kronecker_statistics(family, signature) -> None:
    structure, cores, moves, jacobians = setting(family, signature)
    outputs, inputs = structure.signature.outputs, structure.signature.inputs
    rows, columns = torch.Size(outputs).numel(), torch.Size(inputs).numel()
    left = torch.randn(rows, 2 * rows, dtype=torch.float64)
    right = torch.randn(columns, 2 * columns, dtype=torch.float64)
    left, right = left @ left.T, right @ right.T
    left = left * right.trace() / left.trace()
    covariance = torch.kron(left, right) / left.trace()
    for name, found in moves.kronecker(left, right).items():
        exact = (jacobians[name] * (covariance @ jacobians[name])).sum(0).view_as(found)
        near(found, exact, 1e-10)
    for name in moves.trainable:
        shape = cores[name].shape
        whole = (jacobians[name].T @ covariance @ jacobians[name]).reshape(*shape, *shape)
        for place, mode in enumerate(_legs(structure, name)):
            letters = [chr(97 + k) for k in range(len(shape))]
            second = [*letters]
            second[place] = "z"
            spec = f"{''.join([*letters, *second])}->{letters[place]}z"
            near(moves.gram(name, mode, left, right), torch.einsum(spec, whole), 1e-10)


@each_kind
def test_what_is_lifted_pulls_back(family, signature) -> None:
    structure, _, moves, jacobians = setting(family, signature)
    generator = torch.Generator().manual_seed(2)
    momentum = torch.randn(structure.signature.shape, generator=generator, dtype=torch.float64)
    pulled = moves.pull(momentum)
    lifted = moves.lift(pulled, 4000)
    again = moves.pull(lifted)
    total = sum(float((again[name] - pulled[name]).square().sum()) for name in pulled) ** 0.5
    assert total <= 1e-6 * sum(float(m.square().sum()) for m in pulled.values()) ** 0.5
    assert float(lifted.norm()) <= float(momentum.norm()) * (1 + 1e-6)  # the smallest of them
    whole = torch.cat([jacobians[name] for name in moves.trainable], 1)
    tangent = whole @ torch.linalg.lstsq(whole, momentum.flatten(), driver="gelsd").solution
    near(lifted.flatten(), tangent, 1e-5)


def test_the_oracle_sees_a_wrong_square() -> None:
    """Squaring every core is another map where bonds join other cores: the notes' trap."""
    family = next(f for name, f, s in ALL if name.startswith("tensor-train-{'factors': 3}"))
    signature = next(s for name, f, s in ALL if name.startswith("tensor-train-{'factors': 3}"))
    _, cores, moves, jacobians = setting(family, signature)
    wrong = Transport(moves.structure, {name: core.square() for name, core in cores.items()})
    ones = torch.ones(signature.shape, dtype=torch.float64)
    name = moves.trainable[0]
    exact = (jacobians[name].square().T @ ones.flatten()).view_as(cores[name])
    with pytest.raises(AssertionError):
        near(wrong.pull(ones)[name], exact)


def _legs(structure: Structure, name: str) -> tuple[str, ...]:
    for term in structure.terms:
        for core in term.equation.cores:
            if core.name == name:
                return core.indices
    raise AssertionError(name)
