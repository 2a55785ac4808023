"""Lines of convolutions as source: what runs, and what a person reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from tnc.kernels.execute import execute
from tnc.nn.conv import Call
from tnc.nn.conv_stage import Line, Stage, is_last, laid_last
from tnc.nn.packed import OPS

if TYPE_CHECKING:
    from tnc.nn.conv_choice import Choice


def moved(x: Tensor, legs: tuple[int, ...], places: tuple[int, ...]) -> Tensor:
    """Permute the legs of the channels: their sizes, and where each new one was.

    What is in the format with channels last stays in it.
    """
    last = is_last(x)
    if last:
        x = x.movedim(1, -1)
    axis = x.dim() - 1 if last else 1
    split = torch.unflatten(x, axis, legs)
    order = [
        *range(axis),
        *(axis + place for place in places),
        *range(axis + len(legs), split.dim()),
    ]
    found = split.permute(order).flatten(axis, axis + len(legs) - 1)
    return found.movedim(-1, 1) if last else found


NAMES: dict[str, Any] = {
    **{f"conv{n}d": getattr(functional, f"conv{n}d") for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": getattr(functional, f"conv_transpose{n}d") for n in (1, 2, 3)},
    "pad": functional.pad,
    "unflatten": torch.unflatten,
    "bmm": torch.bmm,
    "baddbmm": torch.baddbmm,
    "moved": moved,
    "laid_last": laid_last,
    **({"onednn": OPS[0]} if OPS else {}),
}


@lru_cache(maxsize=4096)
def function(source: str) -> Callable[..., Tensor]:
    """Return the `forward` of a source."""
    found: Callable[..., Tensor] = execute(source, NAMES)["forward"]
    return found


def emit(choice: Choice, n: int, bias: bool) -> str:
    """Write `forward(x, *weights)`, or with the bias last, on inputs of `n` axes."""
    names = weight_names(choice)
    lines = list(_body(choice, n, names, bias))
    head = ", ".join(["x", *(name for own in names for name in own), *(["bias"] if bias else [])])
    return "\n".join([f"def forward({head}):", *(f"    {line}" for line in lines)])


def weight_names(choice: Choice) -> list[list[str]]:
    """Name the weights of all stages as no other name of a source is."""
    seen: dict[str, int] = {}
    found = []
    for line in choice.lines:
        own = []
        for stage in line.stages:
            name = "_".join(line.made_of(stage)) if isinstance(line, Line) else "W"
            name = name if name[0].isupper() else f"C{name}"
            seen[name] = seen.get(name, 0) + 1
            own.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
        found.append(own)
    return found


def weights_text(choice: Choice) -> Iterator[str]:
    """Yield how the weights of all stages are made of the cores, a line each."""
    for line, names, packed in zip(choice.lines, weight_names(choice), choice.packed):
        for stage, name, is_packed in zip(line.stages, names, packed):
            if isinstance(line, Line):
                cores = " * ".join(line.made_of(stage))
                made = f"{cores} as {' x '.join(map(str, stage.shape))}"
            else:
                made = f"the dense weight, rebuilt, {' x '.join(map(str, stage.shape))}"
            yield f"{name} = {made}{', as oneDNN packs it' if is_packed else ''}"


def _body(choice: Choice, n: int, names: list[list[str]], bias: bool) -> Iterator[str]:
    if choice.between:
        yield from _between(choice.lines[0].stages, names[0], choice.packed[0], n, bias)
        return
    values, rides = [], False
    for number, (line, own, packed) in enumerate(zip(choice.lines, names, choice.packed)):
        takes = bias and not rides and line.takes_bias
        rides |= takes
        value = f"y{number}" if len(choice.lines) > 1 else "y"
        before = "x"
        whole, groups = (line.whole, line.groups) if isinstance(line, Line) else (None, 1)
        if whole is not None and whole.pad:
            # only the side that does not tell the group can be padded where there are groups
            wide = (0, 0) * n + (0, whole.pad)
            yield f"{value} = pad(unflatten(x, 1, ({groups}, -1)), {wide}).flatten(1, 2)"
            before = value
        for place, stage in enumerate(line.stages):
            final = place == len(line.stages) - 1
            yield from _stage(stage, own[place], packed[place], n, (before, value), takes and final)
            before = value
        if isinstance(line, Line) and line.moved is not None:
            yield f"{value} = moved({value}, {line.moved.legs}, {line.moved.places})"
        if whole is not None and whole.covers != whole.crop:
            cut = f"unflatten({value}, 1, ({groups}, -1)).narrow(2, 0, {whole.crop})"
            yield f"{value} = {cut}.flatten(1, 2)"
        values.append(value)
    total = " + ".join(values)
    if bias and not rides:
        total += f" + bias.view(-1{', 1' * n})"
    yield f"return laid_last({total})" if choice.last else f"return {total}"


def _stage(
    stage: Stage, weight: str, packed: bool, n: int, names: tuple[str, str], bias: bool
) -> Iterator[str]:
    """Yield one stage from the value of the first name to that of the second."""
    before, after = names
    if stage.moved is not None:
        yield f"{after} = moved({before}, {stage.moved.legs}, {stage.moved.places})"
        before = after
    if stage.passengers > 1:
        yield f"{after} = unflatten({before}, 1, ({stage.passengers}, -1)).flatten(0, 1)"
        before = after
    yield f"{after} = {_call(stage.call, before, weight, 'bias' if bias else 'None', packed, n)}"
    if stage.passengers > 1:
        yield f"{after} = unflatten({after}, 0, (-1, {stage.passengers})).flatten(1, 2)"


def _call(call: Call, x: str, weight: str, bias: str, packed: bool, n: int) -> str:
    if packed:
        options = f"{call.padding}, {call.stride}, {call.dilation}, {call.groups}"
        return f'onednn({x}, {weight}, {bias}, {options}, "none", (), "")'
    if call.turned:
        options = f"{call.stride}, {call.padding}, {call.extra}, {call.groups}, {call.dilation}"
        return f"conv_transpose{n}d({x}, {weight}, {bias}, {options})"
    plain = call.groups == 1 and not any(call.padding)
    if plain and set(call.stride) == set(call.dilation) == {1}:
        return f"conv{n}d({x}, {weight}{'' if bias == 'None' else ', ' + bias})"
    options = f"{call.stride}, {call.padding}, {call.dilation}, {call.groups}"
    return f"conv{n}d({x}, {weight}, {bias}, {options})"


def _between(
    stages: Sequence[Stage], names: list[str], packed: Sequence[bool], n: int, bias: bool
) -> Iterator[str]:
    """Yield lines that enter by a matrix product and leave by one: no activation is permuted."""
    first, last = names[0], names[-1]
    yield "count, _, *sizes = x.shape"
    yield f"wide = {first}.flatten(1).t().expand(count, -1, -1)"
    yield "y = bmm(x.flatten(2).transpose(1, 2), wide)"
    yield "y = unflatten(y, 1, sizes).movedim(-1, 1)"
    for stage, name, own in list(zip(stages, names, packed))[1:-1]:
        yield from _stage(stage, name, own, n, ("y", "y"), False)
    yield "rows = y.movedim(1, -1).flatten(1, -2).transpose(1, 2)"
    yield f"wide = {last}.flatten(1).expand(count, -1, -1)"
    yield "z = baddbmm(bias.view(-1, 1), wide, rows)" if bias else "z = bmm(wide, rows)"
    yield "return unflatten(z, 2, y.shape[2:])"
