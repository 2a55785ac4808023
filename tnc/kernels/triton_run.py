"""Triton kernels started: compiled when they are first called, checked against torch's products.

Triton is imported here alone, and only when a kernel is asked for. A kernel runs on CUDA; where
Triton interprets (`TRITON_INTERPRET=1`) also on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from tnc.derive.dense import ROWS
from tnc.errors import KernelError
from tnc.kernels.device import CPU, CUDA, TF32, device_name
from tnc.kernels.emitters.torch_source import emit as torch_source
from tnc.kernels.emitters.triton_source import emit
from tnc.kernels.execute import execute
from tnc.kernels.program import Program, extent
from tnc.kernels.way import Way

FULL = 2
"""Programs that a multiprocessor is given, where the columns of a result can be shared out."""
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""The largest relative error (Frobenius) from torch's products, on small whole numbers."""

Forward = Callable[..., Tensor]


@cache
def refused(device: str) -> str:
    """Say why there are no Triton kernels on a device here; empty where there can be."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if device == CPU and not interpreting():
        return "triton has no kernels for the CPU"
    if device != CPU and not torch.cuda.is_available():
        return "torch finds no CUDA device"
    return ""


def interpreting() -> bool:
    """Whether Triton was told to interpret its kernels, which needs no device."""
    import triton

    return bool(triton.knobs.runtime.interpret)


def forward(program: Program, way: Way, bias: bool) -> Forward:
    """Return `forward(x, *operands[, bias])`, checked when a dtype is first met on a device.

    A kernel that does not compile or gives other numbers than torch's products is an error, since
    it was timed, and so checked, before it was chosen. Where torch is set not to round float32 to
    tf32 any more, torch's products run. Raises KernelError where triton is missing.
    """
    checked: set[tuple[torch.dtype, torch.device]] = set()
    run, oracle = compiled(program, way.tile, bias), _oracle(program, bias)

    def checking(x: Tensor, *given: Tensor) -> Tensor:
        if x.is_cuda and x.dtype == torch.float32 and precision(x) != "tf32":
            return oracle(x, *given)
        if (x.dtype, x.device) not in checked:
            reason = wrong(program, way.tile, x.dtype, x.device, bias)
            if reason:
                raise KernelError(
                    f"a Triton kernel does not compute its program: {reason}",
                    where=str(program),
                    hint="please report it; `tnc.nn.generated.plain_kernels()` computes without it",
                )
            checked.add((x.dtype, x.device))
        if x.is_cuda and x.device.index != torch.cuda.current_device():
            with torch.cuda.device(x.device):
                return run(x, *given)
        return run(x, *given)

    return checking


@lru_cache(maxsize=1024)
def compiled(program: Program, rows: int, bias: bool, activation: str = "") -> Forward:
    """Return the emitted `forward`. Raises KernelError where triton is missing."""
    if find_spec("triton") is None:
        raise KernelError(
            "this kernel was chosen with triton, which is not installed here",
            where=str(program),
            hint="pip install 'tnc[triton]', or choose anew with tnc.tune",
        )
    import triton
    import triton.language

    source = emit(program, rows, bias=bias, activation=activation)
    names: dict[str, Any] = {
        "__name__": __name__,
        "triton": triton,
        "tl": triton.language,
        "shared_out": shared_out,
        "precision": precision,
    }
    found: Forward = execute(source, names)["forward"]
    return found


def shared_out(x: Tensor, wide: int, block: int, programs: int, resident: bool) -> int:
    """Return the columns of one program: all where there are programs enough, else fewer.

    Programs that share the columns out make what comes before the last product each for itself;
    where that is not `resident`, a program has one block of columns.
    """
    if not resident:
        return block
    blocks = -(-wide // block)
    parts = max(1, min(blocks, FULL * _processors(x.device) // max(1, programs)))
    return block * -(-blocks // parts)


@cache
def _processors(device: torch.device) -> int:
    if device.type != CUDA:
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def precision(x: Tensor) -> str:
    """Return how float32 is multiplied, as torch is set now."""
    name = device_name(CUDA, "float32") if x.dtype == torch.float32 else CUDA
    return "tf32" if name == TF32 else "ieee"


@lru_cache(maxsize=1024)
def wrong(
    program: Program, rows: int, dtype: torch.dtype, device: torch.device, bias: bool = True
) -> str:
    """Say in what a kernel differs from torch's products on random integers; empty where it does
    not. What triton raises is a reason, too."""
    try:
        run = compiled(program, rows, bias)
        x, given = _drawn(program, rows + rows // 2 + 1, dtype, device, bias)
        found = run(x, *given)
    except Exception as error:  # whatever the compiler and the driver raise
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}" if str(
            error) else type(error).__name__  # fmt: skip
    return differing(program, found, x, given, bias)


def differing(
    program: Program, found: Tensor, x: Tensor, given: Sequence[Tensor], bias: bool
) -> str:
    """Say how far a result is from that of torch's products; empty where it is near."""
    with torch.no_grad():
        wanted = _oracle(program, bias)(x, *given).double()
    off = float((found.double() - wanted).norm() / wanted.norm().clamp_min(1e-30))
    if off <= LIMITS[x.dtype]:
        return ""
    return f"relative error {off:.1e} from torch's products on random integers"


def _oracle(program: Program, bias: bool) -> Forward:
    from tnc.kernels.compiled import functions

    found: Forward = functions(torch_source(program, Way(), bias=bias))["forward"]
    return found


def _drawn(
    program: Program, rows: int, dtype: torch.dtype, device: torch.device, bias: bool
) -> tuple[Tensor, list[Tensor]]:
    """Draw -1, 0 and 1: their sums are whole numbers that the dtypes hold, nearly all exactly."""
    made, size = torch.Generator().manual_seed(0), dict(program.sizes)

    def draw(*shape: int) -> Tensor:
        return torch.randint(-1, 2, shape, generator=made).to(device, dtype)

    x = draw(rows, extent(program.inputs, size))
    given = [
        draw(*(extent(group, size) for group in step.right.groups)) for step in program.products
    ]
    outputs = tuple(name for name in program.output if name != ROWS)
    return x, [*given, *([draw(extent(outputs, size))] if bias else [])]
