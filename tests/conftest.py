"""One torch thread a test process: small models run many times slower on several."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
