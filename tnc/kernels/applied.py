"""Networks applied by kernels: chosen once per bucket of rows, run with the current cores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tnc.errors import KernelError
from tnc.kernels.backend import allowed
from tnc.kernels.choose import Choice, Task, bucket, choose
from tnc.kernels.device import CPU, CUDA, device_name
from tnc.kernels.kept import Shelf
from tnc.kernels.ready import Ready, readied
from tnc.kernels.widened import Wide, Widened, computed
from tnc.net import Network

DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}
LINEAR_DTYPES = DTYPES | {torch.float16: "float16"}


def dtypes(device: str) -> dict[torch.dtype, str]:
    """Return the dtypes that have kernels on a torch device type; none where it has no kernels."""
    return LINEAR_DTYPES if device in (CPU, CUDA) else {}


TUNES = ("model", "measure")
_TUNE: ContextVar[tuple[str, float, bool]] = ContextVar("tnc_tune", default=("model", 0.0, False))


@contextmanager
def tuning(how: str, keep: float = 0.0, compile: bool = False) -> Iterator[None]:
    """Choose the kernels that are first needed in this block by the cost model, or by timing.

    What kernels for training `keep` for the backward beyond the input is at most that many times
    the bytes of the input, where that is faster; the rest is recomputed. With `compile` the plain
    program through `torch.compile` is timed too, which takes seconds for each kernel. Raises
    KernelError for another `how`, for a `keep` below 0, and for `compile` without timing.
    """
    if compile and how != "measure":
        raise KernelError(
            "torch.compile takes part only where kernels are timed",
            where="compile",
            hint="choose by 'measure', or leave compile out",
        )
    if how not in TUNES:
        raise KernelError(f"kernels are chosen by {' or '.join(TUNES)}, not {how!r}")
    if not keep >= 0:
        raise KernelError(
            f"{keep!r} is no bound on what is kept for the backward",
            where="keep",
            hint="a part of the bytes of the input: 0 for nothing, 0.25, 1.0, inf for everything",
        )
    token = _TUNE.set((how, float(keep), compile))
    try:
        yield
    finally:
        _TUNE.reset(token)


def measures() -> bool:
    """Whether kernels are chosen by timing here."""
    return _TUNE.get()[0] == "measure"


def choices(task: Task) -> tuple[Choice, ...]:
    """Return the ways to do a task, fastest first, by the tuning that is in force."""
    if not measures():
        return choose(task)
    from tnc.kernels.measure import measured

    return measured(task)


def task_of(
    network: Network, rows: int, training: bool, dtype: torch.dtype, device: str = CPU
) -> Task:
    """Return what is chosen for when a network meets `rows` inputs on a torch device type now."""
    name, (_, keep, compiled) = dtypes(device)[dtype], _TUNE.get()
    cpu = device == CPU
    threads = torch.get_num_threads() if cpu else 1
    return Task(
        network,
        bucket(rows),
        computed(name, threads) if cpu else name,
        threads,
        training,
        allowed() if cpu else "",
        device_name(device, name),
        keep if training else 0.0,
        compiled,
    )


@dataclass(eq=False)
class Applied:
    """One network, with a kernel for every bucket of rows, dtype and type of device met.

    Kernels are chosen at the first call of a bucket, for the threads that torch has then.
    """

    network: Network
    _ready: dict[tuple[Any, ...], Ready | Widened] = field(default_factory=dict)
    _laid: Shelf[Tensor] = field(default_factory=Shelf)
    _wide: Wide = field(default_factory=Wide)

    def __call__(
        self, cores: Mapping[str, Tensor], x: Tensor, bias: Tensor | None, training: bool
    ) -> Tensor:
        """Apply to rows `[n, inputs]`, contiguous."""
        rows = x.size(0)
        ready = self._ready.get(((rows - 1).bit_length(), training, x.dtype, x.is_cuda))
        if ready is None:
            ready = self.prepare(rows, training, x.dtype, x.device.type)
        if training:
            return ready.train(cores, x, bias)
        return ready.run(cores, x, bias)

    def forget(self) -> None:
        """Drop kept operands; they are made anew at the next call."""
        self._laid.forget()
        self._wide.forget()
        for ready in self._ready.values():
            ready.forget()

    def prepare(
        self, rows: int, training: bool, dtype: torch.dtype, device: str = CPU
    ) -> Ready | Widened:
        """Choose the kernel of a bucket, and use it from now on."""
        made = self.ready(rows, training, dtype, device)
        self._ready[(rows - 1).bit_length(), training, dtype, device == CUDA] = made
        return made

    def ready(
        self, rows: int, training: bool, dtype: torch.dtype, device: str = CPU
    ) -> Ready | Widened:
        """Choose the kernel of a bucket."""
        task = task_of(self.network, rows, training, dtype, device)
        made = readied(self.network, choices(task)[0], self._laid)
        return made if task.dtype == LINEAR_DTYPES[dtype] else Widened(made, self._wide)
