"""The view of a convolution, plain or transposed, over one to three axes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tnc.errors import KernelError
from tnc.kernels.applied import DTYPES
from tnc.kernels.device import CPU
from tnc.net import Signature, Structure
from tnc.nn.conv import Options
from tnc.nn.conv_choice import Asked, conv_terms
from tnc.nn.conv_kernel import ConvKernel
from tnc.nn.conv_outcome import ConvOutcome, asked_from, recorded
from tnc.nn.conv_stage import FORMATS
from tnc.nn.conv_tuning import choices
from tnc.nn.given import Given
from tnc.nn.view import Cores, View


@dataclass(frozen=True)
class ConvView(View):
    """A convolution over any number of axes, with the options of `nn.Conv2d` and its relatives.

    Options have one number an axis; an empty tuple is the library's default. `transposed` is
    `nn.ConvTranspose2d`. The signature is of one group: `(o | i/groups ..)`, and transposed
    `(o/groups | i ..)`. `pixels_in` and `pixels_out` are those of one image, for which the chain is
    chosen.
    """

    name: ClassVar[str] = "conv"
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: str = "zeros"
    pixels_in: int = 1024
    pixels_out: int = 1024
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def prepare(self, structure: Structure) -> ConvKernel:
        options = self.options(structure.signature.inputs[1:])
        return ConvKernel(structure, options, conv_terms(self, structure, options))

    def apply(self, prepared: ConvKernel, cores: Cores, bias: Tensor | None, x: Tensor) -> Tensor:
        return prepared.run(cores, bias, x)

    def why_plain(self, structure: Structure, dtype: torch.dtype, device: str) -> str:
        if structure.stored:
            return "sparse cores are made dense at each call"
        if device != CPU:
            return f"convolutions are chosen on the CPU, on {device} the way of fewest FLOPs runs"
        if dtype not in DTYPES:
            return f"convolutions are chosen for {', '.join(DTYPES.values())}"
        return ""

    def outcomes(self, structure: Structure, given: Given, bias: bool) -> tuple[ConvOutcome, ...]:
        kernel = self.prepare(structure)
        found = []
        for asked in self.asked(structure, given):
            task = kernel.task(asked, given.dtype)
            best, *others = choices(task)
            found.append(ConvOutcome(task, best, tuple(others), bias))
        return tuple(found)

    def recorded(self, structure: Structure, entry: Mapping[str, Any]) -> ConvOutcome:
        if entry["structure"] != str(structure):
            raise KernelError(f"no layer of the artifact has the equation {entry['structure']}")
        kernel = self.prepare(structure)
        dtype = {name: dtype for dtype, name in DTYPES.items()}[entry["dtype"]]
        task = replace(kernel.task(asked_from(entry["asked"]), dtype), threads=entry["threads"])
        return recorded(task, entry)

    def adopt(self, prepared: ConvKernel, generated: None, given: Given) -> None:
        for asked in self.asked(prepared.structure, given):
            prepared.prepare(asked, given.dtype)

    def asked(self, structure: Structure, given: Given) -> Iterator[Asked]:
        """Yield what is chosen for ahead of time: square images, in both memory formats."""
        n = len(structure.signature.inputs) - 1
        channels = structure.signature.inputs[0] * (1 if self.transposed else self.groups)
        pad = self.options(structure.signature.inputs[1:]).pad
        side = round(self.pixels_in ** (1 / n))
        sizes = [side + pad[2 * k] + pad[2 * k + 1] for k in range(n)][::-1] if pad else [side] * n
        keeps = not given.training
        packs = keeps and given.dtype is torch.float32
        for images in given.images:
            for last in (False, True) if n in FORMATS else (False,):
                yield Asked((images, channels, *sizes), last, keeps, packs)

    def forget(self, prepared: ConvKernel) -> None:
        prepared.forget()

    def resized(self, prepared: ConvKernel, x: Tensor, output_size: Sequence[int]) -> ConvKernel:
        if not self.transposed:
            return super().resized(prepared, x, output_size)  # type: ignore[no-any-return]
        return prepared.sized(prepared.options.sized(x.shape, tuple(output_size)))

    def options(self, kernel: tuple[int, ...]) -> Options:
        """Return the options by axis of a kernel. Raises KernelError where they do not fit it."""
        n = len(kernel)
        stride, dilation = self.stride or (1,) * n, self.dilation or (1,) * n
        extra, padding = self.output_padding or (0,) * n, self.padding or (0,) * n
        if isinstance(padding, str):
            totals = [0 if padding == "valid" else d * (k - 1) for d, k in zip(dilation, kernel)]
            sides = [(total // 2, total - total // 2) for total in totals]
        else:
            sides = [(p, p) for p in padding]
        if not 1 <= n <= 3 or {len(stride), len(dilation), len(extra), len(sides)} != {n}:
            raise KernelError(
                f"a kernel of {kernel} with stride {self.stride}, padding {self.padding}, "
                f"dilation {self.dilation}, output_padding {self.output_padding}",
                hint="give one number for each of one to three kernel axes",
            )
        plain = self.padding_mode == "zeros" and all(a == b for a, b in sides)
        pad = () if plain else tuple(side for pair in reversed(sides) for side in pair)
        return Options(
            kernel,
            stride,
            tuple(a for a, _ in sides) if plain else (0,) * n,
            dilation,
            extra,
            self.groups,
            self.transposed,
            pad,
            "constant" if self.padding_mode == "zeros" else self.padding_mode,
        )

    def attributes(self, structure: Structure) -> dict[str, Any]:
        return {**self.sizes(structure.signature), "transposed": self.transposed}

    def sizes(self, signature: Signature) -> dict[str, Any]:
        """Return what the library's layer is made of, by the names of its arguments."""
        (outputs,), (inputs, *kernel) = signature.outputs, signature.inputs
        none = (0,) * len(kernel)
        return {
            "in_channels": inputs if self.transposed else inputs * self.groups,
            "out_channels": outputs * self.groups if self.transposed else outputs,
            "kernel_size": tuple(kernel),
            "stride": self.stride or (1,) * len(kernel),
            "padding": self.padding or none,
            "dilation": self.dilation or (1,) * len(kernel),
            "groups": self.groups,
            "padding_mode": self.padding_mode,
            "output_padding": self.output_padding or none,
        }

    def dense_layer(self, signature: Signature, bias: bool = True, **more: Any) -> nn.Module:
        """Build the library's layer; `more` are its device and dtype."""
        sizes = self.sizes(signature)
        kinds: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        if self.transposed:
            kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        else:
            del sizes["output_padding"]
        made: nn.Module = kinds[len(signature.inputs) - 2](**sizes, bias=bias, **more)
        return made

    def layout(self, weight: Tensor) -> Tensor:
        return weight.transpose(0, 1) if self.transposed else weight
