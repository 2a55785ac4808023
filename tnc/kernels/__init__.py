"""What kernels cost on this machine, and the libraries that multiply matrices."""
