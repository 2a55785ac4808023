"""An optimizer goes on after its model was compiled in the middle of training: by every policy.

A transformer over characters of a text in DIR/text is trained with AdamW, then every linear weight
becomes low-rank, a tensor train, Tucker, or a block tensor train, at full rank (nothing is lost)
and at half the parameters. Training goes on, on the same batches, by each policy of `tnc.bind`; by
`oracle`, whose second moments are the average of squared gradients of the cores over the last 60
recorded gradients of the weights; and by `kept`, moments of zero with the count of steps kept,
which is what a new parameter in an old optimizer comes to. Four seeds.

`shakespeare` (2 layers, width 64) is what the settings of `auto` were chosen on; `wikitext`
(another text, 3 layers, width 48, other seeds) is what they are checked on, by three policies.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import tnc
import tnc.binding
from benchmarks.outcome import Arguments, Goal, Outcome, table
from tnc.binding.weights import weights_of

NAME = "continuation"

POLICIES = ("auto", "reset", "pull", "oracle", "kept")
STRUCTURES = ("low-rank", "tensor-train", "tucker", "block-tensor-train")
LENGTH, BATCH = 64, 8
BEFORE, AFTER, EARLY, RECORDED, PROBES = 400, 500, 50, 60, 4


@dataclass(frozen=True)
class Setting:
    """A text, a model and its seeds.

    `rate` is the best of .001, .002, .004, .008, .016 for the dense model, by its loss before
    compiling, from the first seed.
    """

    text: str
    width: int
    layers: int
    rate: float
    first_seed: int
    policies: tuple[str, ...] = POLICIES


SETTINGS = {
    "shakespeare": Setting("tinyshakespeare.txt", 64, 2, 8e-3, 0),
    "wikitext": Setting("wikitext2_valid.txt", 48, 3, 8e-3, 10, ("auto", "reset", "pull")),
}


class Block(nn.Module):
    """One layer of attention and one of two matrices, with norms before them."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x [batch, length, width]` after attention and the two matrices."""
        parts = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).movedim(2, 0)
        q, k, v = (part.transpose(1, 2) for part in parts)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        wide: Tensor = self.down(functional.gelu(self.up(self.between(x))))
        return x + wide


class Characters(nn.Module):
    """A transformer that predicts the next character."""

    def __init__(self, symbols: int, width: int, layers: int) -> None:
        super().__init__()
        self.symbol = nn.Embedding(symbols, width)
        self.place = nn.Embedding(LENGTH, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, symbols)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[batch, length, symbols]` for characters `[batch, length]`."""
        found = self.symbol(x) + self.place.weight[: x.shape[1]]
        return self.head(self.norm(self.blocks(found)))  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class Text:
    """Hold a text as numbers, and how many there are."""

    codes: Tensor
    symbols: int

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Return batch `number`, the same whoever asks: characters, and those that follow."""
        generator = torch.Generator().manual_seed(number)
        starts = torch.randint(len(self.codes) - LENGTH - 1, (BATCH,), generator=generator)
        rows = starts[:, None] + torch.arange(LENGTH + 1)
        found = self.codes[rows]
        return found[:, :-1], found[:, 1:]


@dataclass(frozen=True, eq=False)
class Trained:
    """Hold a model in the middle of its training, its optimizer, and its last gradients."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    gradients: tuple[dict[str, Tensor], ...]
    last: float


def run(arguments: Arguments) -> Outcome:
    """Train, compile, go on. Goals: auto is within one standard error of the better of reset and
    pull in every case, over the first 50 and over all 500 steps, and never diverges.

    `--only shakespeare` or `--only wikitext` takes one setting.
    """
    if arguments.data is None:
        raise SystemExit("continuation needs --data DIR with texts in DIR/text")
    torch.set_num_threads(1)
    tables, goals, figures = [], [], {}
    for name, setting in SETTINGS.items():
        if arguments.only in (None, name):
            rows, own, figures[name] = _compare(setting, arguments)
            tables.append(table((name, "steps", *setting.policies), rows))
            goals += [replace(goal, figure=f"{name}: {goal.figure}") for goal in own]
    if not tables:
        raise SystemExit(f"--only is one of {', '.join(SETTINGS)}")
    return Outcome(tuple(tables), tuple(goals), figures)


def _compare(
    setting: Setting, arguments: Arguments
) -> tuple[list[tuple[object, ...]], list[Goal], dict[str, Any]]:
    assert arguments.data is not None
    text = load(arguments.data / "text" / setting.text)
    seeds = range(setting.first_seed, setting.first_seed + (1 if arguments.quick else 4))
    structures = STRUCTURES[:1] if arguments.quick else STRUCTURES
    trained = [train(setting, text, seed) for seed in seeds]
    rows: list[tuple[object, ...]] = []
    goals, figures = [], {}
    for name in structures:
        for truncated in (False, True):
            case = f"{name}, {'half the parameters' if truncated else 'full rank'}"
            found: dict[str, list[tuple[float, float]]] = {
                policy: [] for policy in setting.policies
            }
            reports = []
            for seed, start in zip(seeds, trained):
                made = compiled(start.model, text, name, truncated)
                for policy in setting.policies:
                    losses, report = go_on(start, made, policy, text, seed)
                    found[policy].append((mean(losses[:EARLY]), mean(losses)))
                    if policy == "auto":
                        reports.append(report)
            figures[case] = {
                "dense before": mean(start.last for start in trained),
                **{policy: _figures(pairs) for policy, pairs in found.items()},
                "moved by auto": sum(len(r.of("moved")) for r in reports),
                "reset by auto": sum(len(r.of("reset")) for r in reports),
            }
            for place, steps in enumerate((EARLY, AFTER)):
                values = {
                    policy: [pair[place] for pair in found[policy]] for policy in setting.policies
                }
                rows.append((case, str(steps), *(mean(values[p]) for p in setting.policies)))
                goals.append(_goal(case, steps, values))
                print(rows[-1], goals[-1].value, flush=True)
    return rows, goals, figures


def load(file: Path) -> Text:
    """Read the text; symbols are numbered in their order."""
    text = file.read_text(encoding="utf-8")
    known = {symbol: number for number, symbol in enumerate(sorted(set(text)))}
    return Text(torch.tensor([known[symbol] for symbol in text]), len(known))


def train(setting: Setting, text: Text, seed: int) -> Trained:
    """Train a model from a seed for the first steps, and keep its last gradients by name."""
    torch.manual_seed(seed)
    model = Characters(text.symbols, setting.width, setting.layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=setting.rate)
    kept: list[dict[str, Tensor]] = []
    losses = []
    for step in range(BEFORE):
        losses.append(_step(model, optimizer, text.batch(1000 * seed + step)))
        if step >= BEFORE - RECORDED:
            kept.append(
                {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
            )
    optimizer.zero_grad()
    return Trained(model, optimizer, tuple(kept), mean(losses[-EARLY:]))


def compiled(model: nn.Module, text: Text, structure: str, truncated: bool) -> nn.Module:
    """Return the model with every linear weight of its blocks in a structure."""
    size: dict[str, Any] = {"keep": 0.5} if truncated else {"ranks": "full"}
    rule = {"match": "blocks.*", "op": "linear", "structure": structure, **size}
    spec = tnc.Spec(version=1, rules=[rule])
    return tnc.compile(model, spec, example=text.batch(0)[0]).model


def go_on(
    start: Trained, made: nn.Module, policy: str, text: Text, seed: int
) -> tuple[list[float], tnc.binding.Report]:
    """Bind a copy of the optimizer by a policy, train on, and return the losses."""
    first, optimizer = copy.deepcopy((start.model, start.optimizer))
    model = copy.deepcopy(made)
    begin = 1000 * seed + BEFORE

    def probe(candidate: nn.Module) -> Iterator[Tensor]:
        for number in range(PROBES):
            yield _loss(candidate, text.batch(begin - 1 - number))

    known: Any = {"oracle": "pull", "kept": "reset"}.get(policy, policy)
    bound = tnc.bind(
        first, model, optimizer, policy=known, probe=probe if policy == "auto" else None
    )
    if policy == "oracle":
        _know_all(start, model, optimizer)
    if policy == "kept":
        _keep_steps(optimizer)
    losses = [_step(model, optimizer, text.batch(begin + step)) for step in range(AFTER)]
    return losses, bound.report


def _know_all(start: Trained, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give cores the second moments that recorded gradients of their weights would have made."""
    beta = optimizer.param_groups[0]["betas"][1]
    for name, weight in weights_of(model).cored.items():
        totals: dict[str, Tensor] = {}
        for recorded in start.gradients:
            for core, pulled in weight.transport.pull(weight.mapped(recorded[name])).items():
                totals[core] = totals.get(core, torch.zeros_like(pulled)) + pulled.square()
        for core, total in totals.items():
            state = optimizer.state[weight.layer.cores[core]]
            gathered = 1 - beta ** float(state["step"])
            state["exp_avg_sq"] = (total / len(start.gradients) * gathered).contiguous()


def _keep_steps(optimizer: torch.optim.Optimizer) -> None:
    """Leave moments at zero and count steps as if nothing had happened."""
    for state in optimizer.state.values():
        if float(state["step"]) == 0:
            state["step"] = torch.tensor(float(BEFORE))


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return functional.cross_entropy(model(x).flatten(0, 1), y.flatten())


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor]
) -> float:
    optimizer.zero_grad()
    loss = _loss(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss.detach())


def _goal(case: str, steps: int, values: dict[str, list[float]]) -> Goal:
    """Return by how many standard errors auto is worse than the better of reset and pull."""
    better = min(("reset", "pull"), key=lambda policy: mean(values[policy]))
    differences = [a - b for a, b in zip(values["auto"], values[better])]
    error = stdev(differences) / sqrt(len(differences)) if len(differences) > 1 else float("inf")
    excess = mean(differences)
    worse = excess / error if error > 0 else float(excess > 0)
    return Goal(f"auto behind {better} in standard errors, {case}, {steps} steps", worse, 1.0)


def _figures(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    return {
        f"{steps} steps": {"mean": mean(p[k] for p in pairs), "seeds": [p[k] for p in pairs]}
        for k, steps in enumerate((EARLY, AFTER))
    }
