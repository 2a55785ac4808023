"""A compiled model goes on living as the user's model did: hooks, copies, compilers, processes."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

import tnc
from tests.compiled import halved, spec
from tests.zoo import case
from tnc.artifact.exporting import exported
from tnc.nn import StructuredLayer
from tnc.rewrite.contract import outputs_of


def mlp() -> tnc.api.Compiled:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 4))
    return tnc.compile(model, spec(), example=torch.ones(3, 16))


def convolution() -> tnc.api.Compiled:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, stride=2))
    return tnc.compile(model, spec(), example=torch.ones(2, 4, 8, 8))


class Counts:
    """A hook that counts its calls, of any kind of hook."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *_: object, **__: object) -> None:
        self.calls += 1

    def __deepcopy__(self, memory: object) -> Counts:
        return self


KINDS = (
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
)


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_of_replaced_modules_still_fire(kind: str) -> None:
    model, hook = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 4)), Counts()
    getattr(model[0], kind)(hook)
    made = tnc.compile(model, spec(), example=torch.ones(3, 16)).model
    dense = tnc.densify(made)
    assert isinstance(made[0], StructuredLayer) and type(dense[0]) is nn.Linear
    for other in (made, dense, copy.deepcopy(made)):
        before = hook.calls
        other(torch.ones(3, 16, requires_grad=True)).sum().backward()
        assert hook.calls == before + 1, other


def test_a_handle_still_removes_its_hook_from_the_copy_that_it_came_with() -> None:
    made, hook = mlp().model, Counts()
    handle = made[0].register_forward_hook(hook)
    again = tnc.densify(made)
    made(torch.ones(1, 16))
    handle.remove()
    made(torch.ones(1, 16))
    assert hook.calls == 1
    again(torch.ones(1, 16))
    assert hook.calls == 2


@pytest.mark.parametrize("name", ["bert", "attention", "shared"])
def test_copies_and_pickles_are_independent_models(name: str) -> None:
    made, probe = halved(name).model, case(name).inputs()
    wanted = outputs_of(made, probe)[0]
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert type(other).__qualname__ == type(made).__qualname__
        assert torch.equal(outputs_of(other, probe)[0], wanted)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        assert torch.equal(outputs_of(made, probe)[0], wanted)
        assert not torch.equal(outputs_of(other, probe)[0], wanted)


def rebuilt_convolution() -> tnc.api.Compiled:
    torch.manual_seed(0)
    rule = {"match": "*", "structure": "kronecker", "keep": 0.8}
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3))
    return tnc.compile(model, spec(rule), example=torch.ones(2, 4, 8, 8))


def attention() -> tnc.api.Compiled:
    return halved("attention")


@pytest.mark.parametrize("make", [mlp, convolution, rebuilt_convolution, attention])
def test_torch_compile_takes_the_model_forwards_and_backwards(make) -> None:
    made = make()
    x = torch.randn_like(made.probe[0][0])
    plain, other = copy.deepcopy(made.model), copy.deepcopy(made.model)
    graph = torch.compile(other, backend="aot_eager", fullgraph=True)
    wanted, found = plain(x), graph(x)
    assert torch.allclose(found, wanted, atol=1e-6)
    wanted.square().sum().backward()
    found.square().sum().backward()
    pairs = list(zip(plain.parameters(), graph.parameters(), strict=True))
    assert all(torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-5) for a, b in pairs)
    assert all(float(a.grad.norm()) > 0 for a, _ in pairs)


@pytest.mark.slow
def test_the_default_compiler_takes_the_model() -> None:
    made = mlp()
    x = torch.randn(5, 16)
    try:
        found = torch.compile(made.model)(x)
    except Exception as error:
        if "compiler" in str(error).lower() and "not found" in str(error).lower():
            pytest.skip("this machine has no C++ compiler")
        raise
    assert torch.allclose(found, made.model(x), atol=1e-5)


def test_torch_export_of_a_compiled_encoder_has_a_dynamic_batch() -> None:
    made = halved("bert")
    program = exported(copy.deepcopy(made.model), made.probe).module()
    for batch in (1, 5):
        _, kwargs = case("bert").inputs(seed=batch)
        more = {key: value[:1].expand(batch, -1).contiguous() for key, value in kwargs.items()}
        found, wanted = program(**more), outputs_of(made.model, ((), more))
        assert torch.allclose(found.last_hidden_state, wanted[0], atol=1e-5)
        assert found.last_hidden_state.shape[0] == batch


DATA = torch.randn(8, 16, generator=torch.Generator().manual_seed(3))


def step(model: nn.Module, data: Tensor) -> None:
    """One training step on a mean, so that two halves average to the whole."""
    model(data).square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def train(rank: int, folder: str) -> None:
    """One of two processes: half of the data, gradients averaged."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    model = mlp().model
    step(DistributedDataParallel(model), DATA[rank::2])
    found = {name: (p.detach(), p.grad) for name, p in model.named_parameters()}
    torch.save(found, f"{folder}/rank{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="gloo is not built in")
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    multiprocessing.start_processes(train, (str(tmp_path),), nprocs=2, start_method="forkserver")
    alone, first = mlp().model, {n: p.detach().clone() for n, p in mlp().model.named_parameters()}
    step(alone, DATA)
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pt")
        assert set(found) == {name for name, _ in alone.named_parameters()}
        for name, parameter in alone.named_parameters():
            value, gradient = found[name]
            assert torch.allclose(gradient, parameter.grad, rtol=1e-4, atol=1e-6), name
            assert torch.allclose(value, parameter, rtol=1e-4, atol=1e-6), name
            assert not torch.equal(value, first[name]), name
