"""M-FAC and its sparse form against the dense inverse, over several steps."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn

from tnc.errors import BindError
from tnc.net import Structure, parse_network
from tnc.optim.rules.efcp import EFCP
from tnc.optim.rules.mfac import MFAC
from tnc.optim.sparsifying import Blocks
from tnc.optim.transport import Transport

SHAPES = ((5, 3), (4,), (2, 3, 2))


def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in SHAPES]


def give(given: list[nn.Parameter], seed: int) -> Tensor:
    """Put gradients on parameters and return them as one vector."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in given:
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(
            parameter
        )
    return flat([p.grad for p in given])


def flat(tensors: list) -> Tensor:  # type: ignore[type-arg]
    return torch.cat([t.detach().double().flatten() for t in tensors])


def dense(history: list[Tensor], window: int, damping: float, x: Tensor) -> Tensor:
    """(damp I + G^T G / k)^-1 x with the whole matrix."""
    return torch.linalg.solve(system_of(history, window, damping), x)


def system_of(history: list[Tensor], window: int, damping: float) -> Tensor:
    rows = torch.stack(history[-window:])
    unit = torch.eye(rows.shape[1], dtype=rows.dtype)
    return damping * unit + rows.mT @ rows / window


@pytest.mark.parametrize("damping", [1e-1, 1e-5])
def test_it_is_the_dense_inverse(damping: float) -> None:
    given = parameters()
    rule = MFAC(given, lr=0.1, window=4, damping=damping)
    history: list[Tensor] = []
    for step in range(11):
        before = flat(given)
        history.append(give(given, step))
        rule.step()
        moved = (before - flat(given)) / 0.1
        back = system_of(history, 4, damping) @ moved  # a solution would have its own error
        assert float((back - history[-1]).norm() / history[-1].norm()) < 1e-12


def test_momentum_and_decay_act_on_the_preconditioned_gradient() -> None:
    given = parameters()
    rule = MFAC(given, lr=0.1, window=3, damping=0.1, momentum=0.9, weight_decay=0.2)
    history: list[Tensor] = []
    buffer = torch.zeros(sum(p.numel() for p in given), dtype=torch.float64)
    for step in range(6):
        before = flat(given)
        history.append(give(given, step))
        rule.step()
        buffer = 0.9 * buffer + dense(history, 3, 0.1, history[-1])
        wanted = (1 - 0.1 * 0.2) * before - 0.1 * buffer
        assert float((flat(given) - wanted).abs().max()) < 1e-12


def test_a_parameter_without_gradients_leaves_no_stale_rows() -> None:
    given = parameters()
    rule = MFAC(given, lr=0.1, window=3, damping=0.1)
    history: list[Tensor] = []
    for step in range(7):
        row = give(given, step)
        if step in (3, 4):
            given[1].grad = None
            row[15:19] = 0
        before = flat(given)
        history.append(row)
        rule.step()
        if step == 6:  # rows 4, 5 and 6; that of step 4 has zeros for the second parameter
            wanted = dense(history, 3, 0.1, row)
            assert float(((before - flat(given)) / 0.1 - wanted).norm() / wanted.norm()) < 1e-12


def test_small_damping_is_accurate_in_float32() -> None:
    given = parameters(torch.float32)
    rule = MFAC(given, lr=1.0, window=4, damping=1e-6)
    history: list[Tensor] = []
    for step in range(6):
        before = flat(given)
        history.append(give(given, step))
        rule.step()
        wanted = dense(history, 4, 1e-6, history[-1])
        moved = before - flat(given)
    assert float((moved - wanted).norm() / wanted.norm()) < 1e-5


def test_rows_move_to_cores_as_gradients_do() -> None:
    weight = nn.Parameter(torch.randn(4, 6, dtype=torch.float64))
    rule = MFAC([weight], window=3)
    structure = Structure.of(parse_network("B[o r] A[r i] : i -> o | o=4 r=2 i=6"))
    cores = {
        "B": torch.randn(4, 2, dtype=torch.float64),
        "A": torch.randn(2, 6, dtype=torch.float64),
    }
    rows = []
    for _step in range(3):
        weight.grad = torch.randn(4, 6, dtype=torch.float64)
        rows.append(weight.grad)
        rule.step()
    group = rule.param_groups[0]
    read = rule.read(rule.state[weight], weight, group)
    moves = Transport(structure, cores)
    moved = {slot: moves.pull(row)["B"] for slot, row in read.items()}
    written = rule.write(moved, cores["B"], group)
    row = int(rule.state[weight]["clock"]) % 3
    expected = rows[-1] @ cores["A"].mT
    assert torch.allclose(written["gradients"][row], expected, rtol=0, atol=1e-12)
    flattened = written["gradients"].flatten(1)
    assert torch.allclose(written["products"], flattened @ flattened.mT, rtol=0, atol=1e-12)


def test_groups_share_window_and_damping() -> None:
    first, second, _ = parameters()
    with pytest.raises(BindError, match="window is 3 here and 4"):
        MFAC([{"params": [first]}, {"params": [second], "window": 3}], window=4)
    MFAC([{"params": [first]}, {"params": [second], "lr": 0.3}], window=4)


@pytest.mark.parametrize("half", [False, True])
def test_error_feedback_sends_everything_in_the_end(half: bool) -> None:
    given = parameters()
    rule = EFCP(given, lr=0.0, window=4, density=0.3, block=5, half=half)
    for step in range(6):
        before = [rule.state[p].get("error", torch.zeros_like(p)).clone() for p in given]
        give(given, step)
        rule.step()
        for parameter, old in zip(given, before):
            state = rule.state[parameter]
            row = int(state["clock"]) % 4
            blocks = Blocks.of(parameter.numel(), 5, 0.3)
            sent = torch.zeros(parameter.numel(), dtype=torch.float64)
            sent[blocks.flat(state["places"][row])] = state["values"][row].double()
            left = old + parameter.grad - sent.view_as(parameter) - state["error"]
            assert float(left.abs().max()) < 1e-15


def test_the_sparse_form_is_the_dense_inverse_of_the_sparse_history() -> None:
    given = parameters()
    rule = EFCP(given, lr=0.1, window=3, damping=0.01, density=0.4, block=4)
    errors = [torch.zeros(p.numel(), dtype=torch.float64) for p in given]
    history: list[Tensor] = []
    for step in range(8):
        before = flat(given)
        give(given, step)
        rows = []
        for place, parameter in enumerate(given):
            error = errors[place] + parameter.grad.flatten()
            sent = torch.zeros_like(error)
            for start in range(0, len(error), 4):
                part = error[start : start + 4]
                count = min(len(part), max(1, round(0.4 * len(part))))
                chosen = sorted(range(len(part)), key=lambda i: -abs(float(part[i])))[:count]
                for index in chosen:
                    sent[start + index] = part[index]
            errors[place] = error - sent
            rows.append(sent)
        history.append(torch.cat(rows))
        rule.step()
        wanted = dense(history, 3, 0.01, history[-1])
        moved = (before - flat(given)) / 0.1
        assert float((moved - wanted).norm() / wanted.norm()) < 1e-12


def test_all_entries_in_one_block_is_mfac() -> None:
    ours, theirs = parameters(), parameters()
    sparse = EFCP(ours, lr=0.1, window=3, damping=0.01, density=1.0)
    full = MFAC(theirs, lr=0.1, window=3, damping=0.01)
    for step in range(5):
        give(ours, step)
        give(theirs, step)
        sparse.step()
        full.step()
    assert float((flat(ours) - flat(theirs)).abs().max()) < 1e-12


@pytest.mark.parametrize(("block", "places"), [(2**15, torch.int16), (2**16, torch.int32)])
def test_places_survive_saving_beside_bfloat16(block: int, places: torch.dtype) -> None:
    weight = nn.Parameter(torch.randn(3 * block // 2).bfloat16())
    rule = EFCP([weight], window=2, density=0.001, block=block)
    weight.grad = torch.randn_like(weight)
    rule.step()
    file = io.BytesIO()
    torch.save(rule.state_dict(), file)
    file.seek(0)
    again = EFCP([weight], window=2, density=0.001, block=block)
    again.load_state_dict(torch.load(file, weights_only=True))
    for slot in ("places", "values", "products", "error"):
        old, new = rule.state[weight][slot], again.state[weight][slot]
        assert new.dtype == old.dtype and torch.equal(old, new), slot
    assert again.state[weight]["places"].dtype == places
    assert int(rule.state[weight]["places"].max()) > 256
