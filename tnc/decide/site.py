"""Sites: the weights of a model that could be rewritten, and how each is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tnc.derive.cost import Cost, Work, dense_cost
from tnc.net import Signature


@dataclass(frozen=True)
class Use:
    """One operation that reads a weight.

    `module` is the path of the module whose forward holds it. `op` is linear, conv, embedding,
    experts or spectral. `view` says how a rewrite reaches it: 'module' where the owner is a layer
    that one of ours can stand in for, 'parameter' where the code reads the tensor itself, which is
    then rebuilt from its cores at each call. `rows` counts the vectors (tokens, output
    pixels) of the example input, `rows_in` its input pixels. `reads` names the tensor that is read:
    equal names, one tensor.
    """

    module: str
    op: str
    view: str
    rows: int
    rows_in: int = 0
    reads: str = ""


@dataclass(frozen=True)
class Site:
    """A weight of the model with everything that reads it.

    `name` is the first of the parameter's names (`aliases` are all of them: tied weights). The
    signature is of the map, outputs first; `transposed` tells that the tensor is stored inputs
    first (HF Conv1D, `x @ w`, transposed convolutions). Of a convolution in groups it is
    `(o | i/groups ..)`, of a transposed one `(o/groups | i ..)`, of a stack of experts' matrices
    `(e o | i)`: a row of data meets one of the e. Of spectral weights it is `(o | i modes..)`, and
    `stored` gives the stored axis of each of these dimensions.

    A complex entry is one parameter, of 8 bytes in complex64; its multiply-add is four real ones.
    """

    name: str
    aliases: tuple[str, ...]
    signature: Signature
    dtype: str
    uses: tuple[Use, ...]
    transposed: bool = False
    trainable: bool = True
    biased: bool = False
    groups: int = 1
    options: tuple[tuple[str, Any], ...] = ()
    stored: tuple[int, ...] = ()

    @property
    def path(self) -> str:
        """The name that rules match: the layer's path, or the parameter's where it is bare."""
        return self.name.removesuffix(".weight")

    @property
    def op(self) -> str:
        """The operation: that of the first use that computes, else embedding."""
        return next((use.op for use in self.uses if use.op != "embedding"), "embedding")

    @property
    def rebuilt(self) -> bool:
        """Whether some use needs the dense weight at each call."""
        return any(use.view == "parameter" for use in self.uses)

    @property
    def work(self) -> Work:
        """What the weight does for the example input, summed over its uses."""
        rows = sum(use.rows for use in self.uses if use.op == self.op)
        rows_in = sum(use.rows_in for use in self.uses if use.op == self.op)
        turned = self.op == "conv" and self.transposed
        return Work(self.op, max(1, rows), max(1, rows_in), self.groups, turned, self.is_complex)

    @property
    def is_complex(self) -> bool:
        """Whether the entries of the weight are complex numbers."""
        return self.dtype.startswith("complex")

    @property
    def order(self) -> tuple[int, ...]:
        """The stored axis of each dimension of the map: `tensor.permute(order)` is the map."""
        if self.stored:
            return self.stored
        axes = list(range(len(self.signature.shape)))
        if self.transposed:
            a, b = (1, 2) if self.op == "experts" else (0, 1)
            axes[a], axes[b] = b, a
        return tuple(axes)

    @property
    def unordered(self) -> tuple[int, ...]:
        """The dimension of the map that each stored axis is: the inverse of `order`."""
        return tuple(self.order.index(axis) for axis in range(len(self.order)))

    @property
    def itemsize(self) -> int:
        """Bytes of one stored entry."""
        return _ITEMSIZE.get(self.dtype, 4)

    @property
    def cost(self) -> Cost:
        """The cost of the dense weight."""
        return dense_cost(self.signature, self.work, self.itemsize)


_ITEMSIZE = {
    "float64": 8,
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "complex64": 8,
    "complex128": 16,
}
