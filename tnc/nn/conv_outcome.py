"""Why a convolution is run in one way: its stages in numbers, what the others would have cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tnc.derive.conv_seconds import dense_way
from tnc.kernels.device import CPU, standard
from tnc.kernels.machine import current
from tnc.kernels.shown import Contender, Explained, Shown, counted
from tnc.nn.conv_choice import Asked, Choice, load_of, ranked
from tnc.nn.conv_source import weight_names, weights_text
from tnc.nn.conv_stage import Line, Stage
from tnc.nn.conv_tuning import ConvTask, choice_from, choice_to

PRICES = "convolutions: rates of one core of an AMD EPYC, of which only ratios matter"


@dataclass(frozen=True)
class ConvOutcome(Explained):
    """What was chosen for a convolution, and the contenders, fastest first."""

    task: ConvTask
    choice: Choice
    others: tuple[Choice, ...]
    bias: bool = False

    def shown(self) -> Shown:
        task, choice, asked = self.task, self.choice, self.task.asked
        images, channels, *sizes = asked.shape
        steps = list(_steps(task, choice))
        signature = task.structure.signature
        out = task.options.sizes(sizes)
        worked = prod(sizes if task.options.transposed else out)
        return Shown(
            equation=str(task.structure),
            met=f"{counted(images, 'image')} of {' x '.join(map(str, (channels, *sizes)))}",
            manner=f"channels {'last' if asked.last else 'first'}",
            used=_way(choice),
            dtype=task.dtype,
            threads=task.threads,
            device=CPU,
            training=task.training,
            predicted=choice.seconds,
            measured=choice.measured,
            dense=_dense(task),
            flops=flops(task, choice),
            dense_flops=2 * images * worked * signature.parameters,
            steps=tuple((text, _note(each)) for text, each in steps),
            libraries=tuple(each.backend for _, each in steps),
            contenders=tuple(
                Contender(other.seconds, other.measured, flops(task, other), unlike(choice, other))
                for other in self.others
            ),
            source=self.source(),
            name=f"images-{'x'.join(map(str, asked.shape))}-{'last' if asked.last else 'first'}"
            + ("-training" if task.training else ""),
            prices=PRICES,
            figures={
                "shape": list(asked.shape),
                "channels_last": asked.last,
                "steps": [
                    {"text": text, "flops": each.flops, "library": each.backend}
                    for text, each in steps
                ],
            },
        )

    def source(self) -> str:
        """Return the source that runs, below what its weights are."""
        made = "\n".join(f"# {line}" for line in weights_text(self.choice))
        return f"{made}\n{self.choice.source(self.bias)}"

    def entry(self) -> dict[str, Any]:
        task = self.task
        return {
            "structure": str(task.structure),
            "asked": task.asked._asdict(),
            "dtype": task.dtype,
            "threads": task.threads,
            "device": CPU,
            "training": task.training,
            "bias": self.bias,
            "machine": current(task.dtype, task.threads).key,
            "choice": choice_to(self.choice),
        }

    def again(self) -> bool:
        task = self.task
        return ranked(task.options, task.terms, task.asked)[0] == self.choice


def recorded(task: ConvTask, entry: Mapping[str, Any]) -> ConvOutcome:
    """Return the outcome that was written down for a task. Raises KernelError where none fits."""
    return ConvOutcome(task, choice_from(entry["choice"], task), (), entry["bias"])


def asked_from(data: Mapping[str, Any]) -> Asked:
    """Read what a way was chosen for."""
    return Asked(tuple(data["shape"]), data["last"], data["keeps"], data["packs"])


@dataclass(frozen=True)
class Work:
    """What one stage does: FLOPs of all images, and the library that is called."""

    flops: int
    backend: str


def flops(task: ConvTask, choice: Choice) -> int:
    """Return the FLOPs of a way's forward, without making weights."""
    return sum(each.flops for _, each in _steps(task, choice))


def _steps(task: ConvTask, choice: Choice) -> Iterator[tuple[str, Work]]:
    """Yield every stage in words, with its work."""
    images, _, *given = task.asked.shape
    for one, names, packed in zip(choice.lines, weight_names(choice), choice.packed):
        sizes = tuple(given)
        for place, (stage, name) in enumerate(zip(one.stages, names)):
            before, sizes = sizes, _sizes(stage, sizes)
            worked = prod(before if stage.call.turned else sizes)
            count = 2 * images * worked * stage.passengers * prod(stage.shape)
            product = choice.between and place in (0, len(one.stages) - 1)
            library = standard(CPU) if product else "onednn"
            kind = ", a matrix product" if product else ", packed" if packed[place] else ""
            yield f"{name}: {_words(stage, before, sizes)}{kind}", Work(count, library)


def _words(stage: Stage, before: Sequence[int], after: Sequence[int]) -> str:
    outside, inside, *kernel = stage.shape
    groups = stage.call.groups
    inside *= groups
    if stage.call.turned:
        outside, inside = stage.shape[1] * groups, stage.shape[0]
    words = [f"{inside} -> {outside} channels"]
    if prod(kernel) > 1:
        words.append(f"kernel {' x '.join(map(str, kernel))}")
    if groups > 1:
        words.append(f"{groups} groups")
    if stage.passengers > 1:
        words.append(f"{stage.passengers} times")
    if stage.moved is not None:
        words.append("after a copy into other order")
    one, other = (" x ".join(map(str, sizes)) for sizes in (before, after))
    words.append(f"{one} pixels" if one == other else f"{one} to {other} pixels")
    return ", ".join(words)


def _sizes(stage: Stage, before: tuple[int, ...]) -> tuple[int, ...]:
    """Return the pixels after a stage; its weight has kernel axes of size 1 where it has none."""
    call = stage.call
    axes = zip(before, stage.shape[2:], call.stride, call.padding, call.dilation, call.extra)
    if call.turned:
        return tuple((m - 1) * s - 2 * p + d * (k - 1) + 1 + e for m, k, s, p, d, e in axes)
    return tuple((m + 2 * p - d * (k - 1) - 1) // s + 1 for m, k, s, p, d, _ in axes)


def _note(work: Work) -> str:
    return f"{work.flops:,} FLOPs, {work.backend}"


def _dense(task: ConvTask) -> float:
    """Return the predicted seconds of a dense layer."""
    options, signature = task.options, task.structure.signature
    (outputs,), (inputs, *kernel) = signature.outputs, signature.inputs
    groups = options.groups
    inside, outside = (inputs, outputs // groups)
    if options.transposed:
        inside, outside = inputs // groups, outputs
    return dense_way(groups, inside, outside, prod(kernel), load_of(options, task.asked))


def _way(choice: Choice) -> str:
    """Say in one line how a way goes."""
    words = ["absorbs " + " + ".join(_order(one) for one in choice.lines)]
    if choice.between:
        words.append("enters and leaves by matrix products")
    if any(any(own) for own in choice.packed):
        words.append("packed weights")
    return "; ".join([*words, f"channels {'last' if choice.last else 'first'}"])


def _order(one: Any) -> str:
    if not isinstance(one, Line):
        return "the dense weight"
    return ", ".join("*".join(one.made_of(stage)) for stage in one.stages)


def unlike(best: Choice, other: Choice) -> tuple[str, ...]:
    """Say in what a way differs from the one that was taken."""
    found = []
    for mine, own in zip(best.lines, other.lines):
        if mine != own:
            found.append(f"absorbs {_order(own)}")
    if best.between != other.between:
        by = "matrix products" if other.between else "convolutions"
        found.append(f"enters and leaves by {by}")
    same = best.lines == other.lines and best.between == other.between
    if same and best.packed != other.packed:
        packed = [
            name
            for names, own in zip(weight_names(other), other.packed)
            for name, is_packed in zip(names, own)
            if is_packed
        ]
        found.append(f"packed: {' '.join(packed) or 'no weight'}")
    return tuple(found) or ("nothing but chance",)
