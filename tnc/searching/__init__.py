"""Search runs: specs, targets, run folders, and what comes out of them."""
