"""FedKSeed: federated training without gradients, over a pool of seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tnc.errors import BindError
from tnc.optim.seeds import Layout, mixed
from tnc.optim.zeroth import ZerothOrder, move_


@dataclass(frozen=True, eq=False)
class Packet:
    """What a client did in a round: a step length for every seed of the pool, 4 bytes each.

    `lengths` (K) float32; `seed` names the pool. Packets of clients are averaged by `merged`, and
    rounds add up: the sum of a run's packets takes the first model to the last.
    """

    layout: Layout
    seed: int
    lengths: Tensor

    @torch.no_grad()
    def apply_(self, parameters: Sequence[Tensor]) -> None:
        """`W <- W - sum over j of a_j z_j`, in order of j: the same bits on every machine.

        Raises BindError where the parameters are not those that it was recorded on, such as cores.
        """
        held = list(parameters)
        self.layout.check(held)
        for number in torch.nonzero(self.lengths)[:, 0].tolist():
            seed, length = mixed(self.seed, number), float(self.lengths[number])
            move_(held, seed, -length)

    def __add__(self, other: Packet) -> Packet:
        """Put one round after another."""
        _check(self, other)
        return Packet(self.layout, self.seed, self.lengths + other.lengths)


def merged(packets: Sequence[Packet], weights: Sequence[float] | None = None) -> Packet:
    """Return the weighted mean of packets, by default with equal weights.

    Raises BindError for packets of other pools or parameters, or weights that do not fit.
    """
    if not packets:
        raise BindError("no packets to average")
    shares = [1.0] * len(packets) if weights is None else [float(w) for w in weights]
    if len(shares) != len(packets) or sum(shares) <= 0 or min(shares) < 0:
        raise BindError(
            f"{len(shares)} weights for {len(packets)} packets, of sum {sum(shares):g}",
            hint="one weight a packet, none negative: the clients' numbers of samples",
        )
    total = torch.zeros_like(packets[0].lengths, dtype=torch.float64)
    for packet, share in zip(packets, shares):
        _check(packets[0], packet)
        total += packet.lengths.double() * (share / sum(shares))
    return Packet(packets[0].layout, packets[0].seed, total.float())


class FedKSeed(ZerothOrder):
    """MeZO's step along one of K directions: `W <- W - lr c z_j`, and `a_j <- a_j + lr c`.

    All clients of a run share `seed` and `pool`; `client` sets the order in which one draws from
    the pool. `take` gives the packet of the round, after which the client puts its parameters back
    to the round's start and applies the merged packet. (Qin et al., Federated Full-Parameter Tuning
    at Under 18 Kilobytes, ICML 2024, algorithm 1, with equal probabilities.)

    >>> w = torch.nn.Parameter(torch.ones(3)); first = w.detach().clone()
    >>> client = FedKSeed([w], lr=0.1, pool=16)
    >>> _ = client.step(lambda: w.square().sum())
    >>> client.take().apply_([first])
    >>> torch.allclose(first, w)
    True
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-6,
        eps: float = 1e-3,
        pool: int = 4096,
        seed: int = 0,
        client: int = 0,
    ) -> None:
        if isinstance(pool, bool) or not isinstance(pool, int) or pool < 1:
            raise BindError(f"FedKSeed: pool is {pool!r}", hint="give a whole number from 1")
        super().__init__(
            params, {"lr": lr, "eps": eps, "pool": pool, "seed": int(seed), "client": int(client)}
        )
        rates = {float(group["lr"]) for group in self.param_groups}
        if len(rates) > 1:
            raise BindError(
                f"FedKSeed has one rate for all parameters, not {len(rates)}",
                hint="one length stands for a direction of all parameters",
            )
        self._begin()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> float:  # type: ignore[override]
        """Take one step and return the mean of the two losses."""
        held, group = self.parameters, self.param_groups[0]
        self._layout.check(held)
        number = mixed(int(group["seed"]), int(group["client"]), self.count()) % group["pool"]
        seed = mixed(int(group["seed"]), number)
        slope, loss = self.slope(closure, seed)
        length = float(group["lr"]) * slope
        move_(held, seed, -length)
        self._lengths[number] += length
        return loss

    def take(self) -> Packet:
        """Return what was done since the last call, and begin another round."""
        found = Packet(self._layout, int(self.param_groups[0]["seed"]), self._lengths.float())
        self._begin()
        return found

    def _begin(self) -> None:
        self._layout = Layout.of(self.parameters)
        self._lengths = torch.zeros(self.param_groups[0]["pool"], dtype=torch.float64)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_layout": self._layout, "_lengths": self._lengths}


def _check(first: Packet, other: Packet) -> None:
    if (first.layout, first.seed, len(first.lengths)) != (
        other.layout,
        other.seed,
        len(other.lengths),
    ):
        raise BindError(
            "packets of different pools or parameters do not add up",
            hint="all clients of a run share model, seed and pool",
        )
