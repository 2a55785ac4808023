"""Chosen kernels for people, and as plain data: programs, source, times, why the others lost."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from textwrap import indent
from typing import Any

from tnc.kernels.choose import Task
from tnc.kernels.machine import state
from tnc.kernels.outcome import Contender, Outcome, kept_share, libraries, tiling, where
from tnc.nn.kinds import Kind

LEGEND = (
    "A value is shown as it lies in memory, [outermost .. innermost leg]. In a product, m are legs "
    "that stay,\nn those that the operand brings, k those summed, b those of a batch. After # the "
    "library's call: (batch x) m x n x k."
)
Chosen = Sequence[tuple[Kind, Sequence[tuple[Outcome, bool]]]]
"""Kinds of layers with what was chosen for them, each with whether the bias is added there."""


def kernels_text(chosen: Chosen, training: bool, how: str) -> str:
    """Write what was chosen for every kind of layer, and why."""
    blocks = [f"Kernels for {_purpose(training)}, chosen by {_told(how)}.\n{LEGEND}"]
    blocks += [
        f"{task.dtype}, {where(task)}: {state(task.dtype, task.threads, task.device)}"
        for task in _machines(chosen)
    ]
    for kind, outcomes in chosen:
        head = f"{_paths(kind)}\n  {kind.structure}"
        if kind.reason:
            blocks.append(f"{head}\n  no generated kernel: {kind.reason}")
            continue
        blocks.append(f"{head}\n  {_dtype(kind)}, {'with' if kind.bias else 'without'} bias")
        blocks += [indent(_outcome(found, bias, kind), "  ") for found, bias in outcomes]
    return "\n\n".join(blocks)


def kernels_json(chosen: Chosen) -> list[dict[str, Any]]:
    """Write the same as plain data; seconds, FLOPs of the forward, 0 where nothing was measured."""
    return [
        {
            "paths": list(kind.paths),
            "structure": str(kind.structure),
            "view": kind.view,
            "dtype": _dtype(kind),
            "bias": kind.bias,
            "reason": kind.reason,
            "kernels": [_as_json(found, bias) for found, bias in outcomes],
        }
        for kind, outcomes in chosen
    ]


def _as_json(found: Outcome, bias: bool) -> dict[str, Any]:
    task, choice, source = found.task, found.choice, found.source(bias)
    return {
        "equation": str(task.network),
        "rows": [found.fewest, task.rows],
        "training": task.training,
        "threads": task.threads,
        "device": task.device,
        "predicted": choice.seconds,
        "measured": choice.measured,
        "dense": found.dense,
        "flops": found.flops,
        "tile": choice.way.tile,
        "backward tile": choice.way.back.tile,
        "kept": list(choice.way.back.kept),
        "libraries": list(libraries(choice, task.device)),
        "steps": [
            {"text": line.text, "shape": list(line.shape), "flops": line.flops}
            | ({"library": line.backend} if line.backend else {})
            for line in found.lines
        ],
        "contenders": [
            {
                "predicted": other.predicted,
                "measured": other.measured,
                "flops": other.flops,
                "differs": list(other.differs),
            }
            for other in found.contenders
        ],
        "source": source,
        "sha256": sha256(source.encode()).hexdigest(),
    }


def _outcome(found: Outcome, bias: bool, kind: Kind) -> str:
    choice, task = found.choice, found.task
    rows = f"{found.fewest} to {task.rows} rows" if task.rows > 1 else "1 row"
    measured = f"measured {_us(choice.measured)}, " if choice.measured else ""
    lines = [
        f"{rows}: predicted {_us(choice.seconds)}, {measured}{found.flops:,} FLOPs, "
        f"{tiling(choice.way)}; "
        f"a dense layer: predicted {_us(found.dense)}, {_dense_flops(found):,} FLOPs"
    ]
    if choice.way.back.kept:
        share = f"{kept_share(choice):.2f} times the bytes of the input"
        lines.append(f"  keeps {', '.join(choice.way.back.kept)} for the backward, {share}")
    if len(kind.parts) > 1:
        lines.append(f"  of {task.network}")
    wide = max(len(line.text) for line in found.lines if line.shape or line.backend)
    for line in found.lines:
        note = _call(line.shape, line.flops, line.backend)
        lines.append(f"  {line.text.ljust(wide)}  # {note}" if note else f"  {line.text}")
    lines += ["why not otherwise", *_contenders(found.contenders)]
    return "\n".join([*lines, "source", indent(found.source(bias), "  ")])


def _call(shape: tuple[int, ...], flops: int, library: str) -> str:
    if not shape:
        return ""
    if not library:
        return f"{shape[0]:,} entries moved" if shape[0] else "memory stays as it is"
    sizes = " x ".join(map(str, shape if shape[0] > 1 else shape[1:]))
    return f"{sizes}, {flops:,} FLOPs, {library}"


def _contenders(others: Sequence[Contender]) -> list[str]:
    if not others:
        return ["  there is no other way within sight of this one"]
    told: dict[str, int] = {}
    for other in others:
        measured = f", measured {_us(other.measured)}" if other.measured else ""
        text = f"predicted {_us(other.predicted)}{measured}, {other.flops:,} FLOPs: "
        text += "; ".join(other.differs)
        told[text] = told.get(text, 0) + 1
    return [f"  {text}" + (f" ({count} such)" if count > 1 else "") for text, count in told.items()]


def _dense_flops(found: Outcome) -> int:
    return 2 * found.task.rows * found.task.network.signature.parameters


def _machines(chosen: Chosen) -> list[Task]:
    """Return one task for each table of prices."""
    tasks = [found.task for _, outcomes in chosen for found, _ in outcomes]
    return list({(task.dtype, task.threads, task.device): task for task in tasks}.values())


def _paths(kind: Kind) -> str:
    first, more = ", ".join(kind.paths[:3]), len(kind.paths) - 3
    return first + (f" and {more} more" if more > 0 else "")


def _dtype(kind: Kind) -> str:
    return str(kind.dtype).removeprefix("torch.")


def _purpose(training: bool) -> str:
    return "training (forward and backward together)" if training else "inference"


def _told(how: str) -> str:
    return "predicted time" if how == "model" else "measured time"


def _us(seconds: float) -> str:
    return f"{1e6 * seconds:,.1f} us"
