"""Sentences that come with Python itself: the topics of its language reference."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tnc.sources.source import Batch, DataSource, Loaded, Split, datas
from tnc.sources.split import part_of, require_positive
from tnc.sources.tokens import sentences, tokenize


@datas.register("topics")
@dataclass(frozen=True)
class Topics(DataSource):
    """English sentences of 40 to 300 characters from `pydoc_data.topics`, shuffled by `seed`.

    They need no download, so that a first run works anywhere; for a serious compression take text
    of the kind that the model will see.
    """

    samples: int = 512
    held_out: int = 512
    batch: int = 32
    max_length: int = 128
    seed: int = 0

    trains = "training"

    def __post_init__(self) -> None:
        require_positive(samples=self.samples, held_out=self.held_out, batch=self.batch)

    def batches(self, loaded: Loaded, split: Split = "calibration") -> list[Batch]:
        chosen = part_of(self.sentences(), split, self.samples, self.held_out)
        return tokenize(loaded, chosen, self.batch, self.max_length)

    def sentences(self) -> list[str]:
        """Return all sentences in their order of use."""
        from pydoc_data.topics import topics

        found = sentences(" ".join(topics[name] for name in sorted(topics)))
        random.Random(self.seed).shuffle(found)
        return found
