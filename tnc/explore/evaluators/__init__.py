"""Evaluators: how a candidate topology is fitted to a tensor. One file each."""
