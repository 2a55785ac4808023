"""The norm that a fit minimises: second moments of what goes in, weights on what comes out.

`||sqrt(G) (W - W') sqrt(C)||_F` with C the second moment of the inputs is the error of the layer's
output on the calibration data. Moments are often singular (dead channels, fewer samples than
features), so square roots come from eigh in float64, nothing is inverted, and every direction
keeps `RIDGE` of the largest weight: what data do not see is fitted as the plain weight.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor

from tnc.errors import FitError
from tnc.net import Signature

RIDGE = 1e-10
SIDES = ("outputs", "inputs")


@dataclass(frozen=True, eq=False)
class Moment:
    """A positive semidefinite weight on one side: a matrix (n, n), or the diagonal of one (n,)."""

    given: Tensor
    memo: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)
    """Roots of marginals that fits have asked for, by the legs they belong to."""
    base: Moment | None = field(default=None, repr=False)

    def damped(self, share: float) -> Moment:
        """Return the moment with `share` of its mean diagonal added; eigenvectors are kept."""
        if self.given.ndim == 1:
            return Moment(self.given + share * self.given.mean())
        level = share * self.given.diagonal().mean()
        eye = torch.eye(len(self.given), dtype=self.given.dtype, device=self.given.device)
        return Moment(self.given + level * eye, base=self)

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        if self.base is not None:
            values, vectors = self.base._spectrum
            return values + (self.given - self.base.given).diagonal().mean(), vectors
        symmetric = (self.given + self.given.T) / 2
        values, vectors = torch.linalg.eigh(symmetric)
        return values.clamp_min(0), vectors

    @cached_property
    def root(self) -> Tensor:
        """S with S S^T = C, negative eigenvalues taken as zero; the root of a diagonal is one."""
        if self.given.ndim == 1:
            return self.given.clamp_min(0).sqrt()
        values, vectors = self._spectrum
        return vectors * values.sqrt()

    @cached_property
    def whitener(self) -> tuple[Tensor, Tensor]:
        """The symmetric root of `ridged` and its inverse."""
        if self.given.ndim == 1:
            root = self.ridged.sqrt()
            return root, 1 / root
        values, vectors = self._spectrum
        scale = ridged_spectrum(values).sqrt()
        return (vectors * scale) @ vectors.T, (vectors / scale) @ vectors.T

    @cached_property
    def single(self) -> Tensor:
        """`ridged` in float32, for products that need few digits."""
        return self.ridged.float()

    @cached_property
    def ridged(self) -> Tensor:
        """C with `RIDGE` times its largest eigenvalue added: positive definite."""
        if self.given.ndim == 1:
            return ridged_spectrum(self.given)
        values, vectors = self._spectrum
        return (vectors * ridged_spectrum(values)) @ vectors.T


@dataclass(frozen=True, eq=False)
class Metric:
    """`||sqrt(G) (W - W') sqrt(C)||_F`; None stands for the identity.

    `inputs` is C, the second moment (n, n) of the flattened inputs, n = prod(signature.inputs), or
    the vector (n,) of its diagonal; `outputs` is G, (m, m) or (m,). Roots are computed once and
    kept. A moment that vanishes says nothing and counts as None. Metrics that are given
    the same `Moment` share its roots.
    """

    inputs: Tensor | Moment | None = None
    outputs: Tensor | Moment | None = None

    @property
    def plain(self) -> bool:
        """Whether this is the Frobenius norm."""
        return self.moment("inputs") is None and self.moment("outputs") is None

    def moment(self, side: str) -> Moment | None:
        """Return the moment of 'inputs' or 'outputs', None for the identity."""
        return self._moments[side]

    @cached_property
    def _moments(self) -> dict[str, Moment | None]:
        return {"inputs": _moment(self.inputs), "outputs": _moment(self.outputs)}

    def check(self, signature: Signature) -> None:
        """Raise FitError where a moment has the wrong shape or entries that are not finite."""
        for side in SIDES:
            told: Tensor | Moment | None = getattr(self, side)
            if told is None:
                continue
            given = told.given if isinstance(told, Moment) else told
            size = prod(getattr(signature, side))
            if tuple(given.shape) not in ((size,), (size, size)):
                raise FitError(
                    f"the metric of the {side} has shape {tuple(given.shape)}, "
                    f"the weight {signature} needs ({size}, {size}) or ({size},)",
                    hint="moments are over the flattened dimensions of one side",
                )
            if not bool(torch.isfinite(given).all()):
                raise FitError(
                    f"the metric of the {side} has entries that are not finite",
                    hint="look for inf or nan in the calibration data",
                )

    def norm(self, tensor: Tensor, signature: Signature) -> float:
        """Return `||sqrt(G) E sqrt(C)||_F` of a tensor of `signature.shape`, without any root."""
        matrix = widest(tensor).reshape(prod(signature.outputs), prod(signature.inputs))
        squares = (self.weighed(matrix) * matrix.conj()).sum()
        return float(squares.real.clamp_min(0).sqrt())

    def weighed(self, matrix: Tensor) -> Tensor:
        """Return `G E C^T` of a matrix E (m, n)."""
        for side, moment in ((s, self.moment(s)) for s in SIDES):
            if moment is None:
                continue
            given = moment.given if side == "outputs" or moment.given.ndim == 1 else moment.given.T
            if given.ndim == 1:
                matrix = matrix * (given[:, None] if side == "outputs" else given)
            else:
                given = given.to(matrix.dtype)
                matrix = given @ matrix if side == "outputs" else matrix @ given
        return matrix

    def whitened(self, tensor: Tensor, signature: Signature) -> Tensor:
        """Return `S_G^T E S_C` as a matrix (m, n), with `S S^T` the moments."""
        matrix = tensor.double().reshape(prod(signature.outputs), prod(signature.inputs))
        ingoing, outgoing = self.moment("inputs"), self.moment("outputs")
        if ingoing is not None:
            matrix = matrix @ ingoing.root if ingoing.root.ndim == 2 else matrix * ingoing.root
        if outgoing is not None:
            root = outgoing.root
            matrix = root.T @ matrix if root.ndim == 2 else root[:, None] * matrix
        return matrix


def widest(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, or in complex128."""
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def relative_error(
    weight: Tensor, fitted: Tensor, signature: Signature, metric: Metric | None = None
) -> float:
    """Return `||W - W'|| / ||W||` in the metric; the error itself where the weight is zero."""
    metric = metric or Metric()
    error = metric.norm(widest(weight) - widest(fitted), signature)
    whole = metric.norm(weight, signature)
    return error / whole if whole > 0 else error


def ridged_spectrum(values: Tensor) -> Tensor:
    """Add `RIDGE` of the largest to eigenvalues in the last dimension; ones where all vanish."""
    values = values.clamp_min(0)
    top = values.amax(-1, keepdim=True)
    return torch.where(top > 0, values + RIDGE * top, torch.ones_like(values))


def _moment(given: Tensor | Moment | None) -> Moment | None:
    if isinstance(given, Moment):
        return given if bool((given.given != 0).any()) else None
    if given is None or not bool((given != 0).any()):
        return None
    return Moment(given.detach().double())
