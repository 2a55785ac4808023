"""Rows that generated look-ups give are those of the rebuilt table, forward and in gradients."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tnc
from tests.compiled import spec
from tests.laws.data import OPTIONS
from tnc.cli import main
from tnc.decide.spec_parts import Kernels
from tnc.errors import KernelError
from tnc.kernels.applied import tuning
from tnc.kernels.lookups import choose
from tnc.kernels.lookups.check import require
from tnc.kernels.lookups.choose import LookUpChoice, LookUpTask, choice_from, choice_to
from tnc.kernels.lookups.loops import nests
from tnc.kernels.lookups.program import lays, lookups
from tnc.kernels.lookups.source import emit, function
from tnc.kernels.loops.rates import known
from tnc.kernels.operands import lay
from tnc.kernels.program import Multiply
from tnc.net import Signature, Structure, parse_network
from tnc.nn import EmbeddingView, StructuredLayer
from tnc.nn.generated import kernels_of, plain_kernels
from tnc.structures import families

FAMILIES = [
    (name, family(**options))
    for name, family in sorted(families.all().items())
    for options in OPTIONS.get(name, ({},))
]
TRAIN = "G1[o1 i1 r] G2[r o2 i2 s] G3[s o3 i3] : (i1 i2 i3) -> (o1 o2 o3)"
SIZES = " | i1=2 i2=3 i3=2 o1=4 o2=3 o3=5 r=4 s=3"
ROWS, WIDTH = 60, 24


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TNC_CACHE", str(tmp_path / "cache"))
    known.cache_clear()
    yield
    known.cache_clear()
    choose.ranked.cache_clear()
    choose.measured.cache_clear()


def structures() -> Iterator[tuple[str, Structure]]:
    signature = Signature((ROWS,), (WIDTH,))
    for name, family in FAMILIES:
        if not family.refuses(signature):
            template = family.template(signature)
            found = template.at({n: min(2, bound) for n, bound in template.bounds})
            if not found.stored:
                yield f"{name}-{family}", found


EVERY = dict(structures())


def made(structure: Structure, padding_idx: int | None = None, **more: Any) -> StructuredLayer:
    generator = torch.Generator().manual_seed(1)
    more = {"dtype": torch.float64} | more
    view = EmbeddingView(padding_idx)
    return StructuredLayer.initialised(structure, view, 0.5, generator=generator, **more)


def numbers(*shape: int) -> Tensor:
    return torch.randint(ROWS, shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", EVERY)
def test_every_structure_is_its_table_in_value_and_gradient(name: str) -> None:
    layer = made(EVERY[name], padding_idx=7)
    cores = list(layer.cores.values())
    for x in (numbers(9), numbers(3, 4).int(), numbers(4, 6)[:, ::2], numbers(1)[0]):
        x.view(-1)[0] = 7 if x.is_contiguous() else x.view(-1)[0] if x.dim() < 1 else x[0, 0]
        table = layer.weight
        kept = torch.where((x == 7).unsqueeze(-1), table[x.long()].detach(), table[x.long()])
        found = layer(x)
        torch.testing.assert_close(found, table[x.long()])
        seed = torch.randn(found.shape, dtype=found.dtype)
        mine = torch.autograd.grad(found, cores, seed, allow_unused=True)
        theirs = torch.autograd.grad(kept, cores, seed, allow_unused=True)
        for one, other, core in zip(mine, theirs, cores):
            zero = torch.zeros_like(core)
            torch.testing.assert_close(*(zero if g is None else g for g in (one, other)))
        with torch.no_grad():
            torch.testing.assert_close(layer(x), table[x.long()].detach())
            with plain_kernels():
                torch.testing.assert_close(layer(x), table[x.long()].detach())
    assert layer(numbers(0, 5)).shape == (0, 5, WIDTH)


@pytest.mark.parametrize("name", EVERY)
def test_every_program_and_its_loops_give_the_rows(name: str) -> None:
    for term in EVERY[name].terms:
        for program in islice(lookups(term), 12):
            require(term, program)
            found = nests(program, 3)
            if found is None:
                continue
            generator = torch.Generator().manual_seed(0)
            cores = {
                core.name: torch.randn(term.shape(core), generator=generator, dtype=torch.float64)
                for core in term.equation.cores
            }
            operands = [lay(how, cores) for how in lays(term, program)]
            x = torch.tensor([0, 17, ROWS - 1])
            wanted = function(emit(program))(x, *operands)
            source = LookUpChoice(program, looped=True).source(3)
            space: dict[str, Any] = {}
            exec(source, space)
            y = [0.0] * wanted.numel()
            space["forward"](x.tolist(), *(o.flatten().tolist() for o in operands), y)
            torch.testing.assert_close(torch.tensor(y, dtype=torch.float64), wanted.flatten())


def test_the_check_refuses_a_wrong_program() -> None:
    network = parse_network(TRAIN + SIZES)
    program = next(p for p in lookups(network) if len(p.products) == 2)
    first = program.products[0]
    assert isinstance(first, Multiply)
    swapped = tuple(
        replace(table, operand=replace(table.operand, layout=(*table.picked, *table.rest[::-1])))
        for table in program.tables
    )
    with pytest.raises(KernelError, match="does not give the rows"):
        require(network, replace(program, tables=swapped))


def layer_of(**more: Any) -> StructuredLayer:
    return made(Structure.of(parse_network(TRAIN + SIZES)), **more)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loops_run_where_they_were_timed(dtype: torch.dtype) -> None:
    pytest.importorskip("numba")
    layer = layer_of(dtype=dtype)
    table = layer.weight.detach()
    with torch.no_grad(), tuning("measure"):
        for count in (1, 2, 5, 20):
            torch.testing.assert_close(layer(numbers(count)), table[numbers(count)])
        (part,) = kernels_of(layer)
        assert any(ready.calls for ready in part._ready.values())
        for x in (torch.tensor([ROWS]), torch.tensor([-1]), torch.tensor([0, 10**6])):
            with pytest.raises(IndexError):
                layer(x)


def test_nothing_that_is_kept_goes_stale_nor_is_copied() -> None:
    layer, x = layer_of(), numbers(3, 4)
    with torch.no_grad():
        before = layer(x)
        for write in ("mul_", "data"):
            core = layer.cores["G2"]
            core.mul_(1.5) if write == "mul_" else core.data.mul_(1.5)
            found = layer(x)
            torch.testing.assert_close(found, layer.weight[x])
            assert not torch.allclose(found, before)
            before = found
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            torch.testing.assert_close(other(x), before)
        layer.train()
        (part,) = kernels_of(layer)
        assert not any(ready.kept for ready in part._ready.values())
    mapped = torch.vmap(layer)(x)
    torch.testing.assert_close(mapped, before)


def test_choices_are_data() -> None:
    network = parse_network(TRAIN + SIZES)
    for choice in choose.ranked(LookUpTask(network, 32, "float32", 1, False)):
        again = choice_from(json.loads(json.dumps(choice_to(choice))), network)
        assert again == choice and again.source(32) == choice.source(32)
    with pytest.raises(ValueError, match="no look-up"):
        choice_from({**choice_to(choice), "program": ["x"]}, network)


def test_embeddings_are_listed_and_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = nn.Sequential(nn.Embedding(ROWS, WIDTH)).eval()
    rule = {"match": "0.*", "structure": {"kind": "tensor-train", "factors": 3}, "keep": 0.5}
    compiled = tnc.compile(net, spec(rule), example=torch.zeros(1, 4, dtype=torch.long))
    folder = tnc.save(compiled, tmp_path / "a", kernels=Kernels(rows=(1, 16)))
    assert main(["inspect", str(folder), "--kernels", "--rows", "16", "--tune", "measure"]) == 0
    told = capsys.readouterr().out
    for text in ("9 to 16 rows: predicted", "measured", "_rows", "why not otherwise"):
        assert text in told, told
    files = sorted((folder / "kernels").glob("*.py"))
    assert len(files) == 2 and all("embedding(" in file.read_text() for file in files)
    verified = tnc.verify(folder, model=net)
    assert verified.ok, verified.checks
    assert sum("generated again" in name for name, _ in verified.checks) == 2
