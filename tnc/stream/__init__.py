"""Streaming: compile checkpoints that are larger than memory, tensor by tensor.

The same specs, plans, fits and artifacts as without; only where the weights are differs.
"""
