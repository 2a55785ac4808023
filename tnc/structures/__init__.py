"""Parametric families of structures, one file each.

A family turns the dimensions of a weight into a template: an equation, sizes of its legs, and rank
indices with their useful maxima. Everything else is derived. To add a family, add a file.
"""

from tnc.structures.family import Family, families
from tnc.structures.template import Template

__all__ = ["Family", "Template", "families"]
