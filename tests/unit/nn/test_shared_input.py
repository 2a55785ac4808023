"""One product for all readers of a tensor, never a stale one, and nothing else changes."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tnc.errors import KernelError
from tnc.net import Structure, parse_network
from tnc.nn import LinearView, StructuredLayer, shared_frame, shared_input
from tnc.nn.shared_input import SharingLayer, groups_of, share_inputs_, unshare_

NAMES = ("q", "k", "v")


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share however small the product is."""
    monkeypatch.setattr(shared_input, "PAYS", 0)


def near(a: Tensor, b: Tensor) -> bool:
    """Equal to 1e-5 relative, in the norm."""
    return float((a - b).detach().norm()) <= 1e-5 * float(b.detach().norm())


class Attention(nn.Module):
    """Three readers of one tensor; `between` runs after the first of them."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        torch.manual_seed(0)
        core = nn.Parameter(torch.randn(3, width) / width)
        for number, name in enumerate(NAMES):
            rows = 8 + number
            structure = Structure.of(
                parse_network(f"B[o r] A[r i] : i -> o | i={width} o={rows} r=3")
            )
            cores = {"B": torch.randn(rows, 3), "A": core}
            self.add_module(name, StructuredLayer(structure, LinearView(), cores, torch.ones(rows)))
        self.between: Any = None

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        found = [self.q(x)]
        if self.between is not None:
            self.between(self, x)
        found += [self.k(x if y is None else y), self.v(x)]
        return torch.cat(found, -1)


def pair(**more: Any) -> tuple[Attention, Attention]:
    """The same module without and with one product."""
    plain, fused = Attention(**more), Attention(**more)
    share_inputs_(fused, NAMES, ("A",))
    return plain, fused


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count how often a product is asked for, and how often it is computed."""
    asked = [0, 0]
    real, front = shared_frame.Frame.product, shared_frame.Split

    def product(self: Any, x: Tensor, split: Any, cores: Any) -> Tensor:
        before = self._product
        found = real(self, x, split, cores)
        asked[0] += 1
        asked[1] += found is not before
        return found

    with monkeypatch.context() as patch:
        patch.setattr(shared_frame.Frame, "product", product)
        yield asked
    assert front is shared_frame.Split


X = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))


def test_three_readers_one_product_same_values(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fused = pair()
    with counted(monkeypatch) as asked:
        assert near(plain(X), fused(X))
    assert asked == [3, 1]
    assert not shared_frame.OPEN.frames


def test_gradients_of_all_parameters_and_of_the_input_are_equal() -> None:
    plain, fused = pair()
    a, b = X.clone().requires_grad_(), X.clone().requires_grad_()
    plain(a).square().sum().backward()
    fused(b).square().sum().backward()
    assert near(a.grad, b.grad)
    for (name, p), (other, q) in zip(
        plain.named_parameters(), fused.named_parameters(), strict=True
    ):
        assert name == other
        assert near(p.grad, q.grad)


def test_double_backward() -> None:
    fused = pair()[1].double()
    assert torch.autograd.gradgradcheck(fused, X.double().requires_grad_())


@pytest.mark.parametrize("grad", [True, False])
def test_an_input_written_to_between_the_readers_is_read_again(grad: bool) -> None:
    def write(module: nn.Module, x: Tensor) -> None:
        with torch.no_grad():
            x.add_(1)

    plain, fused = pair()
    plain.between = fused.between = write
    with torch.set_grad_enabled(grad):
        before = pair()[0](X)
        first, second = plain(X.clone()), fused(X.clone())
    assert near(first, second)
    assert not near(first, before)


def test_the_test_of_stale_products_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the stamp the written input would go unseen: the oracle notices."""
    plain, fused = pair()
    plain.between = fused.between = lambda module, x: x.add_(1)
    monkeypatch.setattr(shared_frame, "stamp", lambda *_: ())
    with torch.no_grad():
        assert not near(plain(X.clone()), fused(X.clone()))


def test_a_core_written_to_or_replaced_between_the_readers_is_read_again() -> None:
    def write(module: nn.Module, x: Tensor) -> None:
        with torch.no_grad():
            module.k.cores["A"].mul_(2)

    def replace(module: nn.Module, x: Tensor) -> None:
        module.k.cores["A"] = nn.Parameter(3 * module.k.cores["A"].detach())

    for change in (write, replace):
        plain, fused = pair()
        plain.between = fused.between = change
        with torch.no_grad():
            assert near(plain(X.clone()), fused(X.clone()))


def test_equal_storage_written_between_two_forwards() -> None:
    plain, fused = pair()
    x = X.clone()
    with torch.no_grad():
        first = fused(x)
        x.data.mul_(-1)  # not counted as a version
        assert near(fused(x), plain(x))
        assert not near(first, fused(x))


def test_another_tensor_for_one_reader() -> None:
    plain, fused = pair()
    y = X + 1
    assert near(plain(X, y), fused(X, y))
    assert near(plain(X, X.clone()), fused(X, X.clone()))


def test_a_layer_called_alone_computes_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fused = pair()
    with counted(monkeypatch) as asked:
        assert torch.equal(plain.k(X), fused.k(X))
        assert torch.equal(plain.k(input=X), fused.k(input=X))
    assert asked == [0, 0]


def test_a_forward_that_raises_leaves_nothing() -> None:
    fused = pair()[1]

    def stop(module: nn.Module, x: Tensor) -> None:
        raise ValueError

    fused.between = stop
    with pytest.raises(ValueError):
        fused(X)
    assert not shared_frame.OPEN.frames
    fused.between = None
    assert near(fused(X + 1), pair()[0](X + 1))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("where", ["around", "inside", "one"])
def test_checkpointing(reentrant: bool, where: str) -> None:
    class Inside(Attention):
        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            if where == "inside":
                return checkpoint(super().forward, x, use_reentrant=reentrant)
            found = [checkpoint(self.q, x, use_reentrant=reentrant), self.k(x), self.v(x)]
            return torch.cat(found, -1)

    kind = Attention if where == "around" else Inside
    gradients = []
    for fuse in (False, True):
        model, x = kind(), X.clone().requires_grad_()
        if fuse:
            share_inputs_(model, NAMES, ("A",))
        out = checkpoint(model, x, use_reentrant=reentrant) if where == "around" else model(x)
        out.square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in model.parameters())])
    for a, b in zip(*gradients):
        assert near(a, b)


def test_a_part_without_gradients_does_not_lend_its_product() -> None:
    class Mixed(Attention):
        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            with torch.no_grad():
                first = self.q(x)
            return torch.cat([first, self.k(x), self.v(x)], -1)

    gradients = []
    for fuse in (False, True):
        model = Mixed()
        if fuse:
            share_inputs_(model, NAMES, ("A",))
        model(X).square().sum().backward()
        gradients.append(model.q.cores["A"].grad)
    assert near(*gradients)


def test_autocast_and_inference_mode() -> None:
    class Partly(Attention):
        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                first = self.q(x)
            return torch.cat([first.float(), self.k(x), self.v(x)], -1)

    plain, fused = Partly(), Partly()
    share_inputs_(fused, NAMES, ("A",))
    assert near(plain(X), fused(X))
    plain, fused = pair()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain(X), fused(X))
    with torch.inference_mode():
        assert torch.equal(plain(X.clone()), fused(X.clone()))


def test_threads_do_not_see_each_other() -> None:
    plain, fused = pair()
    wrong: list[int] = []

    def work(number: int) -> None:
        x = X + number
        with torch.no_grad():
            expected = plain(x)
            wrong.extend(number for _ in range(50) if not near(fused(x), expected))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch"])
def test_copies_share_among_themselves(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fused = pair()
    fused(X)
    if how == "deepcopy":
        made = copy.deepcopy(fused)
    elif how == "pickle":
        made = pickle.loads(pickle.dumps(fused))
    else:
        held = io.BytesIO()
        torch.save(fused, held)
        held.seek(0)
        made = torch.load(held, weights_only=False)
    assert type(made).__name__ == "Attention" and isinstance(made, Attention)
    assert list(made.state_dict()) == list(plain.state_dict())
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2)
    with counted(monkeypatch) as asked:
        assert not near(made(X), fused(X))
        assert asked == [6, 2]
    assert made.q.cores["A"] is made.v.cores["A"]
    assert made.q.cores["A"] is not fused.q.cores["A"]


def test_replicas_of_data_parallel(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `nn.parallel.replicate` does, without devices: shallow copies with other parameters."""
    fused = pair()[1]
    replica = fused._replicate_for_data_parallel()
    for name in NAMES:
        layer = getattr(fused, name)._replicate_for_data_parallel()
        layer.bias = torch.ones_like(getattr(fused, name).bias)
        replica._modules[name] = layer
    core = nn.Parameter(torch.zeros(3, 12))
    for name in NAMES:
        other = nn.ParameterDict({"B": replica._modules[name].cores["B"], "A": core})
        replica._modules[name]._modules["cores"] = other
    with counted(monkeypatch) as asked:
        assert torch.equal(replica(X), torch.ones(5, 27))
        assert not torch.equal(fused(X), torch.ones(5, 27))
    assert asked == [6, 2]


def test_a_layer_that_was_exchanged_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = pair()[1]
    fused.k = nn.Linear(12, 9)
    with counted(monkeypatch) as asked:
        fused(X)
    assert asked == [2, 1]
    assert groups_of(fused) == ((("q", "v"), ("A",)),)


def test_a_layer_with_another_structure_computes_for_itself() -> None:
    plain, fused = pair()
    structure = Structure.of(parse_network("B[o r] A[r i] : i -> o | i=12 o=9 r=2"))
    cores = {"B": nn.Parameter(torch.randn(9, 2)), "A": nn.Parameter(torch.randn(2, 12))}
    for model in (plain, fused):
        model.k.restructure_(structure, cores)
    assert near(plain(X), fused(X))
    structure = Structure.of(parse_network("W[o i] : i -> o | i=12 o=9"))
    for model in (plain, fused):
        model.k.restructure_(structure, {"W": nn.Parameter(cores["B"].data @ cores["A"].data)})
    assert near(plain(X), fused(X))


def test_frozen_cores_and_bf16() -> None:
    plain, fused = pair()
    for model in (plain, fused):
        model.q.cores["A"].requires_grad_(False)
        model(X).sum().backward()
        assert model.q.cores["A"].grad is None and model.q.cores["B"].grad is not None
    plain, fused = plain.bfloat16(), fused.bfloat16()
    assert torch.equal(plain(X.bfloat16()), fused(X.bfloat16()))
    assert fused.q.cores["A"] is fused.k.cores["A"]


def test_export_compile_and_vmap() -> None:
    plain, fused = pair()
    program = torch.export.export(fused, (X,))
    assert near(program.module()(X), plain(X))
    compiled = torch.compile(fused, backend="eager", fullgraph=True)
    assert near(compiled(X), plain(X))
    many = torch.stack([X, X + 1])
    assert near(torch.vmap(fused)(many), torch.vmap(plain)(many))
    other = {name: p * 2 for name, p in fused.named_parameters()}
    found = torch.func.functional_call(fused, other, (X,))
    assert near(found, torch.func.functional_call(plain, other, (X,)))


def test_what_cannot_share_is_refused_and_sharing_is_undone() -> None:
    model = Attention()
    with pytest.raises(KernelError, match="cannot be split at its cores A, B"):
        share_inputs_(model, NAMES, ("A", "B"))
    model.k = nn.Linear(12, 9)
    with pytest.raises(KernelError, match="k is no structured linear layer"):
        share_inputs_(model, NAMES, ("A",))
    assert type(model.q) is StructuredLayer
    fused = pair()[1]
    assert type(fused.q) is SharingLayer
    unshare_(fused)
    assert type(fused) is Attention and type(fused.q) is StructuredLayer
    assert "front" not in vars(fused.q)
    assert near(fused(X), Attention()(X))


def test_a_product_that_is_too_small_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fused = pair()
    each_row = 2 * 3 * 12 * 2  # FLOPs saved: of two products
    monkeypatch.setattr(shared_input, "PAYS", 5 * each_row)
    with counted(monkeypatch) as asked:
        assert near(fused(X), plain(X)) and asked == [3, 1]
        assert near(fused(X[:4]), plain(X[:4])) and asked == [3, 1]
