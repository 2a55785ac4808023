"""The view of a convolution, plain or transposed, over one to three axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from tnc.errors import KernelError
from tnc.net import Signature, Structure
from tnc.nn.conv import Options
from tnc.nn.conv_choice import conv_terms
from tnc.nn.conv_kernel import ConvKernel
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
