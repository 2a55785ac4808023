"""Text files."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tnc.errors import SourceError
from tnc.sources.reference import find_path
from tnc.sources.source import Batch, DataSource, Loaded, Split, datas
from tnc.sources.split import in_batches, part_of, require_positive
from tnc.sources.tokens import sentences, tokenize

if TYPE_CHECKING:
    from torch import Tensor


@datas.register("text")
@dataclass(frozen=True)
class Text(DataSource):
    """A text file by lines, by sentences, or by blocks of `max_length` tokens without padding.

    `shortest` and `longest` bound sentences, in characters; empty lines are left out.
    """

    file: str
    unit: Literal["lines", "sentences", "blocks"] = "lines"
    samples: int = 512
    held_out: int = 512
    batch: int = 32
    max_length: int = 128
    shortest: int = 40
    longest: int = 300
    shuffle: bool = True
    seed: int = 0

    trains = "training"

    def __post_init__(self) -> None:
        require_positive(samples=self.samples, held_out=self.held_out, batch=self.batch)

    def batches(self, loaded: Loaded, split: Split = "calibration") -> list[Batch]:
        if self.unit == "blocks":
            return self._blocks(loaded, split)
        texts = self._texts()
        if self.shuffle:
            random.Random(self.seed).shuffle(texts)
        chosen = part_of(texts, split, self.samples, self.held_out)
        return tokenize(loaded, chosen, self.batch, self.max_length)

    def _read(self) -> str:
        path = find_path(self.file)
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(f"cannot read the text: {error}", where=str(path)) from error

    def _texts(self) -> list[str]:
        if self.unit == "sentences":
            return sentences(self._read(), self.shortest, self.longest)
        return [line.strip() for line in self._read().splitlines() if line.strip()]

    def _blocks(self, loaded: Loaded, split: Split) -> list[Batch]:
        import torch

        if loaded.tokenizer is None:
            raise SourceError("the model came without a tokenizer, so text cannot be fed to it")
        ids = torch.tensor(loaded.tokenizer(self._read(), verbose=False)["input_ids"])
        count = len(ids) // self.max_length
        rows = ids[: count * self.max_length].view(count, self.max_length)
        order = list(range(count))
        if self.shuffle:
            random.Random(self.seed).shuffle(order)
        chosen = part_of(order, split, self.samples, self.held_out)
        return [_full(rows[list(part)]) for part in in_batches(chosen, self.batch)]


def _full(ids: Tensor) -> Batch:
    import torch

    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
