"""One choice for every site under budgets for all: the multiple-choice knapsack and its solvers."""

from tnc.decide.allocation.solve import Effort
from tnc.decide.allocation.whole_model import Allocation, Choice, allocate, minimise_cost

__all__ = ("Allocation", "Choice", "Effort", "allocate", "minimise_cost")
