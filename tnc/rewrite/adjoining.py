"""Whether two layers that are neighbours in evaluation are so in training too.

A trace is made in evaluation mode, where dropout does nothing and leaves no operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from tnc.capture.undisturbed import copied
from tnc.rewrite.subject import Subject

Pair = tuple[str, str]


def apart_in_training(subject: Subject, pairs: Sequence[Pair]) -> dict[Pair, str]:
    """Run a copy of the model on the probe in training mode; say what keeps layers apart there.

    Pairs of paths that are not in the result have nothing between them: what the second reads is
    what the first made, value for value.
    """
    if not pairs:
        return {}
    model = copied(subject.model)
    seen: dict[tuple[str, str], list[Tensor]] = {}
    with ExitStack() as stack:
        for first, second in pairs:
            stack.callback(_watch(model, first, seen, "out").remove)
            stack.callback(_watch(model, second, seen, "in").remove)
        try:
            model.train()
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model(*subject.probe[0], **subject.probe[1])
        except Exception as error:
            told = str(error).strip().splitlines()
            reason = f"the model does not run in training mode ({told[0] if told else error!r})"
            return dict.fromkeys(pairs, reason)
    return {pair: reason for pair in pairs if (reason := _differ(seen, *pair))}


def _watch(
    model: nn.Module, path: str, seen: dict[tuple[str, str], list[Tensor]], side: str
) -> torch.utils.hooks.RemovableHandle:
    module = model.get_submodule(path)
    held = seen.setdefault((path, side), [])

    def made(_: nn.Module, args: Any, out: Tensor) -> None:
        held.append(out.detach().clone())

    def read(_: nn.Module, args: Any, kwargs: Any) -> None:
        held.append((args[0] if args else next(iter(kwargs.values()))).detach().clone())

    if side == "out":
        return module.register_forward_hook(made)
    return module.register_forward_pre_hook(read, with_kwargs=True)


def _differ(seen: dict[tuple[str, str], list[Tensor]], first: str, second: str) -> str:
    made, read = seen[first, "out"], seen[second, "in"]
    if len(made) != 1 or len(read) != 1:
        return "one is not called once in training mode"
    a, b = made[0], read[0]
    same = a.shape[-1] == b.shape[-1] and a.numel() == b.numel()
    if same and torch.equal(a.reshape(-1), b.reshape(-1)):
        return ""
    return "something is between them in training mode (dropout?)"
