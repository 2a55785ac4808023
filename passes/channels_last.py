"""Keep channels last in memory through a whole convolutional network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tnc.capture.undisturbed import copied
from tnc.nn.channels_last import (
    convolutions,
    keeps,
    lay_out_weights_,
    make_entrance_,
)
from tnc.rewrite import Exact, InParts, Pass, Subject, passes
from tnc.rewrite.contract import outputs_of

Formats = dict[str, bool]


@passes.register("channels-last")
@dataclass(frozen=True)
class ChannelsLast(Pass):
    """Lay out images once, where they enter the model, and the weights of convolutions.

    From there on the library's convolutions, norms, poolings and elementwise functions keep the
    format, and structured layers follow their input. What loses it on the way is told. Nothing is
    done to a model that keeps the format already, whose code does not run with it, or none of whose
    convolutions it reaches. Values do not change, but outputs that are images have other strides.
    """

    contract = Exact(1e-4)
    in_parts = InParts(looks_for=("conv",))

    def apply(self, subject: Subject) -> Subject:
        before, _ = _formats(subject.model, subject)
        if not before:
            return subject.edited("no convolution of two or three axes runs on the example input")
        model = copied(subject.model)
        changed = lay_out_weights_(model)
        if not all(before.values()):
            make_entrance_(model)
        elif not changed:
            return subject.edited("nothing to do: the model keeps channels last as it is")
        try:
            after, outputs = _formats(model, subject)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            return subject.edited(f"left the model: its code fails with channels last: {reason}")
        lost = [path for path, last in after.items() if not last]
        if len(lost) == len(after):
            return subject.edited(
                "left the model: its code lays out the inputs of all convolutions with "
                f"channels first ({', '.join(lost)})"
            )
        lines = [f"laid out the weight of {path}" for path in changed]
        if not all(before.values()):
            lines.insert(0, "images are laid out with channels last where they enter the model")
        lines += [f"left {path}: its input comes with channels first" for path in lost]
        lines += [
            f"output {place} lies with channels last" for place, last in enumerate(outputs) if last
        ]
        return subject.edited(*lines, model=model)


def _formats(model: nn.Module, subject: Subject) -> tuple[Formats, list[bool]]:
    """Run the example; say of every convolution's input, and of every output, if it is so."""
    found: Formats = {}
    handles = []
    for path, module in convolutions(model):

        def seen(_: nn.Module, args: tuple[Any, ...], kwargs: Any, path: str = path) -> None:
            given = args[0] if args else kwargs.get("input")
            if isinstance(given, Tensor):
                found[path] = found.get(path, True) and keeps(given)

        handles.append(module.register_forward_pre_hook(seen, with_kwargs=True))
    try:
        outputs = outputs_of(model, subject.probe)
    finally:
        for handle in handles:
            handle.remove()
    return found, [not out.is_contiguous() and keeps(out) for out in outputs]
