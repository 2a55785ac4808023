"""Make a plan for a model: options of every target, budgets, allocation, rescoring on the model."""

from tnc.planner.making import make_plan
from tnc.planner.trial import Evaluator

__all__ = ["Evaluator", "make_plan"]
