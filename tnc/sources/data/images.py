"""Images in NumPy archives, as pixels or as JPEG files, shifted and mirrored for training."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tnc.errors import MissingExtra, SourceError
from tnc.sources.reference import find_path
from tnc.sources.source import Batch, DataSource, Loaded, Split, datas
from tnc.sources.split import in_batches, part_of, require_positive

if TYPE_CHECKING:
    from torch import Tensor


@datas.register("images")
@dataclass(frozen=True)
class Images(DataSource):
    """Images of several archives, fed as `(x / 255 - mean) / std`.

    An archive holds pixels `x`, uint8 (n, channels, height, width), or JPEG files one after the
    other: `jpeg` uint8, image i being `jpeg[offset[i]:offset[i + 1]]` (needs Pillow). Calibration
    and held-out images are drawn from the first archive, or held-out ones are the first of
    `held_out_file`. Training takes all others: every batch holds an equal share of each archive,
    each image shifted by up to `crop` pixels and, with `flip`, mirrored half of the time.
    """

    files: tuple[str, ...]
    held_out_file: str = ""
    samples: int = 512
    held_out: int = 256
    batch: int = 128
    crop: int = 4
    flip: bool = True
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive(samples=self.samples, held_out=self.held_out, batch=self.batch)
        if not self.files:
            raise SourceError("files is empty", hint="name at least one archive of images")
        if self.crop < 0:
            raise SourceError(f"crop is {self.crop}", hint="give 0 or more pixels")
        if len(self.mean) != len(self.std) or 0 in self.std:
            raise SourceError("mean and std need one entry a channel, std none of 0")

    def batches(self, loaded: Loaded, split: Split = "calibration") -> list[Batch]:
        import torch

        if self.held_out_file and split == "held-out":
            file, order = self.held_out_file, list(range(len(read_images(self.held_out_file))))
            chosen = part_of(order, "calibration", self.held_out, 0)
        else:
            file = self.files[0]
            chosen = part_of(self._order(), split, self.samples, self._held_back)
        images = torch.from_numpy(read_images(file))
        return [(self._scaled(images[list(part)]),) for part in in_batches(chosen, self.batch)]

    def stream(self, loaded: Loaded, seed: int = 0) -> Callable[[int], Iterable[Batch]]:
        """Return the epochs: the largest archive is seen once in each, smaller ones again."""
        import torch

        pools = [torch.from_numpy(read_images(file)) for file in self.files]
        kept = part_of(self._order(), "training", self.samples, self._held_back)
        pools[0] = pools[0][list(kept)]
        share = max(1, self.batch // len(pools))
        steps = max(1, max(map(len, pools)) // share)

        def epoch(number: int) -> Iterator[Batch]:
            draw = torch.Generator().manual_seed(seed * 1_000_003 + number)
            orders = [_repeated(len(pool), steps * share, draw) for pool in pools]
            for step in range(steps):
                rows = slice(step * share, (step + 1) * share)
                images = torch.cat([p[o[rows]] for p, o in zip(pools, orders)])
                yield (self._scaled(self._moved(images, draw)),)

        return epoch

    @property
    def _held_back(self) -> int:
        return 0 if self.held_out_file else self.held_out

    def _order(self) -> list[int]:
        import random

        order = list(range(len(read_images(self.files[0]))))
        random.Random(self.seed).shuffle(order)
        return order

    def _scaled(self, images: Tensor) -> Tensor:
        import torch

        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return (images.float() / 255 - mean) / std

    def _moved(self, images: Tensor, draw: Any) -> Tensor:
        """Shift and mirror every image by itself; what comes in at the borders is black."""
        import torch
        from torch.nn import functional

        count, _, height, width = images.shape
        rows = torch.arange(height).view(1, -1, 1)
        columns = torch.arange(width).view(1, 1, -1)
        if self.crop:
            images = functional.pad(images, [self.crop] * 4)
            shifts = torch.randint(0, 2 * self.crop + 1, (2, count, 1, 1), generator=draw)
            rows = rows + shifts[0]
            columns = columns + shifts[1]
        if self.flip:
            mirrored = torch.rand((count, 1, 1), generator=draw) < 0.5
            low = columns.amin(-1, keepdim=True)
            columns = torch.where(mirrored, 2 * low + width - 1 - columns, columns)
        place = torch.arange(count).view(-1, 1, 1)
        return images.permute(0, 2, 3, 1)[place, rows, columns].permute(0, 3, 1, 2).contiguous()


def read_images(file: str):  # type: ignore[no-untyped-def]
    """Return the images of an archive, uint8 (n, channels, height, width). Raises SourceError."""
    import numpy as np

    path = find_path(file)
    try:
        with np.load(path, allow_pickle=False) as archive:
            if "x" in archive:
                return archive["x"]
            jpeg, offset = archive["jpeg"].tobytes(), archive["offset"].tolist()
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(
            f"cannot read images: {error}",
            where=str(path),
            hint="an archive holds `x`, or `jpeg` and `offset`",
        ) from error
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra(
            "JPEG images need Pillow", where=str(path), hint="pip install pillow"
        ) from error
    decoded = [
        np.asarray(Image.open(io.BytesIO(jpeg[start:end])).convert("RGB"))
        for start, end in itertools.pairwise(offset)
    ]
    return np.stack(decoded).transpose(0, 3, 1, 2)


def _repeated(size: int, count: int, draw: Any) -> Tensor:
    """Return `count` row numbers: as many shuffled rounds of all rows as that takes."""
    import torch

    rounds = [torch.randperm(size, generator=draw) for _ in range(-(-count // size))]
    return torch.cat(rounds)[:count]
