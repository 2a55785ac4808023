"""Options that many rules share: a family's class has them by inheritance."""

from __future__ import annotations

from tnc.optim.declaring import Declared
from tnc.optim.matrices import Precision
from tnc.optim.options import Betas, Count, NonNegative


class Moments(Declared):
    """Adam's: the decays of its two averages, and what is added to the root of the second."""

    betas: Betas = (0.9, 0.999)
    eps: NonNegative = 1e-8


class Subspace(Moments):
    """Adam's within a subspace: its dimension, and what its steps are multiplied by."""

    rank: Count = 128
    scale: NonNegative = 0.25
    eps = 1e-6


class Renewed(Subspace):
    """Those of a subspace that is taken anew every so many steps."""

    update_every: Count = 200


class Orthogonalised(Declared):
    """Those of Newton-Schulz: how often it is iterated, and in what (`iterated_in`)."""

    iterations: Count = 5
    precision: Precision = "auto"
