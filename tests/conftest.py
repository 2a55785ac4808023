"""One torch thread a test process, and no test that is a race against other work on the machine."""

from __future__ import annotations

import torch
from hypothesis import settings

torch.set_num_threads(1)  # small models run many times slower on several

settings.register_profile("tnc", deadline=None)
settings.load_profile("tnc")
