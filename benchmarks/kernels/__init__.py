"""Structured linear layers against tensorly-torch, einsum, dense and the roofline."""
