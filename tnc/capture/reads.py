"""What an operation does with a parameter: the few kinds that can be rewritten, or a reason.

Below autograd every linear map is a matrix product, a convolution or a look-up. In a product the
side and the axes of the parameter tell which axis is summed over, so `F.linear(x, w)`, `x @ w`,
`w @ x` and `einsum` need no cases of their own. A product in batches, of which the parameter has a
matrix each, is a map for every mode: the layers of Fourier neural operators.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tnc.capture.weights import Alias, Weights, tensors

PRODUCTS = {
    "aten.mm": 0,
    "aten.bmm": 0,
    "aten.mv": 0,
    "aten.addmm": 1,
    "aten.addmv": 1,
    "aten.baddbmm": 1,
    "aten._addmm_activation": 1,
    "aten._grouped_mm": 0,
}
CONVOLUTIONS = frozenset({"aten.convolution", "aten._convolution", "aten.convolution_overrideable"})
LOOK_UPS = frozenset({"aten.embedding", "aten.index_select", "aten.index"})


@dataclass(frozen=True)
class Read:
    """One parameter in one operation.

    `kind` is linear, conv, embedding, experts (a stack of matrices, of which a row meets one),
    spectral (a matrix for every mode, of which a row meets all), or empty with a `reason`. `data`
    is the other operand, `columns` tells that its rows are its columns (`w @ x`). `summed` is the
    axis of the parameter, or of a matrix of the stack, that is summed over. `part` is the share of
    the weight that is used; `first` the first output row of that part. `options` are those of the
    operation. `order` are the axes of a spectral parameter as the map has them: output, input,
    modes; `joined` are its modes as the product has them.
    """

    name: str
    kind: str
    reason: str = ""
    data: Tensor | None = None
    columns: bool = False
    summed: int = 1
    part: float = 1.0
    first: int = 0
    groups: int = 1
    options: tuple[tuple[str, Any], ...] = ()
    bias: str | None = None
    order: tuple[int, ...] = ()
    joined: tuple[int, ...] = ()


def reads(
    op: str, args: tuple[Any, ...], kwargs: Any, weights: Weights, owned: Collection[str] = ()
) -> Iterator[Read]:
    """Yield what an operation does with each parameter among its arguments.

    `owned` are the parameters of the layer that is running: they decide which operand is the
    weight where both are parameters.
    """
    given = [t for t in tensors((args, kwargs)) if weights.name_of(t)]
    if not given:
        return
    turned = [t for t in given if weights.reinterpreted(t)]
    for name in dict.fromkeys(weights.name_of(t) for t in turned):
        if name:
            told = "real numbers are read as complex ones" if turned[0].is_complex() else ""
            told = told or "complex numbers are read as real ones"
            yield Read(name, "", f"its {told} by a view: keep them in a parameter of that dtype")
    if turned:
        return
    read = _read(op, args, weights, owned)
    if read is not None:
        yield read
    for tensor in given:
        name = weights.name_of(tensor)
        if name and (read is None or name not in (read.name, read.bias)):
            yield Read(name, "", _unsupported(op, tensor, read))


def rows(read: Read) -> int:
    """Count the vectors that a linear read multiplies, or that a look-up fetches."""
    if read.data is None or read.kind == "embedding":
        return read.data.numel() if read.data is not None else 0
    if read.data.dim() == 1:
        return 1
    if read.kind == "spectral":
        return int(read.data.shape[-1 if read.columns else -2])
    size = read.data.shape[-2 if read.columns else -1]
    return read.data.numel() // max(1, size)


def _read(op: str, args: Any, weights: Weights, owned: Collection[str]) -> Read | None:
    if op in PRODUCTS:
        return _product(args[PRODUCTS[op] :][:2], args[: PRODUCTS[op]], weights, owned)
    if op in CONVOLUTIONS and isinstance(args[1], Tensor) and weights.name_of(args[1]):
        return _convolution(args, weights)
    if op in LOOK_UPS and isinstance(args[0], Tensor) and weights.name_of(args[0]):
        return _look_up(op, args, weights)
    return None


def _unsupported(op: str, tensor: Tensor, read: Read | None) -> str:
    if read is not None and op in PRODUCTS:
        return f"used as data by {op}, not as a weight"
    return f"read by {op}"


def _product(pair: Any, addends: Any, weights: Weights, owned: Collection[str]) -> Read | None:
    left, right = (weights.alias(t) for t in pair)
    if left and right:
        if left.name in owned and right.name not in owned:
            right = None
        elif right.name in owned and left.name not in owned:
            left = None
        else:
            return None
    shown, data = (right, pair[0]) if right else (left, pair[1])
    if shown is None:
        return None
    name = shown.name
    rank = weights.parameters[name].dim()
    if rank >= 3 and data.dim() == 3 and not _is_stack(shown):
        return _spectral(shown, data, weights.parameters[name], bool(right))
    if rank == 3:
        shape = tuple(weights.parameters[name].shape)
        return _stacked(shown, data, shape, bool(right))
    if rank != 2:
        return Read(name, "", f"a weight of {rank} dimensions in a matrix product")
    if shown.axes is None or sorted(a for a in shown.axes[-2:] if a is not None) != [0, 1]:
        return Read(name, "", "read in another shape by a matrix product")
    inner, outer = shown.axes[-2:] if right else shown.axes[-2:][::-1]
    assert inner is not None and outer is not None
    shape = weights.parameters[name].shape
    if tuple(shape) == (1, 1):
        inner, outer = 1, 0  # both ways are one: read it as a linear layer stores it
    if shown.sizes[inner] != shape[inner]:
        return Read(name, "", "only some of its inputs are read by a matrix product")
    part = shown.sizes[outer] / shape[outer]
    bias = next((weights.name_of(t) for t in addends if isinstance(t, Tensor) and t.dim() == 1), "")
    columns = right is None and data.dim() > 1
    return Read(
        name, "linear", "", data, columns, inner, part, shown.start[outer], bias=bias or None
    )


def _is_stack(shown: Alias) -> bool:
    """Whether a product shows matrices over the last two of three axes."""
    return shown.axes is not None and sorted(a for a in shown.axes[-2:] if a is not None) == [1, 2]


def _spectral(shown: Alias, data: Tensor, parameter: Tensor, on_the_right: bool) -> Read:
    """Read a parameter with a matrix for each of its modes, all multiplied at once."""
    name, rank = shown.name, parameter.dim()
    refused = Read(name, "", f"a weight of {rank} dimensions in a matrix product")
    if len(shown.merged) != 3:
        return refused
    modes, *sides = shown.merged
    left = [axis for axis in range(rank) if not any(axis in group for group in shown.merged)]
    if any(len(side) > 1 for side in sides) or any(parameter.shape[axis] > 1 for axis in left):
        return refused
    inner, outer = (
        side[0] if side else left.pop(0) if left else -1
        for side in (sides if on_the_right else sides[::-1])
    )
    if min(inner, outer) < 0:
        return refused
    order = (outer, inner, *(axis for axis in range(rank) if axis not in (outer, inner)))
    matrices, rows, columns = data.shape[0], parameter.shape[inner], parameter.shape[outer]
    part = matrices * rows * columns / parameter.numel()
    if data.shape[-1 if on_the_right else -2] != rows:
        return Read(name, "", "only some of its inputs are read by a matrix product")
    return Read(
        name, "spectral", "", data, not on_the_right, inner, part, order=order, joined=modes
    )


def _stacked(shown: Alias, data: Tensor, shape: tuple[int, ...], on_the_right: bool) -> Read:
    """Read a stack of matrices `w[e, .., ..]`: one of them, some gathered, or all, in a product.

    A row of data meets one matrix of the stack.
    """
    name, axes = shown.name, shown.axes
    if axes is None or sorted(a for a in axes[-2:] if a is not None) != [1, 2]:
        return Read(name, "", "a weight of 3 dimensions in a matrix product")
    inner = axes[-2] if on_the_right else axes[-1]
    if shown.sizes[1:] != shape[1:] or inner is None:
        return Read(name, "", "only a part of its matrices is read by a matrix product")
    columns = not on_the_right and data.dim() > 1
    return Read(name, "experts", "", data, columns, inner - 1, 1 / shape[0])


def _convolution(args: Any, weights: Weights) -> Read:
    data, weight, bias, stride, padding, dilation, transposed, extra, groups = args[:9]
    shown = weights.alias(weight)
    assert shown is not None
    name, spatial = shown.name, weight.dim() - 2
    bias_name = weights.name_of(bias) if isinstance(bias, Tensor) else None
    if not 1 <= spatial <= 3:
        return Read(name, "", f"a convolution over {spatial} dimensions")
    if not shown.whole or shown.axes != tuple(range(weight.dim())):
        return Read(name, "", "only a part, or a permutation, of it is read by a convolution")
    options: tuple[tuple[str, Any], ...] = (
        ("dilation", tuple(dilation)),
        ("padding", tuple(padding)),
        ("padding_mode", "zeros"),
        ("stride", tuple(stride)),
    )
    if transposed:
        options = tuple(sorted((*options, ("output_padding", tuple(extra)))))
    summed = 0 if transposed else 1
    return Read(
        name, "conv", data=data, summed=summed, groups=groups, options=options, bias=bias_name
    )


def _look_up(op: str, args: Any, weights: Weights) -> Read | None:
    shown = weights.alias(args[0])
    assert shown is not None
    if op == "aten.index_select" and args[1] not in (0, -shown_rank(shown)):
        return None
    ids = args[1] if op == "aten.embedding" else args[2] if op == "aten.index_select" else None
    if op == "aten.index":
        (ids,) = args[1] if len(args[1]) == 1 else (None,)
    if ids is None or ids.dtype.is_floating_point or str(ids.dtype) == "torch.bool":
        return None
    if weights.parameters[shown.name].dim() != 2 or shown.axes != (0, 1) or not shown.whole:
        return Read(shown.name, "", f"only a part, or another shape, of it is read by {op}")
    padding = int(args[2]) if op == "aten.embedding" and len(args) > 2 else -1
    sparse = bool(args[4]) if op == "aten.embedding" and len(args) > 4 else False
    options = (("padding_idx", None if padding < 0 else padding), ("sparse", sparse))
    return Read(shown.name, "embedding", data=ids, summed=1, options=options)


def shown_rank(shown: Alias) -> int:
    """The number of dimensions of the tensor that shows a parameter."""
    return len(shown.axes or shown.sizes)
