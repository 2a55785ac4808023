"""Compile Triton kernels ahead of time for devices that need not be here; one line a kernel."""

from __future__ import annotations

from tests.unit.kernels.test_triton import CHAINS, programs_of
from tnc.kernels import triton_run
from tnc.net import parse_network

DEVICES = {80: "*bf16", 90: "*fp16"}
"""Compute capabilities, and the tensors that are compiled for each."""
SHARED = 160 << 10
"""Bytes of memory on the chip that a program may have on all of them."""


def main() -> None:
    """Compile every chain."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    for name, text in CHAINS.items():
        (program, *_) = programs_of(parse_network(text))
        kernel = triton_run.compiled(program, 16, True).__globals__["kernel"]
        for capability, tensor in DEVICES.items():
            kinds = dict.fromkeys(kernel.arg_names, tensor)
            whole = [a for a in kinds if a in ("n", "share") or a.startswith("by_")]
            kinds |= dict.fromkeys(whole, "i32") | {"precision": "constexpr"}
            source = ASTSource(fn=kernel, signature=kinds, constexprs={"precision": "ieee"})
            found = triton.compile(source, target=GPUTarget("cuda", capability, 32))
            assert found.metadata.shared < SHARED, name
            print(name, capability, len(found.asm["cubin"]), "bytes", flush=True)


if __name__ == "__main__":
    main()
