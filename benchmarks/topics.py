"""A task of two CPU cores: to tell of a sentence of Python's documentation which topic it is from.

The model is MiniLM's last layers with a head that is fitted to the plain model's embeddings of some
sentences and frozen; the states that the layers below make are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tnc.decide.spec import read_spec
from tnc.errors import SourceError
from tnc.inputs import load
from tnc.sources.tokens import sentences

TOPICS, TOKENS, ADAPTED = 8, 24, 2
BATCH, HELD_OUT, FITTED = 16, 160, 160
DECAY = 2e-3


class Upper(nn.Module):
    """The last layers of an encoder with a frozen head, for states of sentences of one length."""

    def __init__(self, layers: Sequence[nn.Module], classes: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.register_buffer("head", torch.zeros(classes, width))
        self.register_buffer("shift", torch.zeros(classes))

    def embedded(self, states: Tensor) -> Tensor:
        """Return the mean state `[batch, width]` of states `[batch, tokens, width]`."""
        for layer in self.layers:
            found = layer(states)
            states = found[0] if isinstance(found, tuple) else found
        return states.mean(1)

    def forward(self, states: Tensor) -> Tensor:
        """Return logits `[batch, classes]`."""
        return functional.linear(self.embedded(states), self.head, self.shift)


@dataclass(frozen=True, eq=False)
class Task:
    """The model with a fitted head, states and topics to train on, and held-out ones."""

    model: Upper
    states: Tensor
    topics: Tensor
    held: Tensor
    held_topics: Tensor

    def batch(self, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Return a batch of a seed's own order."""
        order = torch.randperm(len(self.topics), generator=torch.Generator().manual_seed(seed))
        first = step * BATCH % (len(order) - BATCH + 1)
        rows = order[first : first + BATCH]
        return self.states[rows], self.topics[rows]

    @torch.no_grad()
    def loss(self, model: nn.Module) -> float:
        """Return the cross entropy on held-out sentences."""
        return float(functional.cross_entropy(model(self.held), self.held_topics))


def prepared() -> Task:
    """Load MiniLM, compute the states below the adapted layers, fit the head."""
    spec = read_spec("minilm", ["calibration.samples=32", "calibration.held_out=32"]).spec
    loaded = load(spec).loaded
    if loaded.tokenizer is None:
        raise SourceError("the model of the spec minilm has no tokenizer")
    ids, topics = _tokens(loaded.tokenizer)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    ids, topics = ids[order], topics[order]
    encoder = loaded.model.get_submodule("encoder")
    layers = list(encoder.get_submodule("layer").children())
    states = _below(loaded.model, layers[: len(layers) - ADAPTED], ids)
    model = Upper(layers[len(layers) - ADAPTED :], TOPICS, states.shape[-1]).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    rest = HELD_OUT + FITTED
    _fit_head_(model, states[HELD_OUT:rest], topics[HELD_OUT:rest])
    return Task(model, states[rest:], topics[rest:], states[:HELD_OUT], topics[:HELD_OUT])


def _tokens(tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Return ids of sentences of at least so many tokens, cut there, and their topics."""
    from pydoc_data.topics import topics

    texts = {name: sentences(text) for name, text in topics.items()}
    most = sorted(texts, key=lambda name: (-len(texts[name]), name))[:TOPICS]
    ids, numbers = [], []
    for number, name in enumerate(most):
        for found in tokenizer(texts[name], truncation=True, max_length=TOKENS)["input_ids"]:
            if len(found) == TOKENS:
                ids.append(found)
                numbers.append(number)
    return torch.tensor(ids), torch.tensor(numbers)


@torch.no_grad()
def _below(model: nn.Module, layers: Sequence[nn.Module], ids: Tensor) -> Tensor:
    """Return the states that the first layers make of ids, in batches."""
    parts = []
    for part in ids.split(64):
        states = model.get_submodule("embeddings")(input_ids=part)
        for layer in layers:
            found = layer(states)
            states = found[0] if isinstance(found, tuple) else found
        parts.append(states)
    return torch.cat(parts)


def _fit_head_(model: Upper, states: Tensor, topics: Tensor) -> None:
    """Fit the head to the embeddings that the model makes, with decay."""
    with torch.no_grad():
        x = torch.cat([model.embedded(part) for part in states.split(64)])
    head = torch.zeros_like(model.head).requires_grad_()  # type: ignore[arg-type]
    shift = torch.zeros_like(model.shift).requires_grad_()  # type: ignore[arg-type]
    optimizer = torch.optim.LBFGS([head, shift], max_iter=100)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(functional.linear(x, head, shift), topics)
        loss = loss + DECAY * head.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    model.head.copy_(head.detach())  # type: ignore[operator]
    model.shift.copy_(shift.detach())  # type: ignore[operator]
