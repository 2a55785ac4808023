"""Chains of products as Triton kernels: what is a chain, what is printed, what the interpreter
says of it."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from tnc.kernels import fused as fusing
from tnc.kernels.chain import chain_of
from tnc.kernels.choose import Choice, Task, choose
from tnc.kernels.codec import choice_from, choice_to
from tnc.kernels.device import CUDA
from tnc.kernels.emitters.triton_source import emit
from tnc.kernels.fused import fused, least, refused
from tnc.kernels.in_words import libraries
from tnc.kernels.outcome import outcome
from tnc.kernels.program import Program
from tnc.kernels.way import Way
from tnc.net import Network, parse_network

CHAINS = {
    "low-rank": "B[o r] A[r i] : i -> o | i=70 o=150 r=19",
    "tucker": "U[o a] G[a b] V[b i] : i -> o | i=40 o=33 a=17 b=20",
    "train of two": "G1[o1 i1 r] G2[r o2 i2] : (i1 i2) -> (o1 o2) | i1=6 i2=10 o1=5 o2=9 r=16",
    "block train": "L[o1 o2 i2 r] R[o2 i1 i2 r] : (i1 i2) -> (o1 o2) | i1=16 i2=3 o1=20 o2=4 r=16",
    "train of three": "G1[o1 i1 r] G2[r o2 i2 s] G3[s o3 i3] : (i1 i2 i3) -> (o1 o2 o3) "
    "| i1=3 i2=2 i3=16 o1=2 o2=16 o3=3 r=16 s=16",
}


def programs_of(network: Network) -> list[Program]:
    """Return the programs of a network that are chains."""
    choices = choose(Task(network, 32, "float32", 1, False, device=CUDA))
    return list(dict.fromkeys(each.program for each in choices if is_chain(each.program)))


def is_chain(program: Program) -> bool:
    """Whether a program is a chain."""
    try:
        return bool(chain_of(program))
    except ValueError:
        return False


@pytest.mark.parametrize("name", CHAINS)
def test_chains_are_found_and_printed_as_python(name: str) -> None:
    found = programs_of(parse_network(CHAINS[name]))
    assert found, name
    for program in found:
        for bias in (False, True):
            text = emit(program, 32, bias=bias)
            names = [
                part.name for part in ast.parse(text).body if isinstance(part, ast.FunctionDef)
            ]
            assert names == ["kernel", "forward"] and ("bias" in text) == bias


def test_the_bottleneck_of_a_low_rank_layer_stays_on_the_chip() -> None:
    """One load of the input, one store: nothing between."""
    (program, *_) = programs_of(parse_network(CHAINS["low-rank"]))
    text = emit(program, 64)
    assert text.count("tl.store") == 1 and text.count("tl.load(x ") == 1
    assert chain_of(program).resident and text.count("tl.dot") == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("B[o r] A[r i] : i -> o | i=700 o=700 r=200", "200 columns between two products"),
        ("W[o i] : i -> o | i=8 o=8", "one product"),
        (
            "B[o1 o2 r] A[r i1 i2] : (i1 i2) -> (o1 o2) | i1=32 i2=32 o1=32 o2=32 r=2",
            "times the multiply-adds",
        ),
    ],
)
def test_what_is_no_chain_says_why(text: str, reason: str) -> None:
    (best, *_) = choose(Task(parse_network(text), 128, "float32", 1, True, device=CUDA))
    with pytest.raises(ValueError, match=reason):
        chain_of(best.program)


def test_without_a_gpu_there_are_none_and_the_reason_is_told() -> None:
    network = parse_network(CHAINS["low-rank"])
    task = Task(network, 64, "float32", 1, False, device=CUDA)
    if not torch.cuda.is_available():
        assert not fused(task, choose(task))
        (note,) = outcome(task, choose(task)).notes
        assert note.startswith("no Triton kernel: ") and len(note) > 30
    assert refused(replace(task, dtype="float64")) == "no Triton kernels for float64"
    assert "tf32" in refused(task)
    here = replace(task, device="cpu")
    assert refused(here) and not outcome(here, choose(here)).notes


def test_faults_are_left_out_and_told(monkeypatch) -> None:
    """As on a machine that has a GPU, on which kernels of 64 rows do not compile."""
    monkeypatch.setattr(fusing, "refused", lambda task: "")
    monkeypatch.setattr(
        fusing, "fault", lambda task, program, rows: "OutOfResources: shared" if rows == 64 else ""
    )
    network = parse_network(CHAINS["low-rank"])
    task = Task(network, 128, "bfloat16", 1, False, device=CUDA)
    found = fused(task, choose(task))
    assert {choice.way.tile for choice in found} == {16, 128}
    assert {choice.way.emitter for choice in found} == {"triton"}
    timed = [replace(choice, measured=1e-5) for choice in (*choose(task)[:1], *found)]
    assert outcome(task, timed).notes == (
        "no Triton kernel of 64 rows a program: OutOfResources: shared",
    )
    assert outcome(task, timed[:1]).notes[-1] == "Triton kernels were timed, and are far behind"
    wide = parse_network("B[o r] A[r i] : i -> o | i=700 o=700 r=200")
    other = Task(wide, 128, "bfloat16", 1, False, device=CUDA)
    assert not fused(other, choose(other))
    (note,) = outcome(other, [replace(choose(other)[0], measured=1e-5)]).notes
    assert "200 columns between two products" in note


@pytest.mark.parametrize("training", [False, True])
def test_sources_and_data_of_a_choice(training: bool) -> None:
    network = parse_network(CHAINS["tucker"])
    task = Task(network, 64, "float32", 1, training, device=CUDA)
    plain = next(each for each in choose(task) if is_chain(each.program))
    choice = Choice(plain.program, Way(64, emitter="triton"), least(task, plain))
    assert choice_from(json.loads(json.dumps(choice_to(choice)))) == choice
    found = outcome(task, (choice, *choose(task)))
    text = found.source(bias=True)
    assert "@triton.jit" in text and ("def backward(" in text) == training
    assert set(libraries(choice, CUDA)) == {"triton"}
    other = outcome(task, (*choose(task)[:1], choice))
    assert any("as one Triton kernel" in each for each in other.contenders[0].differs)
    assert 0 < choice.seconds < 1e-3


def test_triton_is_imported_only_for_its_kernels(tmp_path) -> None:
    """Where there is a package of this name that cannot be imported, nobody notices."""
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("raise SystemExit('triton was imported')")
    code = (
        "import torch, tnc\n"
        "from tnc.kernels.choose import Task, choose\n"
        "from tnc.kernels.outcome import outcome\n"
        "from tnc.net import parse_network\n"
        f"network = parse_network({CHAINS['low-rank']!r})\n"
        "for device in ('cpu', 'cuda'):\n"
        "    task = Task(network, 8, 'float32', 1, False, device=device)\n"
        "    print(outcome(task, choose(task)).source(True))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_the_interpreter_meets_torch() -> None:
    """In a process of its own: Triton reads the variable when it is imported."""
    command = [sys.executable, "-m", "tests.unit.kernels.interpreted"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in CHAINS:
        assert f"{name} " in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_the_compiler_takes_them_without_a_device(tmp_path) -> None:
    """Compiled ahead of time for two generations of devices, in a process that has none."""
    command = [sys.executable, "-m", "tests.unit.kernels.ahead"]
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("bytes") == 2 * len(CHAINS)
