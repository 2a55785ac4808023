"""Specs that show structures, the free form among them; try them with `tnc plan`."""
