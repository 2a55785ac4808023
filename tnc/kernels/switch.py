"""Switch the library that multiplies inside of a kernel, and give it back.

The switch belongs to the process. The first kernel that switches remembers what was set, the last
one that leaves restores it, so kernels of several threads leave no trace.
"""

from __future__ import annotations

import threading
from typing import Any

from tnc.kernels.backend import PRECISION, _precision, _set_precision


class Switching:
    """A context in which `use` may be called; contexts of several threads may overlap."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = ""

    def __call__(self) -> Switching:
        return self

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = _precision()
            self._inside += 1

    def __exit__(self, *error: Any) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                _set_precision(self._before)


switching = Switching()


def use(backend: str) -> None:
    """Send the products that follow to a backend; only inside of `switching()`."""
    _set_precision(PRECISION[backend])
