"""Images for training: shifted, mirrored, from several archives, the same for the same epoch."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from tnc.errors import SourceError
from tnc.sources import Loaded, datas

NOTHING = Loaded(torch.nn.Identity())


def archive(folder: Path, name: str, count: int, start: int = 0) -> str:
    """Write images whose pixels are all their number."""
    numbers = np.arange(start, start + count, dtype=np.uint8)
    np.savez(folder / name, x=np.broadcast_to(numbers[:, None, None, None], (count, 3, 4, 4)))
    return str(folder / name)


def numbers(batch: tuple[torch.Tensor, ...]) -> set[int]:
    return {round(255 * float(v)) for v in batch[0].amax((1, 2, 3))}


def test_held_out_images_are_never_trained_on(tmp_path: Path) -> None:
    files = (archive(tmp_path, "a.npz", 20, 1), archive(tmp_path, "b.npz", 40, 100))
    source = datas.get("images")(files=files, samples=6, held_out=5, batch=8, crop=1)
    held = set().union(*map(numbers, source.batches(NOTHING, "held-out")))
    calibration = set().union(*map(numbers, source.batches(NOTHING, "calibration")))
    epochs = source.stream(NOTHING, 3)
    trained = [numbers(batch) for n in range(3) for batch in epochs(n)]
    assert len(held) == 5 and len(calibration) == 6 and not held & calibration
    assert set().union(*trained) == (set(range(1, 21)) - held) | set(range(100, 140))
    assert all(len([v for v in batch if v >= 100]) == 4 for batch in trained)


def test_an_epoch_is_the_same_again_and_differs_from_the_next(tmp_path: Path) -> None:
    source = datas.get("images")(
        files=(archive(tmp_path, "a.npz", 20),), samples=4, held_out=4, batch=8
    )
    one, again = (list(source.stream(NOTHING)(0)) for _ in range(2))
    other = list(source.stream(NOTHING)(1))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, again))
    assert not all(torch.equal(a[0], b[0]) for a, b in zip(one, other))


def test_mirrored_images_are_mirrored(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(8, dtype=np.uint8), (16, 3, 8, 8))
    np.savez(tmp_path / "ramp.npz", x=ramp)
    source = datas.get("images")(
        files=(str(tmp_path / "ramp.npz"),), samples=4, held_out=4, batch=8, crop=0
    )
    (batch,) = next(iter(source.stream(NOTHING)(0)))
    rows = {tuple((255 * image[0, 0]).round().int().tolist()) for image in batch}
    assert rows == {tuple(range(8)), tuple(range(7, -1, -1))}


def test_jpeg_archives_are_read(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(file, "JPEG")
    data = np.frombuffer(file.getvalue() * 6, np.uint8)
    np.savez(tmp_path / "j.npz", jpeg=data, offset=np.arange(7) * (len(data) // 6))
    source = datas.get("images")(files=(str(tmp_path / "j.npz"),), samples=2, held_out=2, crop=0)
    (batch,) = next(iter(source.stream(NOTHING)(0)))
    assert batch.shape[1:] == (3, 8, 8) and abs(255 * float(batch.mean()) - 90) < 2


def test_refusals_in_words(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="files is empty"):
        datas.get("images")(files=())
    np.savez(tmp_path / "bad.npz", y=np.zeros(3))
    with pytest.raises(SourceError, match="cannot read images"):
        datas.get("images")(files=(str(tmp_path / "bad.npz"),)).batches(NOTHING)
    with pytest.raises(SourceError, match="are asked for"):
        datas.get("images")(files=(archive(tmp_path, "a.npz", 9),)).stream(NOTHING)
