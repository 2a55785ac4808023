"""Chosen kernels for people, and as plain data: programs, source, times, why the others lost."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from textwrap import indent
from typing import Any

from tnc.kernels.shown import Contender, Explained, Shown, times, us
from tnc.nn.kinds import Kind

LEGEND = (
    "A value is shown as it lies in memory, [outermost .. innermost leg]. In a product, m are legs "
    "that stay,\nn those that the operand brings, k those summed, b those of a batch. After # the "
    "library's call: (batch x) m x n x k."
)
Chosen = Sequence[tuple[Kind, Sequence[Explained]]]
"""Kinds of layers with what was chosen for them."""


def kernels_text(chosen: Chosen, training: bool, how: str) -> str:
    """Write what was chosen for every kind of layer, and why."""
    shown = [(kind, [each.shown() for each in outcomes]) for kind, outcomes in chosen]
    blocks = [f"Kernels for {_purpose(training)}, chosen by {_told(how)}.\n{LEGEND}"]
    blocks += dict.fromkeys(each.prices for _, every in shown for each in every)
    for kind, every in shown:
        head = f"{_paths(kind)}\n  {kind.structure}"
        if kind.reason:
            blocks.append(f"{head}\n  no generated kernel: {kind.reason}")
            continue
        blocks.append(f"{head}\n  {_dtype(kind)}, {'with' if kind.bias else 'without'} bias")
        blocks += [indent(_outcome(each, kind), "  ") for each in every]
    return "\n\n".join(blocks)


def kernels_json(chosen: Chosen) -> list[dict[str, Any]]:
    """Write the same as plain data; seconds, FLOPs of the forward, 0 where nothing was measured."""
    return [
        {
            "paths": list(kind.paths),
            "structure": str(kind.structure),
            "view": kind.view.name,
            "dtype": _dtype(kind),
            "bias": kind.bias,
            "reason": kind.reason,
            "kernels": [_as_json(each.shown()) for each in outcomes],
        }
        for kind, outcomes in chosen
    ]


def _as_json(found: Shown) -> dict[str, Any]:
    names = ("equation", "training", "threads", "device", "predicted", "measured", "dense", "flops",
             "source")  # fmt: skip
    return {
        **{name: getattr(found, name) for name in names},
        **found.figures,
        "libraries": list(found.libraries),
        "contenders": [
            {
                "predicted": other.predicted,
                "measured": other.measured,
                "flops": other.flops,
                "differs": list(other.differs),
            }
            for other in found.contenders
        ],
        "notes": list(found.notes),
        "sha256": sha256(found.source.encode()).hexdigest(),
    }


def _outcome(found: Shown, kind: Kind) -> str:
    lines = [
        f"{found.met}: {times(found)}, {found.flops:,} FLOPs, {found.manner}; "
        f"a dense layer: predicted {us(found.dense)}, {found.dense_flops:,} FLOPs"
    ]
    if found.kept:
        share = f"{found.kept_share:.2f} times the bytes of the input"
        lines.append(f"  keeps {', '.join(found.kept)} for the backward, {share}")
    if found.equation != str(kind.structure):
        lines.append(f"  of {found.equation}")
    wide = max((len(text) for text, note in found.steps if note), default=0)
    for text, note in found.steps:
        lines.append(f"  {text.ljust(wide)}  # {note}" if note else f"  {text}")
    lines += ["why not otherwise", *_contenders(found.contenders)]
    lines += [f"  {note}" for note in found.notes]
    return "\n".join([*lines, "source", indent(found.source, "  ")])


def _contenders(others: Sequence[Contender]) -> list[str]:
    if not others:
        return ["  there is no other way within sight of this one"]
    told: dict[str, int] = {}
    for other in others:
        measured = f", measured {us(other.measured)}" if other.measured else ""
        text = f"predicted {us(other.predicted)}{measured}, {other.flops:,} FLOPs: "
        text += "; ".join(other.differs)
        told[text] = told.get(text, 0) + 1
    return [f"  {text}" + (f" ({count} such)" if count > 1 else "") for text, count in told.items()]


def _paths(kind: Kind) -> str:
    first, more = ", ".join(kind.paths[:3]), len(kind.paths) - 3
    return first + (f" and {more} more" if more > 0 else "")


def _dtype(kind: Kind) -> str:
    return str(kind.dtype).removeprefix("torch.")


def _purpose(training: bool) -> str:
    return "training (forward and backward together)" if training else "inference"


def _told(how: str) -> str:
    return "predicted time" if how == "model" else "measured time"
