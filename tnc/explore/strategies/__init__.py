"""Search strategies: what is evaluated next. One file each."""
