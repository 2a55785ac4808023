"""Benchmarks: each module with a NAME is one; `python -m benchmarks` lists and runs them."""
