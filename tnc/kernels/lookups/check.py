"""A look-up is compared with a plain contraction before it is used, on small sizes."""

from __future__ import annotations

from functools import lru_cache

import torch

from tnc.derive.dense import dense
from tnc.errors import KernelError
from tnc.kernels.einsums import lower
from tnc.kernels.lookups.program import LookUp, lays
from tnc.kernels.lookups.source import emit, function
from tnc.kernels.operands import lay
from tnc.net import Network


@lru_cache(maxsize=4096)
def require(network: Network, program: LookUp) -> None:
    """Raise KernelError where a program's rows are not those of the network's table.

    Every row is looked up, of legs of sizes 2 and 3 in turn, in float64. Legs of size 1 stay so:
    programs may take them in any order.
    """
    names = sorted(network.size)
    sizes = {n: 1 if network.size[n] == 1 else 2 + place % 2 for place, n in enumerate(names)}
    small = Network.of(network.equation, sizes)
    given = LookUp(program.tables, program.steps, program.outputs, program.inputs, small.sizes)
    generator = torch.Generator().manual_seed(0)
    cores = {
        core.name: torch.randn(small.shape(core), generator=generator, dtype=torch.float64)
        for core in small.equation.cores
    }
    contraction = dense(small)
    (rows,), (width,) = small.signature.outputs, small.signature.inputs
    wanted = lower(contraction).run([cores[name] for name in contraction.names])
    wanted = wanted.reshape(rows, width)
    found = function(emit(given))(
        torch.arange(rows), *(lay(how, cores) for how in lays(small, given))
    )
    if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=1e-9, atol=1e-9):
        raise KernelError(
            "a look-up does not give the rows of its table: a fault of the search",
            where=str(network),
        )
