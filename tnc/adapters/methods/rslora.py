"""rsLoRA: LoRA whose step does not shrink as its rank grows."""

from __future__ import annotations

from dataclasses import dataclass

from tnc.adapters.method import methods
from tnc.adapters.methods.lora import LoRA


@methods.register("rslora")
@dataclass(frozen=True)
class RsLoRA(LoRA):
    """`W + (alpha / sqrt(rank)) B A`: LoRA with `stabilised`.

    With B zero and A of unit variance the outputs and their gradients stay of one size for every
    rank, which `alpha / rank` does not give. Start, matrices and r (o + i) parameters are those of
    LoRA. (Kalajdzievski, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA, 2023,
    theorem 3.2.)
    """

    stabilised: bool = True
