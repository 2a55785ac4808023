"""The kernel benchmarks: their cells, their oracle, how they count what is kept."""

from __future__ import annotations

import pytest
import torch

from benchmarks.kernels import judging, sides
from benchmarks.kernels.cells import cells
from benchmarks.kernels.measuring import Row, _ratios
from benchmarks.kernels.place import Place, places
from benchmarks.kernels.saving import growing_bytes, saved_bytes
from benchmarks.kernels.sides import Contender


def test_fifteen_structures_a_shape_within_the_stated_compression() -> None:
    every = cells(batches=(1,))
    assert [sum(cell.shape == shape for cell in every) for shape in ("768x3072", "4096x4096")] == [
        15,
        15,
    ]
    assert all(4 <= round(cell.compression, 1) <= 500 for cell in every)


@pytest.mark.parametrize(
    ("only", "count"), [("768 tt", 24), ("tt,btt b=1", 18), ("lr-r76 b=1,b=16", 2)]
)
def test_filter_words_meet_the_start_of_words_and_batches_whole(only: str, count: int) -> None:
    assert len(cells(only=only)) == count


def test_a_filter_that_meets_nothing_is_an_error() -> None:
    with pytest.raises(SystemExit, match="no cell meets 'tt9'"):
        cells(only="tt9")


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("label", ["lr-r40", "tt3-r8", "tucker2-r19", "btt-r1", "cp-r128"])
def test_contenders_meet_the_oracle_and_a_wrong_one_does_not(label: str, train: bool) -> None:
    pytest.importorskip("tltorch")
    (cell,) = cells(only=f"768 {label} b=1")
    numbers = sides.numbers(cell, train)
    rivals = [sides.tensorly_torch(cell, numbers, one) for one in ("factorized", "reconstructed")]
    made = [sides.ours(cell, numbers), sides.einsum(cell, numbers), sides.dense(numbers)]
    made += [sides.kept(cell, numbers), *rivals]
    for contender in filter(None, made):
        contender.check(label, numbers, train)
    right = made[0]
    wrong = Contender(lambda x: 1.001 * right.function(x), right.parameters, right.gradients)
    with pytest.raises(SystemExit, match="output is wrong"):
        wrong.check(label, numbers, train)


@pytest.mark.parametrize("train", [False, True])
def test_contenders_in_another_dtype_meet_the_exact_oracle(train: bool) -> None:
    place = Place("cpu", "bfloat16")
    for label in ("lr-r40", "tt3-r8"):
        (cell,) = cells(only=f"768 {label} b=1")
        numbers = sides.numbers(cell, train, place)
        assert numbers.x.dtype == torch.bfloat16 and numbers.output.dtype == torch.float64
        for made in (sides.ours(cell, numbers), sides.einsum(cell, numbers), sides.dense(numbers)):
            made.check(label, numbers, train)


def test_tables_on_cuda_have_one_library() -> None:
    place = Place("cuda", "bfloat16")
    (cell,) = cells(only="768 lr-r40 b=128")
    names = ("ours free", "einsum cublas", "dense cublas", "peak cublas", "copy")
    seconds = dict.fromkeys(names, 2e-5) | {"dense cublas": 4e-5}
    times = {name: [value, value] for name, value in seconds.items()}
    ratios = dict(_ratios(cell, place, times, seconds, False))
    assert ratios["dense cublas"] == 2 and "dense shipped" not in ratios
    rows = [Row(cell, seconds, ratios, (), place)]
    printed = judging.every(rows)
    assert all(len(line) == len(printed.columns) for line in printed.rows)
    assert {goal.result().figure for goal in judging.held(rows, False)} >= {
        "least-dense-same-cublas-half-the-flops"
    }
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="no CUDA device"):
            places("cuda", None)
    with pytest.raises(SystemExit, match="bfloat16"):
        places("cpu", "bfloat16")


class Hiding(torch.autograd.Function):
    """Keep an intermediate where hooks do not see it."""

    @staticmethod
    def forward(context, x, weight):
        context.hidden = x @ weight
        return context.hidden * 1.0

    @staticmethod
    def backward(context, gradient):
        return None, None


def test_bytes_kept_count_intermediates_once_even_hidden_ones() -> None:
    x, first, second = torch.rand(80, 8), torch.rand(8, 4), torch.rand(4, 6)
    weights = [first.requires_grad_(), second.requires_grad_()]
    middle = 80 * 4 * 4
    assert saved_bytes(lambda x: x @ first @ second, x, weights) == middle
    assert growing_bytes(lambda x: x @ first @ second, x, weights) == middle
    assert saved_bytes(lambda x: x @ first, x, weights) == 0
    assert saved_bytes(lambda x: Hiding.apply(x, first), x, weights) == middle
    assert growing_bytes(lambda x: x @ (first * 1.0) @ second, x, weights) == middle
