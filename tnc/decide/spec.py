"""Specs: a person's wish, in YAML or in Python; the same model for both."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tnc.decide.adapters import AdaptersSpec
from tnc.decide.optimizers import OptimizerSpec
from tnc.decide.options import Choice
from tnc.decide.part import Part
from tnc.decide.pipeline import DEFAULT, allocators, passes, schedules
from tnc.decide.spec_fields import (
    Flag,
    OneOrMore,
    Rank,
    Step,
    Whole,
    not_empty,
)
from tnc.decide.spec_parts import Budget, Distill, Kernels, Metric, Quality, Rule
from tnc.decide.spec_problems import SpecProblems, problem, problems_of
from tnc.decide.specfile import find_spec_file, override, read_tree
from tnc.decide.spectree import Node
from tnc.net import digest
from tnc.sources import DataSource, Evaluation, ModelSource, datas, evaluations, models

Sensitivity = Literal["auto", "none", "outputs", "gradient", "fisher"]
Format = Literal["torch-export", "onnx", "dense"]
_PASS = Step(passes)
_TRAIN = "How ranks change while the compiled model is trained: tnc.adapt_ranks reads it."
_OPTIMIZER = (
    "Which rule trains which parameters of the compiled model: distillation, tnc.adapt_ranks and "
    "tnc.optim.build read it."
)
_ADAPTERS = (
    "Which weights get which adapter: a method for all, an adapter with rules, or several with "
    "names. `tnc adapt` and tnc.adapt read it."
)
_SENSITIVITY = (
    "How errors of layers are weighed against each other when they are added up. outputs: the "
    "curvature of the evaluation (Gauss-Newton; for logits the Fisher information of what is "
    "predicted). fisher: squared gradients of the log-likelihood of the data's labels, or "
    "of labels drawn from the model. gradient: squared gradients of the evaluation's distance "
    "from sample to sample. none: each error is relative to its own layer. auto: outputs with "
    "metric both, else none."
)
_RULES_OR_ADAPTERS = (
    "they say what `tnc compile` does; a spec for `tnc adapt` alone may have `adapters` instead, "
    "such as adapters: lora{rank=8}"
)
_EXTENDS = "Files beside this one, or recipes, that it is laid over; resolved on reading."


class Spec(Part):
    """A complete wish. `Spec.read("minilm.yaml")` and `Spec(...)` make the same thing.

    Raises SpecProblems with every error.
    """

    version: Literal[1]
    extends: Annotated[tuple[str, ...], OneOrMore()] = Field(
        default=(), exclude=True, description=_EXTENDS
    )
    seed: Whole = 0
    model: Annotated[ModelSource, Choice(models)] | None = None
    calibration: Annotated[DataSource, Choice(datas)] | None = None
    evaluation: Annotated[Evaluation, Choice(evaluations)] | None = None
    budget: Budget | None = None
    objective: Literal["sum", "max"] = "sum"
    allocate: Annotated[str, Step(allocators)] = "measured"
    metric: Metric = "auto"
    sensitivity: Sensitivity = Field(default="auto", description=_SENSITIVITY)
    shares: Flag = False
    round_to: Rank = 8
    adapters: AdaptersSpec | None = Field(default=None, description=_ADAPTERS)
    rules: tuple[Rule, ...] = Field(
        default=(), validate_default=True, json_schema_extra={"minItems": 1}
    )
    passes: tuple[Annotated[str, _PASS], ...] = DEFAULT
    train: Annotated[str, Step(schedules)] | None = Field(default=None, description=_TRAIN)
    optimizer: OptimizerSpec | None = Field(default=None, description=_OPTIMIZER)
    distill: Distill | None = None
    quality: Quality | None = None
    export: Annotated[tuple[Format, ...], OneOrMore()] = ()
    kernels: Kernels | None = None

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise SpecProblems(problems_of(error)) from None

    @field_validator("extends")
    @classmethod
    def _resolved(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value:
            raise problem("value", "extends is resolved when a file is read: use Spec.read(file)")
        return value

    @field_validator("rules", mode="before")
    @classmethod
    def _ruled(cls, value: Any, info: ValidationInfo) -> Any:
        if value or info.data.get("adapters", True) is not None:
            return value
        if value == ():
            raise problem("missing", f"missing key 'rules'; {_RULES_OR_ADAPTERS}")
        return not_empty(tuple(value)) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _sized(self) -> Self:
        for number, rule in enumerate(self.rules):
            if self.budget is None and not rule.fixed:
                raise problem(
                    "value",
                    f"nothing says how small rule {number} ({rule.match[0]}) should become; "
                    "add a budget, or ranks or keep to the rule",
                    key="rules",
                )
        return self

    @classmethod
    def read(cls, name: str | Path, overrides: Iterable[str] = ()) -> Spec:
        """Read a spec file, or a recipe by its bare name; see `read_spec`."""
        return read_spec(name, overrides).spec

    def to_data(self) -> dict[str, Any]:
        """Write the spec as plain data, defaults included; `Spec(**data)` reads it back."""
        data = self.model_dump(mode="json", exclude_none=True)
        return data if self.rules else {k: v for k, v in data.items() if k != "rules"}

    def to_yaml(self) -> str:
        """Write the spec as YAML."""
        from ruamel.yaml import YAML

        stream = io.StringIO()
        writer = YAML()
        writer.width = 100
        writer.dump(self.to_data(), stream)
        return stream.getvalue()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the spec: equal wishes, equal digests, however they were written."""
        return digest(self.to_data())


@dataclass(frozen=True)
class Resolved:
    """A spec with where each part of it was written: `rules.0` -> `minilm.yaml:14`."""

    spec: Spec
    locations: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The resolved spec as YAML."""
        return self.spec.to_yaml()

    @property
    def digest(self) -> str:
        """The spec's digest."""
        return self.spec.digest


def read_spec(name: str | Path, overrides: Iterable[str] = ()) -> Resolved:
    """Read a spec file, or a recipe by its bare name, lay overrides over it, and check it.

    Raises SpecError, or SpecProblems with every error at its file, line and column.
    """
    tree = read_tree(find_spec_file(str(name)))
    for assignment in overrides:
        tree = override(tree, assignment)
    return check_tree(tree)


def check_tree(tree: Node) -> Resolved:
    """Check a tree that was read. Raises SpecProblems with places."""
    try:
        spec = Spec(**tree.plain)
    except SpecProblems as error:
        raise error.placed(tree) from None
    return Resolved(spec, dict(_locations(tree, "")))


def _locations(node: Node, path: str) -> Iterable[tuple[str, str]]:
    if path:
        whole = path.startswith("optimizer")  # a group takes one line, so its column is told
        yield path, str(node.mark) if whole else node.key.short
    inner: Iterable[tuple[Any, Node]] = ()
    if isinstance(node.value, dict):
        inner = node.value.items()
    elif isinstance(node.value, list):
        inner = enumerate(node.value)
    for name, child in inner:
        yield from _locations(child, f"{path}.{name}" if path else str(name))
