"""Distillation: train a compressed model to answer as the original does. No labels are needed."""

from tnc.distilling.distil import Distilled, distill
from tnc.errors import Interrupted

__all__ = ["Distilled", "Interrupted", "distill"]
