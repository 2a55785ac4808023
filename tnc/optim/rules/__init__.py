"""Structured optimizers, one file each; see `tnc.optim.rule`."""
