"""Gradients and moments that starts are computed from: equal to autograd's, in bounded memory."""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing import get_context
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import tnc
from tests.laws.adapters_data import CASES, Case, compressed
from tests.unit.adapters.starts import drawn, near
from tnc.adapters import Parts, Rule, Start
from tnc.adapters.attach import shared_copy
from tnc.adapters.calibration import gradients, moments, output_loss
from tnc.adapters.methods.lora import LoRA
from tnc.adapters.place import Place, places
from tnc.capture import capture
from tnc.errors import CaptureError, PlanError
from tnc.nn import StructuredLayer
from tnc.optim.transport import Transport

DENSE = sorted(set(CASES) - {"compressed"})


def squares(output: Any, batch: Any) -> Tensor:
    return (output - 1).square().mean()


def places_of(model: nn.Module, *probe: Any, **named: Any) -> tuple[Place, ...]:
    return places(model, capture(model, probe, named, graph=False).sites)


def batches_of(case: Case, count: int = 3) -> list[Tensor]:
    torch.manual_seed(1)
    found = [case.draw() for _ in range(count)]
    return [x.double() if x.is_floating_point() else x for x in found]


@pytest.mark.parametrize("limit", [1, 1 << 30])
@pytest.mark.parametrize("case", DENSE)
def test_is_the_gradient_of_autograd(case: str, limit: int) -> None:
    torch.manual_seed(0)
    model = CASES[case].make().double().eval()
    batches = batches_of(CASES[case])
    found = list(gradients(model, places_of(model, batches[0]), batches, squares, limit))
    assert found
    mean = sum(squares(model(x), x) for x in batches) / len(batches)
    weights = [model.get_parameter(place.site.name) for place, _ in found]
    for (place, ours), theirs in zip(found, torch.autograd.grad(mean, weights)):
        assert ours.shape == place.site.signature.shape
        assert torch.allclose(ours, theirs.permute(place.site.order), rtol=1e-11, atol=1e-14)
    only = torch.autograd.grad(squares(model(batches[0]), None), weights)
    assert any(not near(g.permute(p.site.order), o, 0.01) for g, (p, o) in zip(only, found))


def test_rows_for_padding_and_rows_never_seen_have_none() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4, padding_idx=2)).double()
    x = torch.tensor([[0, 2, 2, 5]])
    ((_, ours),) = gradients(model, places_of(model, x), [x], squares)
    (theirs,) = torch.autograd.grad(squares(model(x), x), [model[0].weight])
    assert near(ours, theirs)
    assert ours.abs().sum(1).nonzero().flatten().tolist() == [0, 5]


def structured() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Embedding(12, 6),
        nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True),
        nn.Linear(6, 5),
    )
    rules = [{"match": "*", "structure": "low-rank", "keep": 0.7}]
    spec = tnc.Spec(version=1, round_to=1, rules=rules)
    return tnc.compile(net, spec, example=torch.ones(3, 4, dtype=torch.long)).model.double().eval()


def test_pulled_to_the_cores_of_a_structured_weight_it_is_theirs() -> None:
    conv = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 5, 3, stride=2))
    rules = [{"match": "*", "structure": "tucker", "keep": 0.7}]
    spec = tnc.Spec(version=1, round_to=1, rules=rules)
    kernels = tnc.compile(conv, spec, example=drawn(2, 4, 7, 7).float()).model.double()
    tokens = torch.arange(12).reshape(3, 4)
    for model, batch in ((structured(), tokens), (kernels, drawn(2, 4, 7, 7))):
        found = list(gradients(model, places_of(model, batch), [batch], squares))
        value = squares(model(batch), batch)
        assert len([p for p, _ in found if p.structured]) >= 2
        for place, gradient in found:
            layer = model.get_submodule(place.owners[0].path)
            if not isinstance(layer, StructuredLayer):
                continue
            pulled = Transport(layer.structure, layer.tensors()).pull(gradient)
            names = list(pulled)
            own = torch.autograd.grad(value, [layer.cores[n] for n in names], retain_graph=True)
            for name, theirs in zip(names, own):
                assert near(pulled[name], theirs, 1e-10), (place.site.name, name)
                assert not near(1.001 * pulled[name], theirs, 1e-5)


HELD: list[weakref.ref[Tensor]] = []
MOST: list[int] = []


def live() -> int:
    """Bytes of the gradients that were handed to a start and are still held."""
    return sum(g.numel() * g.element_size() for g in (ref() for ref in HELD) if g is not None)


@dataclass(frozen=True)
class Watcher(LoRA):
    """Notes which gradients are alive."""

    needs: ClassVar[tuple[str, ...]] = ("gradient",)

    def start(self, at: Start) -> Parts:
        assert at.gradient is not None
        HELD.append(weakref.ref(at.gradient))
        return super().start(at)


@pytest.mark.parametrize("limit", [1, 2 * 8 * 64, 1 << 30])
def test_no_more_bytes_of_gradients_than_the_limit_live_at_once(limit: int) -> None:
    """Counted at every loss and after every gradient: those of parameters and those of starts."""
    HELD.clear()
    MOST.clear()
    passes = 0
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5))).double()
    model = shared_copy(net)

    def held() -> int:
        own = [p.grad for p in model.parameters() if p.grad is not None]
        return sum(g.numel() * g.element_size() for g in own) + live()

    def loss(output: Tensor, batch: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        MOST.append(held())
        if output.requires_grad:
            for p in model.parameters():
                if p.requires_grad:
                    p.register_post_accumulate_grad_hook(lambda _: MOST.append(held()))
        return squares(output, batch)

    rules = [Rule(("*",), Watcher(rank=2))]
    tnc.adapt_(model, rules, calibration=[drawn(3, 8)] * 2, loss=loss, limit=limit)
    each = 8 * 64
    parts = -(-5 // max(1, limit // each))
    assert passes == 2 * parts
    assert len(HELD) == 5 and live() == 0
    assert max(MOST) == min(5 * each, max(limit, each))


def test_zeros_of_the_probes_take_no_memory() -> None:
    model = nn.Sequential(nn.Linear(300, 200, bias=False))
    sizes = []

    def loss(output: Tensor, batch: Tensor) -> Tensor:
        probes = [p for name, p in model.named_parameters() if "adapters_" in name]
        sizes.extend(p.untyped_storage().nbytes() for p in probes)
        return squares(output, batch)

    x = torch.ones(2, 300)
    ((_, found),) = gradients(model, places_of(model, x), [x], loss)
    assert sizes == [4] and found.is_contiguous() and found.shape == (200, 300)


def test_sums_of_16_bit_weights_are_in_float32() -> None:
    """Steps of a thousandth beside one: bfloat16 would lose every one of them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4, bias=False)).bfloat16()
    x = torch.ones(1, 4, dtype=torch.bfloat16)
    scales = iter([1.0] + [2.0**-10] * 256)

    def loss(output: Tensor, batch: Tensor) -> Tensor:
        return (output.float() * next(scales)).sum()

    ((_, found),) = gradients(model, places_of(model, x), [x] * 257, loss)
    assert found.dtype == torch.float32
    assert torch.allclose(found, torch.full((4, 4), 1.25 / 257), rtol=1e-5)
    lossy = torch.ones(4, 4, dtype=torch.bfloat16)
    for _ in range(256):
        lossy += 2.0**-10
    assert bool((lossy == 1).all()), "the oracle sees what bfloat16 does"


class Busy(nn.Module):
    """Dropout, running statistics and a frozen weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(8, 3)
        self.first.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(torch.tanh(self.norm(self.first(x)))))


def test_leaves_no_trace_and_dropout_does_not_act() -> None:
    torch.manual_seed(0)
    model = Busy().double().train()
    model.drop.eval()
    model.last.weight.grad = torch.ones_like(model.last.weight)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    classes = [type(module) for module in model.modules()]
    batches = [drawn(5, 6, seed=s) for s in range(2)]
    known, random = places_of(model, batches[0]), torch.get_rng_state()
    model.drop.train()
    modes[3] = True
    found = {p.site.name: g for p, g in gradients(model, known, batches, squares)}
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    assert [type(module) for module in model.modules()] == classes
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    after = model.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(value, after[name]) for name, value in state.items())
    assert torch.equal(model.last.weight.grad, torch.ones_like(model.last.weight))
    model.eval()
    mean = sum(squares(model(x), x) for x in batches) / 2
    names = sorted(found)
    theirs = torch.autograd.grad(mean, [model.get_parameter(n) for n in names])
    assert all(near(found[name], gradient) for name, gradient in zip(names, theirs))


def test_a_failing_loss_leaves_the_model_as_it_was() -> None:
    model = Busy()
    names = [name for name, _ in model.named_parameters()]
    calls = 0

    def loss(output: Tensor, batch: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise ZeroDivisionError
        return squares(output, batch)

    batches = [torch.randn(4, 6)] * 2
    with pytest.raises(ZeroDivisionError):
        tnc.adapt_(model, "lora-ga{rank=1}", calibration=batches, loss=loss, limit=1)
    assert [name for name, _ in model.named_parameters()] == names
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert {type(m) for m in model.modules()} == {type(m) for m in Busy().modules()}


def test_active_adapters_take_part_and_merged_ones_are_refused() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 5)).double()
    x = drawn(4, 7)
    tuned = tnc.adapt(model, "lora{rank=2}", match="2", example=x)
    with torch.no_grad():
        tuned.deltas()["2.weight"].cores["B"].normal_()
    place = next(p for p in places_of(tuned.model, x) if p.site.name == "0.weight")
    ((_, ours),) = gradients(tuned.model, [place], [x], squares)
    weight = tuned.model[0].weight.requires_grad_(True)  # type: ignore[index, union-attr]
    (theirs,) = torch.autograd.grad(squares(tuned.model(x), x), [weight])
    (plain,) = torch.autograd.grad(squares(model(x), x), [model[0].weight])
    assert near(ours, theirs) and not near(ours, plain, 0.01)
    weight.requires_grad_(False)
    tuned.merge()
    with pytest.raises(PlanError, match="merged"):
        tnc.adapt_(tuned.model, "lora{rank=2}", name="second", example=x)


class Recomputed(nn.Module):
    """Layers that are run again in the backward pass, after a look-up."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.table, self.inner, self.last = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        y = checkpoint(lambda h: self.inner(h).tanh(), self.table(x), use_reentrant=self.reentrant)
        return self.last(y)


@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_gradient_checkpointing() -> None:
    torch.manual_seed(0)
    model, x = Recomputed(False).double(), torch.arange(6).reshape(2, 3)
    known = places_of(model, x)
    found = {p.site.name: g for p, g in gradients(model, known, [x], squares)}
    (theirs,) = torch.autograd.grad(squares(model(x), x), [model.inner.weight])
    assert near(found["inner.weight"], theirs)
    hidden, loss = Recomputed(True).double(), squares
    with pytest.raises(PlanError, match="use_reentrant=False"):
        tnc.adapt(hidden, "lora-ga{rank=1}", match="inner", calibration=[x], loss=loss)
    with pytest.raises(PlanError, match=r"(?s)inner\.weight is zero.*use_reentrant=False"):
        tnc.adapt(hidden, "lora-ga{rank=1}", match=["inner", "last"], calibration=[x], loss=loss)


def test_messages() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.ones(2, 4)
    known = places_of(model, x)
    with pytest.raises(CaptureError, match="no calibration batch"):
        list(gradients(model, known, []))
    with pytest.raises(PlanError, match="no scalar"):
        list(gradients(model, known, [x], lambda output, batch: output))
    with pytest.raises(PlanError, match="no scalar"):
        list(gradients(model, known, [x], lambda output, batch: output.detach().sum()))
    with pytest.raises(CaptureError, match="carries no loss"):
        list(gradients(model, known, [x]))
    with pytest.raises(PlanError, match=r"gradient of 0.weight is zero"):
        tnc.adapt(model, "lora-ga{rank=1}", calibration=[x], loss=lambda y, b: (y * 0).sum())
    with pytest.raises(PlanError, match=r"gradient of 0.weight is not finite"):
        tnc.adapt(model, "lora-ga{rank=1}", calibration=[x], loss=lambda y, b: y.sum() / 0)


def test_losses_of_transformers_and_masks() -> None:
    """A loss in the output; padding weighs nothing where the model masks it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        num_labels=3,
    )
    model = transformers.BertForSequenceClassification(config).double()
    ids = torch.randint(1, 30, (2, 5))
    plain = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(2)}
    padded = {
        "input_ids": functional.pad(ids, (0, 3)),
        "attention_mask": functional.pad(torch.ones_like(ids), (0, 3)),
        "labels": torch.arange(2),
    }
    known = [p for p in places_of(model, **plain) if "query" in p.site.name]
    ((_, one),) = gradients(model, known, [plain], output_loss)
    ((_, two),) = gradients(model, known, [padded], output_loss)
    model.eval()
    weight = model.get_parameter(known[0].site.name)
    (theirs,) = torch.autograd.grad(model(**plain).loss, [weight])
    assert near(one, theirs) and near(two, theirs, 1e-9)
    tuned = tnc.adapt(model, "lora-ga{rank=1}", match="*.query", calibration=[plain])
    assert tuned.names == ("default",)


def test_moments_of_dense_and_structured_weights() -> None:
    model = structured()
    batch = {"input": torch.arange(12).reshape(3, 4)}
    known = [p for p in places_of(model, batch["input"]) if p.site.name in ("0.weight", "2.weight")]
    found = moments(model, known, [batch])
    hidden = model[1](model[0](batch["input"])).detach().reshape(-1, 6)  # type: ignore[index]
    assert known[1].structured
    assert near(found["2.weight"], hidden.T @ hidden / len(hidden))
    assert near(found["0.weight"], torch.full((12,), 1 / 12, dtype=torch.float64))
    assert not any("adapters_" in name for name, _ in model.named_modules())


@pytest.mark.parametrize("limit", [1, 2 * 8 * 64, 1 << 30])
def test_moments_for_starts_are_measured_a_part_at_a_time(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[int] = []
    held: list[int] = []

    def counted(model: nn.Module, known: Any, batches: Any) -> dict[str, Tensor]:
        held.append(sum(ref() is not None for ref in HELD))
        parts.append(len(known))
        found = moments(model, known, batches)
        HELD.extend(weakref.ref(moment) for moment in found.values())
        return found

    HELD.clear()
    monkeypatch.setattr("tnc.adapters.given.moments", counted)
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5))).double()
    whole = tnc.adapt(net, "eva{rank=2}", calibration=[drawn(3, 8)], limit=limit)
    assert parts == {1: [1] * 5, 1024: [2, 2, 1]}.get(limit, [5])
    assert not any(held) and len(HELD) == 5
    again = tnc.adapt(net, "eva{rank=2}", calibration=[drawn(3, 8)])
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters()))


class Masked(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return self.layer(x)


def test_masked_rows_do_not_count_in_moments() -> None:
    x, mask = drawn(2, 3, 12), torch.tensor([[1, 1, 0], [1, 0, 0]])
    batch = {"x": x, "attention_mask": mask}
    first = compressed()[0].double()  # type: ignore[index]
    for layer in (first, nn.Linear(12, 10).double()):
        model = Masked(layer)
        (place,) = places_of(model, **batch)
        rows = x[mask.bool()]
        assert near(moments(model, [place], [batch])["layer.weight"], rows.T @ rows / 3)


def test_mean_over_two_processes(tmp_path: Path) -> None:
    context = get_context("forkserver")
    members = [context.Process(target=member, args=(rank, str(tmp_path))) for rank in range(2)]
    for each in members:
        each.start()
    for each in members:
        each.join(280)
        each.kill()
    assert [each.exitcode for each in members] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    model, batches = both()
    mean = sum(squares(model(x), x) for x in batches) / 2
    (theirs,) = torch.autograd.grad(mean, [model[0].weight])
    assert torch.equal(first["gradient"], second["gradient"])
    assert near(first["gradient"], theirs)
    assert torch.equal(first["A"], second["A"])
    rows = torch.cat(batches)
    assert near(first["moment"], rows.T @ rows / len(rows))


def both() -> tuple[nn.Sequential, list[Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 5)).double()
    return model, [drawn(4, 7, seed=s) for s in range(2)]


def member(rank: int, folder: str) -> None:
    """Measure with one batch of one's own, as one of two processes."""
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/store", 2)
    distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=150)
    )
    model, batches = both()
    own = [batches[rank]]
    place = places_of(model, own[0])[0]
    ((_, gradient),) = gradients(model, [place], own, squares)
    moment = moments(model, [place], own)["0.weight"]
    tuned = tnc.adapt(model, "lora-ga{rank=2}", match="0", calibration=own, loss=squares)
    core = tuned.deltas()["0.weight"].cores["A"].detach()
    torch.save({"gradient": gradient, "moment": moment, "A": core}, f"{folder}/{rank}.pt")
    distributed.barrier()
    os._exit(0)  # an ordinary exit may find gloo's threads still running, and abort
