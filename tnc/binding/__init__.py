"""Optimizers go on when weights become cores, cores other cores, or dense again."""

from tnc.binding.ball import WeightBall
from tnc.binding.bind import Bound, bind
from tnc.binding.report import Line, Report
from tnc.binding.resuming import follow

__all__ = ["Bound", "Line", "Report", "WeightBall", "bind", "follow"]
