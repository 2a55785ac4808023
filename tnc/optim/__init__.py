"""Optimizers that follow their parameters when these change shape."""

from tnc.optim.moving import Maps, move_, refusal

__all__ = ["Maps", "move_", "refusal"]
