"""Triton kernels in Triton's interpreter, against torch's products: run with TRITON_INTERPRET=1.

Prints one line a case. Started by `test_triton`, as Triton reads the variable when it is imported.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tests.unit.kernels.test_triton import CHAINS, programs_of
from tnc.kernels import triton_run
from tnc.kernels.compiled import functions
from tnc.kernels.device import CPU
from tnc.kernels.emitters.torch_source import emit
from tnc.kernels.emitters.triton_source import ACTIVATIONS
from tnc.kernels.program import Program, extent
from tnc.kernels.way import Way
from tnc.net import parse_network

ACTING = {"": lambda y: y, "relu": functional.relu, "silu": functional.silu,
          "gelu": functional.gelu}  # fmt: skip


def check(program: Program) -> None:
    """Meet the oracle on integers and on others, in two dtypes, with strided operands.

    The interpreter takes the bits of bfloat16 for numbers in `tl.dot`: a GPU has to check those.
    """
    for dtype in (torch.float32, torch.float16):
        for bias in (False, True):
            reason = triton_run.wrong(program, 16, dtype, torch.device("cpu"), bias)
            assert not reason, reason
    x, given = triton_run._drawn(program, 3, torch.float32, torch.device("cpu"), True)
    drawn = torch.Generator().manual_seed(1)
    x, *given = (torch.randn(t.shape, generator=drawn) for t in (x, *given))
    strided = [t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in given[:-1]]
    wanted = functions(emit(program, Way(), bias=True))["forward"](x, *given)
    found = triton_run.forward(program, Way(16, emitter="triton"), True)(x, *strided, given[-1])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def check_that_faults_are_seen(program: Program) -> None:
    """A result of other columns is no result: the check says so."""
    x, given = triton_run._drawn(program, 20, torch.float32, torch.device("cpu"), False)
    found: Tensor = triton_run.compiled(program, 16, False)(x, *given)
    assert not triton_run.differing(program, found, x, given, False)
    assert "relative error" in triton_run.differing(program, found.roll(1, 1), x, given, False)


def main() -> None:
    """Check every case."""
    assert not triton_run.refused(CPU)
    for name, text in CHAINS.items():
        found = programs_of(parse_network(text))
        check(found[0])
        print(name, len(found), flush=True)
    (program, *_) = programs_of(parse_network(CHAINS["low-rank"]))
    check_that_faults_are_seen(program)
    size = dict(program.sizes)
    x = torch.randn(5, extent(program.inputs, size), generator=torch.Generator().manual_seed(0))
    given = [torch.ones([extent(g, size) for g in s.right.groups]) / 8 for s in program.products]
    wanted = functions(emit(program, Way()))["forward"](x, *given)
    for activation in ACTIVATIONS:
        found = triton_run.compiled(program, 16, False, activation)(x, *given)
        torch.testing.assert_close(found, ACTING[activation](wanted), rtol=1e-4, atol=1e-4)
    print("activations", len(ACTIVATIONS), flush=True)


if __name__ == "__main__":
    main()
