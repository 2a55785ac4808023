"""One torch thread a test process, and no test that is a race against other work on the machine."""

from __future__ import annotations

from multiprocessing import set_forkserver_preload

import torch
from hypothesis import settings

torch.set_num_threads(1)  # small models run many times slower on several

# a second for each process that a test starts: what they need is imported once, before they part
set_forkserver_preload(["torch.distributed.fsdp", "tnc.api", "tnc.adapters", "tnc.optim"])

settings.register_profile("tnc", deadline=None)
settings.load_profile("tnc")
