"""A step of an adapter beside the same in PEFT, on MiniLM: its time, and the memory that it takes.

Both train the same factors with the same values on the same batch, by AdamW, with the mean of the
squared sentence embeddings as the loss; that gradients agree is checked first. Rows are MiniLM's
attention alone (query and value) and all its linear layers, batches of 1, 8 and 32 sentences of 32
and 128 tokens. Time is a ratio of processor seconds, of pairs of steps that take turns, its median.
"saved" are the bytes that autograd keeps for the backward pass beside parameters, "peak" the most
that a step held at once beyond what was there before it, by torch.profiler.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median, quantiles

import torch
from torch import Tensor, nn

import tnc
from benchmarks.optimizer_memory import peak_in
from benchmarks.outcome import Arguments, Goal, Outcome, table
from tnc.adapters import Adapters
from tnc.decide.spec import read_spec
from tnc.errors import SourceError
from tnc.inputs import load

NAME = "adapter-cost"
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}

RANK, ALPHA, RATE = 8, 16.0, 1e-3
METHODS = ("lora", "dora")
TARGETS = {"all": ("query", "key", "value", "dense"), "query, value": ("query", "value")}
SIZES = tuple((sentences, tokens) for sentences in (1, 8, 32) for tokens in (32, 128))
WARM, TURNS, LONGEST = 2, 41, 15.0
"""Pairs of steps before those that count; how many count; seconds after which none begins."""

SLACK = 1.0
MIB = 2**20


@dataclass(eq=False)
class Side:
    """One library's model with what it trains, and its step."""

    model: nn.Module
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    batch: dict[str, Tensor]

    def loss(self) -> Tensor:
        """Return the mean of the squared sentence embeddings."""
        found = self.model(**self.batch).last_hidden_state
        mask = self.batch["attention_mask"].unsqueeze(-1)
        return ((found * mask).sum(1) / mask.sum(1)).square().mean()  # type: ignore[no-any-return]

    def step(self) -> None:
        """Take one step."""
        self.optimizer.zero_grad()
        self.loss().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def seconds(self) -> float:
        """Return the processor time of one step."""
        started = time.process_time()
        self.step()
        return time.process_time() - started

    def saved(self) -> int:
        """Return the bytes that autograd keeps of one step beside the model's own tensors."""
        own = {t.untyped_storage().data_ptr() for t in self._tensors()}
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.loss()
        found = sum(kept.values())
        del loss
        return found

    def _tensors(self) -> Iterator[Tensor]:
        yield from self.model.parameters()
        yield from self.model.buffers()
        yield from self.batch.values()


def run(arguments: Arguments) -> Outcome:
    """Measure every row; `--quick` takes one size and few turns. Goals: not slower, not more."""
    torch.set_num_threads(1)
    sizes, turns = (((1, 32),), 5) if arguments.quick else (SIZES, TURNS)
    rows, goals, figures = [], [], {}
    for method in METHODS:
        for target, names in TARGETS.items():
            for sentences, tokens in sizes:
                cell = f"{method}, {target}, {sentences} x {tokens}"
                if arguments.only and not all(word in cell for word in arguments.only.split()):
                    continue
                ours, theirs = sides(method, names, sentences, tokens)
                line = measured(ours, theirs, turns)
                figures[cell] = line
                rows.append((cell, *line.values()))
                goals += [
                    Goal(f"{what} over PEFT's, {cell}", line[f"{what} over PEFT"], SLACK)
                    for what in ("time", "saved", "peak")
                ]
                print(rows[-1], flush=True)
    columns = (
        "method, weights, batch",
        "ms",
        "time over PEFT",
        "lower quartile",
        "upper quartile",
        "saved MiB",
        "saved over PEFT",
        "peak MiB",
        "peak over PEFT",
    )
    return Outcome((table(columns, rows),), tuple(goals), figures)


def measured(ours: Side, theirs: Side, turns: int) -> dict[str, float]:
    """Return the figures of a row. Raises AssertionError where the gradients differ."""
    check(ours, theirs)
    both = (ours, theirs)
    for side in both * WARM:
        side.step()
    ratios, own = [], []
    began = time.process_time()
    for turn in range(turns):
        order = both if turn % 2 else both[::-1]
        found = {id(side): side.seconds() for side in order}
        ratios.append(found[id(ours)] / found[id(theirs)])
        own.append(found[id(ours)])
        if turn > 3 and time.process_time() - began > LONGEST:
            break
    saved = [side.saved() for side in both]
    peaks = [peak_in(side.step) for side in both]
    low, _, high = quantiles(ratios, n=4)
    return {
        "ms": 1e3 * median(own),
        "time over PEFT": median(ratios),
        "lower quartile": low,
        "upper quartile": high,
        "saved MiB": saved[0] / MIB,
        "saved over PEFT": saved[0] / saved[1],
        "peak MiB": peaks[0] / MIB,
        "peak over PEFT": peaks[0] / peaks[1],
    }


def check(ours: Side, theirs: Side) -> None:
    """Compare the gradients of both. Raises AssertionError where they are not the same."""
    for side in (ours, theirs):
        side.optimizer.zero_grad()
        side.loss().backward()  # type: ignore[no-untyped-call]
    assert ours.parameters.keys() == theirs.parameters.keys()
    for name, parameter in ours.parameters.items():
        mine, other = parameter.grad, theirs.parameters[name].grad
        assert mine is not None and other is not None, name
        difference = float((mine - other).norm() / other.norm().clamp_min(1e-12))
        assert difference < 1e-3, f"{name}: gradients differ by {difference:.2g}"


def sides(method: str, names: tuple[str, ...], sentences: int, tokens: int) -> tuple[Side, Side]:
    """Return both models with the same factors, which are none of them zero."""
    loaded, batch = minilm(sentences, tokens)
    base = copy.deepcopy(loaded)  # a file's mapped pages are smaller, and slower, than a copy's
    match = [f"encoder.*.{name}" for name in names]
    given = f"{method}{{rank={RANK}, alpha={ALPHA}}}"
    adapters = tnc.adapt(base, given, match=match, example=((), batch))
    ours = _named(adapters)
    peft = _peft(copy.deepcopy(base), method, names)
    theirs = _named_by_peft(peft)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in ours.items():
            if not name.endswith("magnitude"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
            theirs[name].copy_(parameter)
    made = []
    for model, found in ((adapters.model, ours), (peft, theirs)):
        model.eval()  # without the model's own dropout, which draws differently
        made.append(Side(model, found, torch.optim.AdamW(list(found.values()), RATE), batch))
    return made[0], made[1]


def minilm(sentences: int, tokens: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return MiniLM and a batch of so many sentences, all of so many tokens."""
    resolved = read_spec("minilm", ["calibration.samples=32", "calibration.held_out=32"])
    loaded = load(resolved.spec).loaded
    if loaded.model is None:
        raise SourceError("the spec minilm names no model")
    generator = torch.Generator().manual_seed(1)
    shape = (sentences, tokens)
    batch = {
        "input_ids": torch.randint(1000, 30000, shape, generator=generator),
        "attention_mask": torch.ones(shape, dtype=torch.long),
    }
    return loaded.model, batch


def _named(adapters: Adapters) -> dict[str, nn.Parameter]:
    found: dict[str, nn.Parameter] = {}
    for weight, delta in adapters.deltas().items():
        found |= {f"{weight.removesuffix('.weight')}/{n}": p for n, p in delta.trained.items()}
    return found


def _peft(base: nn.Module, method: str, names: tuple[str, ...]) -> nn.Module:
    import peft

    pattern = rf"encoder\..*\.({'|'.join(names)})"
    config = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=pattern, use_dora=method == "dora"
    )
    return peft.get_peft_model(base, config)  # type: ignore[arg-type]


PARTS = {"lora_A": "A", "lora_B": "B", "lora_magnitude_vector": "magnitude"}


def _named_by_peft(model: nn.Module) -> dict[str, nn.Parameter]:
    found: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            path, part = name.removeprefix("base_model.model.").split(".lora_", 1)
            found[f"{path}/{PARTS['lora_' + part.split('.')[0]]}"] = parameter
    return found
