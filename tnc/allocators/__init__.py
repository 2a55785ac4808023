"""Allocators, one file each: how a plan chooses one option for every target."""
