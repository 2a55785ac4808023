"""What measured times depend on."""

from __future__ import annotations

import os
import platform


def environment() -> tuple[tuple[str, str], ...]:
    """Return what measured times depend on."""
    import torch

    from tnc import __version__

    return (
        ("tnc", __version__),
        ("torch", str(torch.__version__)),
        ("python", platform.python_version()),
        ("machine", platform.machine()),
        ("threads", str(torch.get_num_threads())),
        ("cores", str(os.cpu_count())),
    )
