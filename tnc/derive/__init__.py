"""What follows from an equation: contractions, cost, adjoints, initialisation, drawings.

No torch. Everything here is a pure function of networks and structures.
"""

from tnc.derive.adjoint import adjoint
from tnc.derive.contraction import Contraction, Order, Step
from tnc.derive.cost import Cost, Work, cost, parameters
from tnc.derive.dense import dense, forward
from tnc.derive.draw import draw_svg, draw_text
from tnc.derive.initial import core_std, learning_rate_factors

__all__ = [
    "Contraction",
    "Cost",
    "Order",
    "Step",
    "Work",
    "adjoint",
    "core_std",
    "cost",
    "dense",
    "draw_svg",
    "draw_text",
    "forward",
    "learning_rate_factors",
    "parameters",
]
