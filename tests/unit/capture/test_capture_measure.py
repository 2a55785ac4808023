"""Moments, means, frequencies and gradient Grams against brute force."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from tests import zoo
from tnc.capture import Measurements, capture, measure, shares
from tnc.capture.graph import escaping
from tnc.errors import CaptureError


def _run(model: nn.Module, batches: list[Any], **options: Any) -> Measurements:
    first = batches[0]
    args = (first,) if isinstance(first, Tensor) else ()
    trace = capture(model, args, {} if args else first, graph=False)
    return measure(model, trace.sites, batches, **options)


def _inputs(model: nn.Module, path: str, run: Callable[[], Any]) -> list[Tensor]:
    seen: list[Tensor] = []
    hook = model.get_submodule(path).register_forward_pre_hook(
        lambda module, args: seen.append(args[0].detach())
    )
    with torch.no_grad():
        run()
    hook.remove()
    return seen


def _moment(rows: Tensor) -> Tensor:
    return rows.double().T @ rows.double() / len(rows)


def _projection(output: Any, batch: Any, generator: Generator) -> Tensor:
    output = output if isinstance(output, Tensor) else output.last_hidden_state
    return (output * torch.randn(output.shape, generator=generator)).sum()


def test_linear_moments_over_batches() -> None:
    model = zoo.case("prime").build()
    batches = [torch.randn(n, 17) for n in (5, 9)]
    found = _run(model, batches)
    for path in ("0", "2", "4"):
        rows = torch.cat([_inputs(model, path, lambda b=b: model(b))[0] for b in batches])
        measured = found.of(f"{path}.weight")
        torch.testing.assert_close(measured.moment, _moment(rows), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(measured.mean, rows.double().mean(0), rtol=1e-5, atol=1e-7)
        assert (measured.rows, measured.samples) == (14, 14)
    assert found.batches == 2 and not found.notes


@pytest.mark.parametrize("path", ["strided", "dilated", "circular"])
def test_convolution_moments(path: str) -> None:
    case = zoo.case("convolutions")
    model, x = case.build(), torch.randn(3, 3, 8, 8)
    layer = model.get_submodule(path)
    assert isinstance(layer, nn.Conv2d)
    found = _run(model, [x])
    (taken,) = _inputs(model, path, lambda: model(x))
    sides = layer._reversed_padding_repeated_twice
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = functional.pad(taken, sides, mode=mode).double()
    rows = []
    height, width = layer.kernel_size
    (sh, sw), (dh, dw) = layer.stride, layer.dilation
    for top in range(0, padded.shape[2] - dh * (height - 1), sh):
        for left in range(0, padded.shape[3] - dw * (width - 1), sw):
            patch = padded[:, :, top : top + dh * height : dh, left : left + dw * width : dw]
            rows.append(patch[:, :, :height, :width].flatten(1))
    measured = found.of(f"{path}.weight")
    torch.testing.assert_close(measured.moment, _moment(torch.cat(rows)), rtol=1e-5, atol=1e-6)
    assert measured.rows == sum(len(r) for r in rows)
    assert any("grouped.weight: no input moment" in note for note in found.notes)


def test_masked_rows_are_left_out() -> None:
    case = zoo.case("bert")
    model, (_, batch) = case.build(), case.inputs()
    path = "encoder.layer.1.intermediate.dense"
    (rows,) = _inputs(model, path, lambda: model(**batch))
    flat, kept = rows.flatten(0, 1), batch["attention_mask"].flatten().bool()
    found, whole = _run(model, [batch]), _run(model, [batch], masked=None)
    name = f"{path}.weight"
    torch.testing.assert_close(found.of(name).moment, _moment(flat[kept]), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(whole.of(name).moment, _moment(flat), rtol=1e-5, atol=1e-7)
    assert not torch.allclose(whole.of(name).moment, found.of(name).moment, rtol=1e-3)
    assert "pooler" in " ".join(_run(model, [batch], gradients=_projection).notes)
    assert found.of(name).rows == int(kept.sum()) and found.of(name).samples == 2
    table = found.of("embeddings.word_embeddings.weight")
    counts = torch.bincount(batch["input_ids"].flatten()[kept], minlength=60).double()
    torch.testing.assert_close(table.frequencies, counts / counts.sum())
    assert table.moment is table.frequencies and table.mean is None
    pooled = found.of("pooler.dense.weight")
    assert pooled.rows == 2


@pytest.mark.parametrize(
    ("name", "path"),
    [("bert", "encoder.layer.0.output.dense"), ("convolutions", "dilated"), ("prime", "0")],
)
def test_output_grams_equal_brute_force(name: str, path: str) -> None:
    case = zoo.case(name)
    model = case.build()
    args, batch = case.inputs()
    batch = args[0] if args else batch
    samples, probes = (5 if name == "prime" else 2), 2
    found = _run(model, [batch], gradients=_projection, probes=probes, masked=None)
    grads: list[Tensor] = []

    def hook(module: nn.Module, args: Any, out: Tensor) -> None:
        out.register_hook(lambda g: grads.append(g.double()))

    handle = model.get_submodule(path).register_forward_hook(hook)
    output = model(batch) if args else model(**batch)
    generator = Generator().manual_seed(0)
    for _ in range(probes):
        _projection(output, batch, generator).backward(retain_graph=True)
    handle.remove()
    rows = torch.cat([(g.movedim(1, -1) if g.dim() == 4 else g).flatten(0, -2) for g in grads])
    want = rows.T @ rows / (samples * probes)
    measured = found.of(f"{path}.weight").outputs
    torch.testing.assert_close(measured, want, rtol=1e-4, atol=1e-7 * float(want.max()) + 1e-12)


def test_the_figures_predict_the_change_of_the_output() -> None:
    """With one row a sample, `tr(G D C D^T)` is the mean square that the probe sees."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    batches = [torch.randn(256, 6, dtype=torch.float64) for _ in range(4)]
    measured = _run(model, batches, gradients=_projection, probes=4).of("0.weight")
    change = torch.randn(8, 6, dtype=torch.float64) * 1e-4
    assert measured.outputs is not None and measured.moment is not None
    predicted = torch.trace(measured.outputs @ change @ measured.moment @ change.T)
    before = [model(x) for x in batches]
    with torch.no_grad():
        model[0].weight += change
    actual = torch.cat([(model(x) - y).square().sum(1) for x, y in zip(batches, before)]).mean()
    assert 0.8 < float(predicted / actual.detach()) < 1.25


def test_features_of_a_table() -> None:
    model = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 2))
    ids = torch.tensor([[0, 1, 1], [4, 1, 2]])
    measured = _run(model, [ids], gradients=lambda out, batch, g: out.square().sum()).of("0.weight")
    table = model[0](ids).detach().requires_grad_()
    model[1](table).square().sum().backward()
    assert table.grad is not None
    rows = table.grad.flatten(0, 1).double()
    torch.testing.assert_close(measured.features, rows.T @ rows / 2, rtol=1e-5, atol=1e-7)
    assert measured.outputs is None and measured.rows == 6


def test_parts_of_a_packed_weight_get_their_own_gradients() -> None:
    case = zoo.case("seq2seq")
    model, (args, _) = case.build(), case.inputs()
    trace = capture(model, args, graph=False)
    found = measure(model, trace.sites, [args], gradients=_projection, samples=lambda b: 2)
    measured = found.of("decoder.layers.0.multihead_attn.in_proj_weight")
    assert measured.outputs is not None and measured.outputs.shape == (48, 48)
    assert (
        float(measured.outputs[:16, 16:].abs().max()) == 0 < float(measured.outputs[:16, :16].max())
    )
    assert measured.rows == 8 + 12 and measured.samples == 2


@pytest.mark.parametrize("case", zoo.CASES, ids=lambda case: case.name)
def test_the_whole_zoo_is_measured_and_restored(case: zoo.Case) -> None:
    model = case.build().train()
    args, kwargs = case.inputs()
    trace = capture(model, args, kwargs, graph=False)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]

    def probe(output: Any, batch: Any, generator: Generator) -> Tensor:
        parts = [part.float() for part in escaping(output) if part.requires_grad]
        return sum((p * torch.randn(p.shape, generator=generator)).sum() for p in parts)

    batch = kwargs or args
    one = measure(model, trace.sites, [batch], gradients=probe)
    two = measure(model, trace.sites, [batch], gradients=probe)
    for site in trace.sites:
        first, again = one.of(site.name), two.of(site.name)
        side = first.features if site.op == "embedding" else first.outputs
        assert side is not None and bool(torch.isfinite(side).all())
        assert (first.moment is None) == (site.groups > 1)
        assert torch.equal(side, again.features if site.op == "embedding" else again.outputs)
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(torch.equal(state[name], t) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())


def test_wide_sides_keep_their_diagonal() -> None:
    model, x = zoo.case("prime").build(), torch.randn(5, 17)
    whole = _run(model, [x], gradients=_projection)
    found = _run(model, [x], gradients=_projection, limit=20)
    measured = found.of("2.weight")
    assert measured.moment is not None and measured.moment.shape == (31,)
    torch.testing.assert_close(measured.moment, whole.of("2.weight").moment.diagonal())
    torch.testing.assert_close(
        found.of("0.weight").outputs, whole.of("0.weight").outputs.diagonal()
    )
    assert "2.weight: moment is its diagonal, 31 > 20" in found.notes


def test_flags_are_restored_when_the_probe_raises() -> None:
    model = zoo.case("shared").build().train()
    args, _ = zoo.case("shared").inputs()
    flags = [p.requires_grad for p in model.parameters()]

    def fails(output: Any, batch: Any, generator: Generator) -> Tensor:
        raise ValueError("no")

    sites = capture(model, args, graph=False).sites
    with pytest.raises(ValueError, match="no"):
        measure(model, sites, [args], gradients=fails)
    with pytest.raises(CaptureError, match="does not depend"):
        measure(model, sites, [args], gradients=lambda o, b, g: o.detach().sum())
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(module.training for module in model.modules())
    with pytest.raises(CaptureError, match="no calibration batch"):
        measure(model, sites, [])
    with pytest.raises(CaptureError, match="was not measured"):
        measure(model, sites, [args]).of("nonsense")


def test_shares_of_time_and_work() -> None:
    case = zoo.case("half")
    model, (args, _) = case.build(), case.inputs()
    sites = capture(model, args, graph=False).sites
    found = shares(model, sites, args, repeats=3)
    assert [share.site for share in found] == ["0.weight", "2.weight"]
    assert abs(sum(share.work for share in found) - 1) < 1e-12
    assert all(
        share.time > 0 and share.flops == site.cost.flops for share, site in zip(found, sites)
    )
