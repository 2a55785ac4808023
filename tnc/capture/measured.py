"""What was measured: figures of sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tnc.errors import CaptureError


@dataclass(frozen=True, eq=False)
class Measured:
    """The figures of one site, float64 on the CPU; None where there is nothing to tell.

    `rows` vectors x came in, over `samples` samples of the model's input (sentences, images).

    - `moment` is `sum_rows x x^T / rows`, (n, n) over the flattened inputs (for convolutions the
      patches, i*h*w), or its diagonal (n,) beyond the limit; of spectral weights always, the mean
      of `|x|^2` for i*modes. A pure look-up multiplies one-hot rows, so there it is the diagonal
      (vocabulary,): the `frequencies`.
    - `mean` is `sum_rows x / rows`, (n,).
    - `outputs` is `sum_rows g g^T / samples`, (o, o) or (o,), averaged over probes, with g the
      gradient of a probe to the site's result in that row.
    - `features` is the same for the results of a look-up, over its dimension (d, d).
    - `frequencies` are the shares of the table's rows that were looked up (vocabulary,).
    - `weight` is `sum_rows |g|^2 / samples` over the entries of g, of the second scalar `weigh`.

    With a probe whose gradients sample the Jacobian of the model's output, independent from sample
    to sample, `tr(G D C D^T)` with G = outputs, C = moment estimates the expected square of the
    change of the model's output, per sample, that a change D of the weight makes. For a look-up
    that is `tr(diag(frequencies) D features D^T)`.
    """

    site: str
    rows: int
    samples: int
    moment: Tensor | None = None
    mean: Tensor | None = None
    outputs: Tensor | None = None
    features: Tensor | None = None
    frequencies: Tensor | None = None
    weight: float | None = None


@dataclass(frozen=True, eq=False)
class Measurements:
    """Figures of all measured sites by name, and what could not be measured as asked."""

    sites: Mapping[str, Measured]
    samples: int
    batches: int
    notes: tuple[str, ...] = ()
    held: tuple[int, ...] = ()
    without: Measurements | None = None
    """The figures without the batches numbered `held`, where that was asked for."""
    derived: dict[Any, Any] = field(default_factory=dict, repr=False)
    """What others computed from these figures and want to keep (roots of moments)."""

    @property
    def has_outputs(self) -> bool:
        """Whether the outputs of any site were weighed by gradients."""
        return any(site.outputs is not None for site in self.sites.values())

    def of(self, name: str) -> Measured:
        """Return the figures of a site. Raises CaptureError for one that was not measured."""
        if name not in self.sites:
            raise CaptureError(
                f"{name!r} was not measured", hint="measure the sites of the model's latest trace"
            )
        return self.sites[name]
