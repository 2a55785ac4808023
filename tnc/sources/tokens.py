"""Sentences and tokens: what text sources share."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tnc.errors import SourceError
from tnc.sources.source import Batch, Loaded
from tnc.sources.split import in_batches

_END = re.compile(r"(?<=[.!?])\s+")


def sentences(text: str, shortest: int = 40, longest: int = 300) -> list[str]:
    """Split text at sentence ends, white space collapsed; keep those of suitable length, once.

    >>> sentences("One  two. Three\\nfour! One two.", 5, 20)
    ['One two.', 'Three four!']
    """
    found = _END.split(" ".join(text.split()))
    return list(dict.fromkeys(s for s in found if shortest <= len(s) <= longest))


def tokenize(loaded: Loaded, texts: Sequence[str], batch: int, max_length: int) -> list[Batch]:
    """Return batches of padded token ids as keyword arguments. Raises SourceError.

    Texts of like length share a batch, which leaves little padding; a batch of median length comes
    first, since it serves as the example input.
    """
    if loaded.tokenizer is None:
        raise SourceError(
            "the model came without a tokenizer, so text cannot be fed to it",
            hint="use data of kind 'random', 'npz' or 'callable'",
        )
    if loaded.tokenizer.pad_token is None:
        loaded.tokenizer.pad_token = loaded.tokenizer.eos_token
    return [
        dict(
            loaded.tokenizer(
                list(part),
                padding=True,
                truncation=True,
                max_length=max_length,
                return_tensors="pt",
            )
        )
        for part in _by_length(texts, batch)
    ]


def _by_length(texts: Sequence[str], batch: int) -> list[Sequence[str]]:
    parts = in_batches(sorted(texts, key=lambda text: (len(text), text)), batch)
    return parts[len(parts) // 2 :] + parts[: len(parts) // 2]
