"""Random inputs, for smoke runs."""

from __future__ import annotations

from dataclasses import dataclass

from tnc.errors import SourceError
from tnc.sources.source import Batch, DataSource, Loaded, Split, datas
from tnc.sources.split import require_positive


@datas.register("random")
@dataclass(frozen=True)
class RandomData(DataSource):
    """Standard normal tensors, one for each of `shapes` (without the batch dimension).

    With `below`, whole numbers from 0 to below it (token ids). They tell how a model runs, not how
    well: errors on noise say little about errors on data.
    """

    shapes: tuple[tuple[int, ...], ...]
    samples: int = 64
    held_out: int = 64
    batch: int = 32
    below: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive(samples=self.samples, held_out=self.held_out, batch=self.batch)
        if not self.shapes:
            raise SourceError("shapes is empty", hint="give a shape for each input: [[3, 32, 32]]")

    def batches(self, loaded: Loaded, split: Split = "calibration") -> list[Batch]:
        import torch

        generator = torch.Generator().manual_seed(2 * self.seed + (split == "held-out"))
        count = self.samples if split == "calibration" else self.held_out
        sizes = [min(self.batch, count - start) for start in range(0, count, self.batch)]
        return [tuple(self._draw((n, *s), generator) for s in self.shapes) for n in sizes]

    def _draw(self, shape: tuple[int, ...], generator):  # type: ignore[no-untyped-def]
        import torch

        if self.below:
            return torch.randint(0, self.below, shape, generator=generator)
        return torch.randn(shape, generator=generator)
