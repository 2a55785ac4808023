"""`compiled`: numba where it is installed, the plain function where it is not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

try:
    from numba import njit

    NUMBA = True
except ImportError:
    NUMBA = False
    logging.getLogger("tnc").warning(
        "numba is not installed: candidates are fitted by numpy, several times slower; "
        "pip install tnc[numba]"
    )


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call on a machine (seconds) and keep the code beside the file.

    What is kept is not renewed when another file changes: a compiled function calls only those of
    its own file.
    """
    return njit(cache=True, nogil=True)(function) if NUMBA else function
