"""Streaming: compile checkpoints that are larger than memory, weight by weight or block by block.

The same specs, plans, fits and artifacts as without; only where the weights are differs.
"""
