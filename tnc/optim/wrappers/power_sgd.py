"""PowerSGD with a rank of its own for every layer, chosen by L-GreCo's dynamic program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

from tnc.decide.allocation.buckets import least_error
from tnc.errors import BindError
from tnc.optim.options import Count, check_option

RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""The ranks that a layer may get, where they are cheaper than its gradient."""


def choose_ranks(
    gradients: Mapping[str, Tensor],
    rank: int = 4,
    ranks: Sequence[int] = RANKS,
    buckets: int = 10_000,
) -> dict[str, int]:
    """Return a rank for every gradient such that the total error is least at the price of `rank`.

    The price is the number of values sent, `r (m + n)` for a gradient read as (m, n), and what the
    one `rank` for all layers would send is the budget. The error of a rank is the energy of the
    singular values beyond it. Vectors, and matrices that no rank makes smaller, have no rank: they
    are sent as they are. Give gradients of a few steps' mean. (Alimohammadi et al., L-GreCo, MLSys
    2024, whose budget is the error of the default ranks instead.)

    >>> torch.manual_seed(0) and None
    >>> easy = torch.outer(torch.randn(32), torch.randn(32))
    >>> choose_ranks({"easy": easy, "hard": torch.randn(32, 32)}, rank=4)
    {'easy': 1, 'hard': 6}
    """
    check_option("choose_ranks", "rank", rank, Count)
    names, choices, errors, costs = [], [], [], []
    budget = 0.0
    for name, gradient in gradients.items():
        if gradient.dim() < 2:
            continue
        matrix = gradient.detach().flatten(1).double()
        m, n = matrix.shape
        own = sorted(r for r in {*ranks, rank} if r * (m + n) < m * n)
        if not own:
            continue
        if not bool(torch.isfinite(matrix).all()):
            raise BindError("a gradient is not finite", where=name)
        squares = torch.linalg.svdvals(matrix).square()
        names.append(name)
        choices.append(own)
        errors.append([float(squares[r:].sum()) for r in own])
        costs.append([float(r * (m + n)) for r in own])
        budget += max((c for r, c in zip(own, costs[-1]) if r <= rank), default=costs[-1][0])
    if not names:
        return {}
    picks = least_error(errors, costs, budget, buckets)
    return {name: own[pick] for name, own, pick in zip(names, choices, picks)}


@dataclass(eq=False)
class PowerSGD:
    """The state of the hook: torch's own state for every rank, and the rank of every parameter.

    Errors that feed back, and the factors that a step begins with, are torch's: one of each in the
    size of the gradient. Not part of checkpoints: after a resume the first `start` steps are plain.
    """

    model: nn.parallel.DistributedDataParallel
    ranks: Mapping[str, int]
    start: int
    states: dict[int, PowerSGDState] = field(default_factory=dict)
    _of: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        held = dict(self.model.module.named_parameters())
        unknown = sorted(set(self.ranks) - set(held))
        if unknown:
            raise BindError(
                f"the model has no parameter {unknown[0]!r}, which has a rank",
                hint=f"it has {', '.join(list(held)[:4])} ...",
            )
        if self.start < 2:
            raise BindError(
                f"start is {self.start}", hint="2 or more: gradients are bucketed anew after one"
            )
        for name, rank in self.ranks.items():
            check_option("power_sgd", "rank", rank, Count)
            self._of[id(held[name])] = rank
        for rank in sorted({0, *self.ranks.values()}):
            self.states[rank] = PowerSGDState(
                self.model.process_group,
                matrix_approximation_rank=max(rank, 1),
                start_powerSGD_iter=self.start,
                min_compression_rate=1 if rank else float("inf"),
                use_error_feedback=bool(rank),
                warm_start=bool(rank),
            )

    def rank_of(self, parameter: Tensor) -> int:
        """Return the rank of a parameter; 0 where its gradient is sent as it is."""
        return self._of.get(id(parameter), 0)

    @property
    def compression(self) -> float:
        """Values of all gradients over values sent, in the steps that were compressed."""
        sent = sum(state.total_numel_after_compression for state in self.states.values())
        whole = sum(state.total_numel_before_compression for state in self.states.values())
        return whole / sent if sent else 1.0


def power_sgd(
    model: nn.parallel.DistributedDataParallel, ranks: Mapping[str, int], start: int = 100
) -> PowerSGD:
    """Let a model that trains in several processes send its gradients in low rank.

    `ranks` by parameter name, as `choose_ranks` gives: the same in all processes. The first `start`
    steps are plain. Call it once, before training. The compression itself is
    `torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook`, run for the layers of each rank.
    (Vogels, Karimireddy and Jaggi, PowerSGD, NeurIPS 2019.)
    """
    state = PowerSGD(model, ranks, start)
    model.register_comm_hook(state, lambda own, bucket: _hook(own, bucket))  # no text annotations
    return state


@dataclass(frozen=True, eq=False)
class _Share:
    """The gradients of one rank within a bucket, as a bucket of their own."""

    number: int
    flat: Tensor
    shapes: tuple[torch.Size, ...]

    def index(self) -> int:
        return self.number

    def buffer(self) -> Tensor:
        return self.flat

    def gradients(self) -> list[Tensor]:
        parts = torch.split(self.flat, [shape.numel() for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes)]

    def is_last(self) -> bool:
        return False  # steps are counted by the whole hook: a rank may be in any bucket


def _hook(state: PowerSGD, bucket: Any) -> torch.futures.Future[Tensor]:
    gradients = bucket.gradients()
    places: dict[int, list[int]] = {}
    for place, parameter in enumerate(bucket.parameters()):
        places.setdefault(state.rank_of(parameter), []).append(place)
    for rank, found in sorted(places.items()):
        flat = torch.cat([gradients[place].reshape(-1) for place in found])
        share = _Share(bucket.index(), flat, tuple(gradients[place].shape for place in found))
        # torch's hook waits in callbacks on gloo's two threads: one at a time, or for ever
        flat.copy_(powerSGD_hook(state.states[rank], share).wait())
        for place, gradient in zip(found, share.gradients()):
            gradients[place].copy_(gradient)
    if bucket.is_last():
        for own in state.states.values():
            own.iter += 1
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done
