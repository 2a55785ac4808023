"""Programs as loops over flat memory, run by numba: for a few rows, where calls cost the most."""
