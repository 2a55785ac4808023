"""What PEFT's tests ask of an adapted model in training, as differences between PEFT and tnc."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.peft_trial import Trial, gap
from tnc.adapters.bank import bank_of
from tnc.adapters.low_rank import LowRank
from tnc.adapters.peft.layers import layer_for


def gradients(t: Trial) -> float:
    """Backward: equal gradients of all factors, magnitudes, and what is trained beside them."""
    ours, theirs = t.ours(), t.theirs
    theirs.zero_grad()
    t.run(ours.model).square().mean().backward()
    t.run(theirs).square().mean().backward()
    wanted = dict(theirs.base_model.model.named_parameters())
    worst, seen = 0.0, 0
    for path, module in ours.model.named_modules():
        bank = bank_of(module)
        for attribute, delta in (bank.held("default") if bank else {}).items():
            if set(delta.trained) == {"L", "G"}:
                for core, name in (("L", "randlora_lambda"), ("G", "randlora_gamma")):
                    found = wanted[f"{path}.{name}.default"].grad
                    worst, seen = max(worst, gap(delta.cores[core].grad, found)), seen + 1
                continue
            layer = layer_for(ours.model, path, attribute, bank.kind, delta.layer.view).layer
            stacked = len(delta.site.signature.outputs) > 1
            pair = LowRank(
                delta.cores["B"].grad.flatten(2 if stacked else 1),
                delta.cores["A"].grad.flatten(2 if stacked else 1),
            )
            made = dict(layer.write(module, delta.site, pair))
            if "magnitude" in delta.extras:
                made["lora_magnitude_vector.weight"] = layer.magnitude(
                    delta.site, delta.extras["magnitude"].grad
                )
            for key, value in made.items():
                found = named(wanted, path, attribute, key)
                worst, seen = max(worst, gap(value, wanted[found].grad)), seen + 1
    for name, parameter in ours.model.named_parameters():
        if parameter.requires_grad and "adapters_" not in name:
            owner, _, last = name.rpartition(".")
            key = next(
                k
                for k in (
                    f"{owner}.modules_to_save.default.{last}",
                    f"{owner}.base_layer.{last}",
                    name,
                )
                if k in wanted
            )
            worst, seen = max(worst, gap(parameter.grad, wanted[key].grad)), seen + 1
        elif "adapters_" not in name and parameter.grad is not None:
            return math.inf
    return worst if seen else math.inf


def named(wanted: Mapping[str, Any], path: str, attribute: str, key: str) -> str:
    """Return PEFT's name of a parameter that is `key` in the file."""
    head, _, tail = key.partition(".")
    name = f"{head}.default" + (f".{tail}" if tail else "")
    order = ["out", "down", "up"] if attribute in ("up", "down", "out") else [attribute]
    return f"{path}{'.base_layer' * order.index(attribute)}.{name}"


def training(t: Trial) -> float:
    """Three steps of SGD: equal outputs after them, the base untouched."""
    ours, theirs = t.ours(), t.wrapped()
    before = {name: p.detach().clone() for name, p in t.base.named_parameters()}
    for model in (ours.model, theirs):
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            t.run(model).square().mean().backward()
            optimizer.step()
    same = all(torch.equal(p, before[name]) for name, p in t.base.named_parameters())
    return gap(t.run(ours.model), t.run(theirs)) if same else math.inf


def checkpointing(t: Trial) -> float:
    """Train with gradients checkpointed: the same gradients."""
    ours = t.ours()
    ours.model.train()
    found = []
    for _ in range(2):
        ours.model.zero_grad()
        torch.manual_seed(0)
        t.run(ours.model).square().mean().backward()
        found.append([p.grad.clone() for p in ours.parameters() if p.grad is not None])
        ours.model.gradient_checkpointing_enable({"use_reentrant": False})
    return max(gap(a, b) for a, b in zip(*found)) if len(found[0]) == len(found[1]) else math.inf
