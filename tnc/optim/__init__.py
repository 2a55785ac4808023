"""Optimizers: what their state is, how it follows parameters, and rules with structured state."""

from tnc.optim.following import follow
from tnc.optim.kinds import FORMS, Form, Kind, form_of
from tnc.optim.moving import Maps, move_, refusal
from tnc.optim.together import Together

__all__ = ["FORMS", "Form", "Kind", "Maps", "Together", "follow", "form_of", "move_", "refusal"]
