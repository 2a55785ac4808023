"""Targets of a search: where the tensor comes from. One file each."""
