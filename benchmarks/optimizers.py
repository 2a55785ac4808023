"""Rules of `tnc.optim` on the linear layers of MiniLM's encoder, as the optimizer benchmarks take
them: weights as they are, or as pairs of factors for the rules that train pairs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tnc.decide.spec import read_spec
from tnc.errors import BindError, SourceError
from tnc.optim.factors import FactorRule
from tnc.optim.rule import STEP, Rule, rules

RANK = 128
ROWS, OUTPUTS, POOL = 4, 4, 3
OPTIONS: dict[str, dict[str, Any]] = {"egn": {"loss": "squared"}}
"""What rules must be told; all else is their defaults, with `others='plain'` where there is one."""

Layers = Sequence[Sequence[tuple[Tensor, Tensor]]]


class Product(nn.Module):
    """A linear layer whose weight is `first @ second`, of rank 128."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        root = s[:RANK].sqrt()
        self.first = nn.Parameter(u[:, :RANK] * root)
        self.second = nn.Parameter(root[:, None] * v[:RANK])
        self.bias = nn.Parameter(bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return `x W^T + b`."""
        return x @ self.second.mT @ self.first.mT + self.bias


class Encoder(nn.Module):
    """MiniLM's linear layers, joined without softmax and norms: rows in, a few numbers out."""

    def __init__(self, layers: Layers, factored: bool = False) -> None:
        super().__init__()
        kind = Product if factored else _linear
        self.layers = nn.ModuleList(
            nn.ModuleList(kind(*pair) for pair in layer) for layer in layers
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return `[rows, outputs]` for `x [rows, width]`."""
        for layer in self.layers:
            query, key, value, out, up, down = _modules(layer)
            x = x + out(torch.sigmoid(query(x) * key(x)) * value(x))
            x = nn.functional.normalize(x + down(nn.functional.gelu(up(x))))
        return x[:, :OUTPUTS]


def _modules(layer: nn.Module) -> list[nn.Module]:
    return list(layer.children())


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0])
    made.load_state_dict({"weight": weight, "bias": bias})
    return made


def layers_of_minilm(count: int | None = None) -> Layers:
    """Return (weight, bias) of the six linear layers of the encoder's first layers."""
    spec = read_spec("minilm", ["budget.params=0.5"]).spec
    if spec.model is None:
        raise SourceError("the spec minilm names no model")
    model = spec.model.load().model
    found: list[list[tuple[Tensor, Tensor]]] = []
    for layer in list(model.get_submodule("encoder.layer").children())[:count]:
        linear = [m for m in layer.modules() if isinstance(m, nn.Linear)]
        found.append([(m.weight.detach().clone(), m.bias.detach().clone()) for m in linear])
    return found


@dataclass(frozen=True, eq=False)
class Trial:
    """Hold a rule, the parameters that it took, the model that holds them, and gradients."""

    model: Encoder
    rule: Rule
    parameters: tuple[Tensor, ...]
    pool: tuple[tuple[Tensor, ...], ...]
    inputs: Tensor

    @property
    def takes(self) -> str:
        """Say what the rule trains."""
        if any(isinstance(m, Product) for m in self.model.modules()):
            return "factors, vectors"
        return "matrices" if all(p.dim() > 1 for p in self.parameters) else "matrices, vectors"

    def prepare(self, number: int) -> None:
        """Give every parameter a gradient: random, or a real one where the rule reads the model."""
        if "model" in type(self.rule).needs and not isinstance(self.rule, FactorRule):
            self.rule.zero_grad()
            found = self.model(self.inputs)
            found.sub(1).square().mean().backward()
        else:
            give(self.parameters, self.pool[number % len(self.pool)])

    def step(self) -> None:
        """Take the step of the rule."""
        self.rule.step()

    def estimate(self) -> None:
        """Give the gradients as an estimate of curvature to a rule that takes such."""
        if type(self.rule).estimates:
            self.rule.update_hessian()  # type: ignore[attr-defined]


def give(parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Set gradients."""
    for parameter, gradient in zip(parameters, gradients):
        parameter.grad = gradient


def trial(name: str, layers: Layers, *, matrices: bool = False, **options: Any) -> Trial:
    """Build a rule on all parameters, or on the matrices alone where it refuses vectors."""
    kind = rules.all()[name]
    factored = issubclass(kind, FactorRule)
    model = Encoder(layers, factored)
    given: dict[str, Any] = {**OPTIONS.get(name, {}), **options}
    if "others" in inspect.signature(kind).parameters:
        given["others"] = "plain"
    if factored:
        given["pairs"] = [(m.first, m.second) for m in model.modules() if isinstance(m, Product)]
    elif "model" in kind.needs:
        given["model"] = model
    parameters = tuple(p for p in model.parameters() if p.dim() > 1 or not matrices)
    try:
        rule = kind(parameters, **given)
    except BindError:
        if matrices or name in OPTIONS:
            raise
        return trial(name, layers, matrices=True, **options)
    return Trial(model, rule, parameters, pool_of(parameters), _inputs(parameters))


def pool_of(parameters: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], ...]:
    """Draw random gradients of the parameters' shapes, for steps in turn."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        tuple(1e-2 * torch.randn(p.shape, generator=generator) for p in parameters)
        for _ in range(POOL)
    )


def _inputs(parameters: Sequence[Tensor]) -> Tensor:
    width = min(size for p in parameters for size in p.shape if size > RANK)
    return torch.randn(ROWS, width, generator=torch.Generator().manual_seed(1))


def copies(parameters: Sequence[Tensor]) -> tuple[nn.Parameter, ...]:
    """Return parameters of the same values, for another optimizer."""
    return tuple(nn.Parameter(p.detach().clone()) for p in parameters)


def held_bytes(rule: Rule) -> int:
    """Return the bytes of the tensors of a rule's state, the counts of steps aside."""
    return sum(
        value.untyped_storage().nbytes()
        for state in rule.state.values()
        for slot, value in state.items()
        if isinstance(value, Tensor) and slot != STEP
    )


def said_bytes(trial: Trial) -> int:
    """Return the bytes of the state by the rule's formulas."""
    rule = trial.rule
    group = rule.param_groups[0]
    return sum(rule.bytes_of(p, group) for p in trial.parameters)
