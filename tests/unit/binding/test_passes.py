"""Binding over passes: what became of the state of weights that passes folded, merged, laid out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tnc
from tnc.binding import Report
from tnc.rewrite import Compiled

X = torch.randn(8, 12, generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def convolutions() -> nn.Module:
    """Two convolutions with batch norms behind, whose statistics are far from unit ones."""
    torch.manual_seed(0)
    norms = nn.BatchNorm2d(8), nn.BatchNorm2d(6)
    for norm in norms:
        norm.running_var.fill_(0.6)
        norm.weight.data.uniform_(0.8, 1.3)
    first, second = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 6, 3)
    return nn.Sequential(first, norms[0], nn.ReLU(), second, norms[1], nn.Flatten()).eval()


def linears() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4)).eval()


def begun(
    model: nn.Module, x: Tensor, kind: type = torch.optim.SGD, **options: Any
) -> torch.optim.Optimizer:
    options = options or {"lr": 1e-3, "momentum": 0.9}
    optimizer = kind(model.parameters(), **options)
    for _ in range(3):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
    return optimizer


def compiled(model: nn.Module, x: Tensor, passes: list[str], **rules: str) -> Compiled:
    made = [{"match": path, "structure": kind, "keep": 0.9} for path, kind in rules.items() if kind]
    made.append({"match": "*", "structure": "dense", "allow_empty": True})
    spec = tnc.Spec(version=1, rules=made, passes=passes, metric="none")
    return tnc.compile(model, spec, example=x)


def lines(report: Report) -> dict[str, tuple[str, str]]:
    return {line.parameter: (line.deed, line.reason) for line in report.lines}


STEPS = ["find-sites", "factorize"]


@pytest.mark.parametrize("policy", ["auto", "pull"])
def test_a_folded_batch_norm_starts_its_weight_anew_and_says_so(policy) -> None:
    model = convolutions()
    optimizer = begun(model, IMAGES)
    assert all(p.grad is not None for p in model.parameters())
    made = compiled(model, IMAGES, ["fold-batch-norm", *STEPS], **{"3": "tucker"})
    report = tnc.bind(model, made, optimizer, policy=policy).report
    found = lines(report)
    assert found["0.weight"] == ("reset", "fold-batch-norm made another weight of it")
    assert found["3.bias"] == ("reset", "fold-batch-norm made another weight of it")
    assert found["0.bias"] == ("new", "made by a pass")
    for norm in ("1", "4"):
        for name in ("weight", "bias"):
            deed, reason = found[f"{norm}.{name}"]
            assert deed == "dropped" and "took it in" in reason
    cores = [name for name in found if name.startswith("3.cores.")]
    assert len(cores) == 3
    for name in cores:
        deed, reason = found[name]
        assert deed == "reset" and "fold-batch-norm made another weight of it" in reason
        core = made.model.get_parameter(name)
        assert not optimizer.state[core]["momentum_buffer"].any() and core.grad is None
    lost = {note.partition(":")[0] for note in report.notes if "gradients so far are lost" in note}
    assert lost == {"0.weight", "3.weight", "3.bias"}
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {
        id(p) for p in made.model.parameters()
    }


def test_without_the_pass_the_same_weight_moves() -> None:
    model = convolutions()
    optimizer = begun(model, IMAGES)
    made = compiled(model, IMAGES, STEPS, **{"3": "tucker"})
    found = lines(tnc.bind(model, made, optimizer).report)
    assert {found[name][0] for name in found if name.startswith("3.cores.")} == {"moved"}
    assert found["1.weight"][0] == found["0.weight"][0] == "carried"


@pytest.mark.parametrize("structure", ["", "low-rank"])
def test_a_merged_layer_starts_anew(structure) -> None:
    model = linears()
    optimizer = begun(model, X)
    made = compiled(model, X, ["merge-linear", *STEPS], **{"0": structure})
    found = lines(tnc.bind(model, made, optimizer, policy="pull").report)
    assert found["1.weight"][0] == found["1.bias"][0] == "dropped"
    assert found["3.weight"][0] == "carried" and found["0.bias"][0] == "reset"
    for name in ("0.cores.A", "0.cores.B") if structure else ("0.weight",):
        assert found[name] == ("reset", "merge-linear made another weight of it")


def test_layers_that_are_merged_as_cores_start_anew() -> None:
    model = linears()
    optimizer = begun(model, X)
    rules = {"0": "low-rank", "1": "low-rank"}
    spec = [{"match": path, "structure": kind, "keep": 0.4} for path, kind in rules.items()]
    spec.append({"match": "*", "structure": "dense"})
    made = tnc.compile(
        model,
        tnc.Spec(version=1, rules=spec, passes=[*STEPS, "merge-adjacent"], metric="none"),
        example=X,
    )
    assert isinstance(made.model[1], nn.Identity)
    found = lines(tnc.bind(model, made, optimizer, policy="pull").report)
    cores = {name: line for name, line in found.items() if name.startswith("0.cores.")}
    assert cores and {deed for deed, _ in cores.values()} == {"reset"}
    assert all("the product of 1 and 0" in reason for _, reason in cores.values())
    assert found["1.weight"][0] == "dropped"


def test_channels_last_carries_what_a_fused_step_reads() -> None:
    """The pass lays out kernels anew; a fused step reads state as the kernel lies."""

    def run(**path: bool) -> tuple[nn.Module, Report]:
        model = convolutions()
        optimizer = begun(model, IMAGES, torch.optim.AdamW, lr=1e-2, **path)
        made = compiled(model, IMAGES, [*STEPS, "channels-last"], **{"3": "tucker"})
        report = tnc.bind(model, made, optimizer, policy="pull").report
        kernel = made.model[0].weight
        assert kernel.is_contiguous(memory_format=torch.channels_last)
        assert optimizer.state[kernel]["exp_avg"].stride() == kernel.stride()
        for _ in range(3):
            optimizer.zero_grad()
            (made.model(IMAGES) - 1).square().mean().backward()
            optimizer.step()
        return made.model, report

    fused, report = run(fused=True)
    plain, _ = run(foreach=False)
    assert lines(report)["0.weight"][0] == "carried"
    for a, b in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_cores_of_another_weight_start_anew_where_only_modules_are_given() -> None:
    model = linears()
    optimizer = begun(model, X)
    made = compiled(model, X, ["merge-linear", *STEPS], **{"0": "low-rank"})
    found = lines(tnc.bind(model, made.model, optimizer).report)
    deed, reason = found["0.cores.A"]
    assert deed == "reset" and "another weight" in reason
