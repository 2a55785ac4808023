"""Engines: where evaluations run. One file each."""
