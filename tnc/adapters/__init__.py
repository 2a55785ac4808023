"""Adapters: deltas of any structure beside frozen weights, by named methods."""

from tnc.adapters.adapters import Adapters, of
from tnc.adapters.adapting import Rule, adapt, adapt_
from tnc.adapters.method import Method, Parts, Start

__all__ = ["Adapters", "Method", "Parts", "Rule", "Start", "adapt", "adapt_", "of"]
