"""Alternating least squares of any topology: a plan of contractions, and the loops that run it."""
