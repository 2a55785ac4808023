"""How layers apply a weight of their shape, alone or together with deltas that are chains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from tnc.adapters import products
from tnc.adapters.chain import Chain
from tnc.nn import LinearView, StructuredLayer


def _linear(module: Any, weight: Tensor, input: Tensor) -> Tensor:
    return functional.linear(input, weight, module.bias)


def _stored_inputs_first(module: Any, weight: Tensor, x: Tensor) -> Tensor:
    return functional.linear(x, weight.t(), module.bias)


def _embedding(module: Any, weight: Tensor, input: Tensor) -> Tensor:
    return functional.embedding(input, weight, module.padding_idx)


def _conv(module: Any, weight: Tensor, input: Tensor) -> Tensor:
    return module._conv_forward(input, weight, module.bias)  # type: ignore[no-any-return]


def _transposed_conv(
    module: Any, weight: Tensor, input: Tensor, output_size: list[int] | None = None
) -> Tensor:
    axes = len(module.kernel_size)
    padding = module._output_padding(
        input,
        output_size,
        module.stride,
        module.padding,
        module.kernel_size,
        axes,
        module.dilation,
    )
    apply = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
    return apply[axes - 1](
        input,
        weight,
        module.bias,
        module.stride,
        module.padding,
        padding,
        module.groups,
        module.dilation,
    )


def _structured(module: Any, merged: StructuredLayer | None, *args: Any, **kwargs: Any) -> Tensor:
    return StructuredLayer.forward(merged or module, *args, **kwargs)


APPLIED: Mapping[str, Callable[..., Tensor]] = {
    "linear": _linear,
    "linear-inputs-first": _stored_inputs_first,
    "embedding": _embedding,
    "conv": _conv,
    "transposed-conv": _transposed_conv,
    "structured": _structured,
}
"""How a layer is applied with a weight of its shape, by kind."""


def _chained_linear(module: Any, weight: Any, chain: Chain, x: Tensor) -> Tensor:
    return chain.linear(x, weight, module._parameters["bias"], weight)


def _chained_inputs_first(module: Any, weight: Any, chain: Chain, x: Tensor) -> Tensor:
    return chain.linear(x, weight.t(), module._parameters["bias"], weight)


def _chained_conv(module: Any, weight: Any, chain: Chain, x: Tensor) -> Tensor | None:
    return chain.conv(x, weight, module)


def _chained_structured(module: Any, weight: Any, chain: Chain, x: Tensor) -> Tensor | None:
    if chain.scaled is not None or not isinstance(module.view, LinearView):
        return None
    return products.added(StructuredLayer.forward(module, x), x, chain.pairs, chain.dropout)


CHAINED: Mapping[str, Callable[..., Tensor | None]] = {
    "linear": _chained_linear,
    "linear-inputs-first": _chained_inputs_first,
    "conv": _chained_conv,
    "structured": _chained_structured,
}
"""How a layer is applied together with deltas that are chains; None says to apply it as others."""


def applied_kind(module: nn.Module, kind: str) -> str:
    """Return the name in `APPLIED` for a module of a layer kind ('' where code reads its weight).

    >>> applied_kind(nn.ConvTranspose1d(2, 3, 1), "conv")
    'transposed-conv'
    """
    if isinstance(module, StructuredLayer):
        return "structured"
    if kind == "conv" and type(module).__name__.startswith("ConvTranspose"):
        return "transposed-conv"
    if kind == "linear" and type(module).__name__ == "Conv1D":
        return "linear-inputs-first"
    return kind
