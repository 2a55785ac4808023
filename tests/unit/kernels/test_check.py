"""Programs are checked on random integers modulo a prime; the check sees every kind of fault."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.unit.kernels.test_programs import NETWORKS, truth
from tnc.errors import KernelError
from tnc.kernels import choose, search
from tnc.kernels.check import require, wrong
from tnc.kernels.choose import Task, ranked
from tnc.kernels.compiled import functions
from tnc.kernels.machine import generic
from tnc.kernels.program import Copy, Matrix, Multiply, Program
from tnc.net import Network, parse_network

ROOT = Path(__file__).parents[3]
SWAPPED = "G1[o1 i1 r] G2[r o2 i2] : i1 i2 -> o1 o2 | i1=4 i2=6 o1=5 o2=3 r=2"


def programs(text: str, rows: int = 32) -> tuple[Network, list[Program]]:
    network = parse_network(text)
    machine = generic("float32", 1)
    found = [choice.program for choice in ranked(Task(network, rows, "float32", 1, True), machine)]
    return network, list(dict.fromkeys(found))


def with_step(program: Program, place: int, *steps: Multiply | Copy) -> Program:
    return replace(program, steps=(*program.steps[:place], *steps, *program.steps[place + 1 :]))


def swapped(matrix: Matrix) -> Iterator[Matrix]:
    """Two groups with their roles, in the other order of memory."""
    for a in range(len(matrix.groups)):
        for b in range(a):
            order = list(range(len(matrix.groups)))
            order[a], order[b] = b, a
            groups = tuple(matrix.groups[k] for k in order)
            if matrix.groups[a] and matrix.groups[b]:
                yield Matrix(matrix.value, groups, "".join(matrix.roles[k] for k in order))


def broken(program: Program) -> Iterator[Program]:
    """Programs with one fault each."""
    for place, operand in enumerate(program.operands):
        turned = replace(operand, layout=(*operand.layout[1:], operand.layout[0]))
        others = program.operands[:place], program.operands[place + 1 :]
        yield replace(program, operands=(*others[0], turned, *others[1]))
    for place, step in enumerate(program.steps):
        if isinstance(step, Copy):
            for after in (step.before, (*step.after[1:], step.after[0])):
                yield with_step(program, place, replace(step, after=after))
            continue
        for side in ("left", "right"):
            for other in swapped(getattr(step, side)):
                yield with_step(program, place, replace(step, **{side: other}))
        roles = step.left.roles
        for other in {roles.replace("m", "x").replace("k", "m").replace("x", "k")} - {roles}:
            left = replace(step.left, roles=other)
            yield with_step(program, place, replace(step, left=left))
        yield with_step(program, place)


@pytest.mark.parametrize("name", NETWORKS)
def test_programs_are_right(name: str) -> None:
    network, found = programs(NETWORKS[name])
    assert found and not any(wrong(network, program) for program in found)


@pytest.mark.parametrize("name", ["low-rank", "train", "tucker", "block-train", "cp", "ring"])
def test_every_fault_is_seen(name: str) -> None:
    network, found = programs(NETWORKS[name])
    faults = [(program, fault) for program in found for fault in broken(program)]
    assert len(faults) > 4
    for program, fault in faults:
        assert wrong(network, fault), f"{program}\nbecame\n{fault}"


def test_a_copy_left_out_is_seen() -> None:
    network, found = programs(SWAPPED)
    left_out = 0
    for program in found:
        for place, step in enumerate(program.steps):
            if isinstance(step, Copy) and place + 1 < len(program.steps):
                text = wrong(network, with_step(program, place))
                assert "cannot be run" in text
                user = program.steps[place + 1]
                assert isinstance(user, Multiply)
                through = replace(user, left=replace(user.left, value=step.source))
                steps = (*program.steps[:place], through, *program.steps[place + 2 :])
                assert "other numbers" in wrong(network, replace(program, steps=steps))
                left_out += 1
    assert left_out


def test_sizes_do_not_matter_but_ones_do() -> None:
    """A step that is right only where a leg has size 1 passes there and fails elsewhere."""
    lone = parse_network("B[o r] A[r i] : i -> o | i=7 o=9 r=1")
    wide = parse_network("B[o r] A[r i] : i -> o | i=7 o=9 r=2")
    _, found = programs("B[o r] A[r i] : i -> o | i=7 o=9 r=1")
    program = next(p for p in found if len(p.operands) == 2)
    core = program.operands[0]
    turned = replace(core, layout=core.layout[::-1])
    fault = replace(program, operands=(turned, *program.operands[1:]))
    assert not wrong(lone, fault)
    assert wrong(wide, replace(fault, sizes=wide.sizes))


def test_an_unchecked_program_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the search is told, with the program, before anything is computed."""
    honest = search.search

    def faulty(*args, **kwargs):  # type: ignore[no-untyped-def]
        return [replace(one, program=next(broken(one.program))) for one in honest(*args, **kwargs)]

    monkeypatch.setattr(choose, "search", faulty)
    with pytest.raises(KernelError, match="does not compute its network") as caught:
        programs(NETWORKS["train"])
    assert "G1" in caught.value.where and "plain_kernels" in caught.value.hint


def test_require_is_silent_where_all_is_well() -> None:
    network, found = programs(NETWORKS["blocks"])
    require(network, found[0])


def test_the_guide_shows_what_runs() -> None:
    """The program, the source and the picture of the guide are those of one network."""
    guide = (ROOT / "docs" / "guides" / "kernels.md").read_text(encoding="utf-8")
    equation, steps, *_ = re.findall(r"```text\n(.*?)\n```", guide, re.DOTALL)
    source = re.search(r"```python\n(.*?)```", guide, re.DOTALL).group(1)  # type: ignore[union-attr]
    drawing = (ROOT / "docs" / "images" / "kernel-program.svg").read_text(encoding="utf-8")
    network = parse_network(equation)
    names = [line.split("*")[1].strip().split("[")[0] for line in steps.splitlines() if "*" in line]
    layouts = {"G1": ("i1", "r", "o1"), "G2": ("i2", "r", "o2")}
    made = torch.Generator().manual_seed(0)
    cores = {core.name: torch.randn(network.shape(core), generator=made, dtype=torch.float64)
             for core in network.equation.cores}  # fmt: skip
    x = torch.randn(5, 768, generator=made, dtype=torch.float64)
    operands = []
    for name in names:
        legs = network.equation.core(name).indices
        laid = cores[name].permute([legs.index(leg) for leg in layouts[name]]).contiguous()
        operands.append(laid.view(32, -1) if name == "G1" else laid.view(-1, 64))
        assert f"× {name}" in drawing
    y = functions(source)["forward"](x, *operands, torch.ones(3072, dtype=torch.float64))
    torch.testing.assert_close(y, truth(network, cores, x) + 1)
