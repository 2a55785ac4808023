"""Kernels that look rows of a table up in the cores of its structure."""
