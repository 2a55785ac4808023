"""Images in a NumPy archive."""

from __future__ import annotations

from dataclasses import dataclass

from tnc.errors import SourceError
from tnc.sources.reference import find_path
from tnc.sources.source import Batch, DataSource, Labelled, Loaded, Split, datas
from tnc.sources.split import in_batches, part_of, require_positive


@datas.register("npz")
@dataclass(frozen=True)
class Npz(DataSource):
    """Images (n, channels, height, width) under `key`, fed as `(x / scale - mean) / std`.

    The first `samples` are for calibration. Held-out are the next `held_out`, or the first of
    `held_out_file` where one is given. `labels` is the key of their classes, for a sensitivity that
    wants them.
    """

    file: str
    key: str = "x"
    held_out_file: str = ""
    samples: int = 256
    held_out: int = 256
    batch: int = 32
    scale: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    labels: str = ""

    def __post_init__(self) -> None:
        require_positive(samples=self.samples, held_out=self.held_out, batch=self.batch)
        if len(self.mean) != len(self.std) or 0 in self.std:
            raise SourceError("mean and std need one entry a channel, std none of 0")

    def batches(self, loaded: Loaded, split: Split = "calibration") -> list[Batch]:
        import torch

        apart = bool(self.held_out_file) and split == "held-out"
        images = _read(self.held_out_file if apart else self.file, self.key)
        if self.held_out_file:
            chosen = part_of(images, "calibration", self.held_out if apart else self.samples, 0)
        else:
            chosen = part_of(images, split, self.samples, self.held_out)
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        parts = in_batches(chosen, self.batch)
        made = [((torch.from_numpy(p).float() / self.scale - mean) / std,) for p in parts]
        if not self.labels:
            return list(made)
        classes = _array(self.held_out_file if apart else self.file, self.labels)
        if len(classes) != len(images):
            raise SourceError(
                f"{len(classes)} labels for {len(images)} images",
                where=self.held_out_file if apart else self.file,
                hint="name the array of one class an image in 'labels'",
            )
        if self.held_out_file:
            known = part_of(classes, "calibration", self.held_out if apart else self.samples, 0)
        else:
            known = part_of(classes, split, self.samples, self.held_out)
        told = in_batches(known, self.batch)
        return [Labelled(a, torch.from_numpy(t).long()) for a, t in zip(made, told)]


def _read(file: str, key: str):  # type: ignore[no-untyped-def]
    found = _array(file, key)
    if found.ndim != 4 or found.dtype.kind not in "buif":
        raise SourceError(
            f"{key!r} is {found.dtype} of shape {found.shape}, no images",
            where=file,
            hint="images are numbers (n, channels, height, width)",
        )
    return found


def _array(file: str, key: str):  # type: ignore[no-untyped-def]
    import numpy as np

    path = find_path(file)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive[key]
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(
            f"cannot read {key!r}: {error}", where=str(path), hint="name the array in 'key'"
        ) from error
