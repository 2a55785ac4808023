"""The parts of a spec: budget, rules, gate, distillation, kernels."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    field_serializer,
    model_validator,
)

from tnc.decide.optimizers import OptimizerSpec
from tnc.decide.options import Choice
from tnc.decide.part import Part, Patterns
from tnc.decide.spec_fields import (
    Amount,
    Flag,
    Fraction,
    Multiple,
    OneOrMore,
    Positive,
    Rank,
    Ranks,
    Whole,
    not_empty,
    stack_size,
)
from tnc.decide.spec_problems import SpecProblems, problem, problems_of
from tnc.sources import DataSource, datas
from tnc.structures import Family, families

Metric = Literal["auto", "none", "inputs", "both"]
Joint = Annotated[Annotated[int, Field(ge=2)] | Literal["all"], BeforeValidator(stack_size)]


class Budget(Part):
    """What everything within `scope` may cost together, or how far the output may move.

    A fraction is of the scope's dense value, a whole number is absolute. Under a bound on the
    `error`, the cost named by `minimise` is made as small as can be.
    """

    scope: str = "*"
    params: Amount | None = None
    flops: Amount | None = None
    bytes: Amount | None = None
    latency: Fraction | None = None
    error: Positive | None = None
    minimise: Literal["params", "flops", "bytes"] = "params"

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if not self.limits:
            raise problem("value", "a budget needs one of params, flops, bytes, latency, error")
        return self

    @property
    def limits(self) -> tuple[tuple[str, int | float], ...]:
        """The bounds that are given, by name."""
        names = ("params", "flops", "bytes", "latency", "error")
        return tuple((name, getattr(self, name)) for name in names if getattr(self, name))


class Rule(Part):
    """What becomes of the weights whose path matches; the first rule that matches one decides.

    `structure` is empty for weights that stay dense, else the candidates. `ranks` (by name, or
    'full' for an exact conversion) and `keep` (a fraction of the layer's parameters) fix what is
    otherwise searched. `joint` fits that many successive layers of one kind and shape, or 'all' of
    them, as one tensor with a mode that counts them: cores without that mode are shared.
    """

    match: Patterns
    op: Literal["linear", "conv", "embedding", "experts", "spectral"] | None = None
    structure: Annotated[tuple[Annotated[Family, Choice(families)], ...], OneOrMore(empty="dense")]
    ranks: Annotated[dict[str, int] | Literal["full"], Ranks()] = Field(default_factory=dict)
    keep: Fraction | None = None
    joint: Joint | None = None
    fit: str = "auto"
    metric: Metric | None = None
    min_params: Whole = 0
    allow_empty: Flag = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.ranks and self.keep:
            raise problem("value", "ranks and keep both fix the size; give one", key="keep")
        if not self.structure and (self.ranks or self.keep):
            key = "ranks" if self.ranks else "keep"
            raise problem("value", f"a dense weight has no {key}", key=key)
        if self.ranks and len(self.structure) > 1:
            raise problem("value", "ranks need a single structure, not candidates", key="ranks")
        return self

    @field_serializer("structure", mode="wrap")
    def _short_structure(self, value: Any, handler: Any) -> Any:
        plain = handler(value)
        return "dense" if not plain else plain[0] if len(plain) == 1 else plain

    @property
    def fixed(self) -> bool:
        """Whether nothing about the rule is left to search."""
        return not self.structure or bool(self.ranks) or self.keep is not None


class Quality(Part):
    """A gate on the evaluation's figure on held-out data; behind it no artifact is written."""

    max_error: Positive


class Distill(Part):
    """Training on the original's answers after the plan is carried out; see `tnc.distill`.

    `minutes` or `steps` end it. `data` is the calibration source where it is not given; what is
    held out is never trained on. `layerwise` is the share of the run in which the blocks alone are
    matched, `blocks` their weight beside the evaluation's loss afterwards, `match` the modules that
    count as blocks, `freeze` the parameters that stay as they are. With `scaled` each parameter's
    rate is `rate` times its root mean square. `optimizer` is as that of the spec, which serves
    where it is not given, and AdamW where neither is: a rule's `lr` and `weight_decay`, where they
    are given, take the place of `rate` and `decay`. `precision` is what the trained model computes
    in (torch.autocast); its parameters, the loss and the optimizer keep theirs.
    """

    data: Annotated[DataSource, Choice(datas)] | None = None
    minutes: Positive | None = None
    steps: Rank | None = None
    optimizer: OptimizerSpec | None = None
    rate: Positive = 0.01
    scaled: Flag = True
    warmup: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.03
    decay: Annotated[float, Field(strict=True, ge=0)] = 0.0
    clip: Annotated[float, Field(strict=True, ge=0)] = 1.0
    temperature: Positive = 1.0
    layerwise: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.1
    blocks: Annotated[float, Field(strict=True, ge=0)] = 1.0
    match: Annotated[tuple[str, ...], OneOrMore()] = ()
    freeze: Annotated[tuple[str, ...], OneOrMore()] = ()
    batch_norm: Literal["train", "fixed"] = "train"
    precision: Literal["float32", "bfloat16"] = "float32"

    @classmethod
    def of(cls, **data: Any) -> Self:
        """Return the settings. Raises SpecProblems, where the constructor leaves it to pydantic."""
        try:
            return cls(**data)
        except ValidationError as error:
            raise SpecProblems(problems_of(error)) from None

    @model_validator(mode="after")
    def _limited(self) -> Self:
        if self.steps is None and self.minutes is None:
            raise problem("value", "a distillation needs minutes or steps")
        return self


class Kernels(Part):
    """Whether the sources of the kernels that are chosen for the compiled layers are saved.

    `tune` chooses them by predicted time (`model`) or by timing (`measure`), for each number of
    `rows` that a layer meets at once (batch x tokens), of `images` that a convolution meets, for
    inference or for `training`, which may `keep` that many times the bytes of the input for the
    backward. With `compile` linear layers through `torch.compile` are timed as well, which takes
    seconds for each kernel. They are there to be read: what runs is generated anew wherever the
    model is loaded.
    """

    tune: Literal["off", "model", "measure"] = "model"
    rows: Annotated[tuple[Rank, ...], AfterValidator(not_empty), OneOrMore()] = (1, 32, 1024)
    images: Annotated[tuple[Rank, ...], AfterValidator(not_empty), OneOrMore()] = (1, 16)
    training: Flag = False
    keep: Multiple = 0.0
    compile: Flag = False

    @model_validator(mode="after")
    def _timed(self) -> Self:
        if self.compile and self.tune != "measure":
            raise problem(
                "value", "torch.compile takes part only in timing; add tune: measure", key="compile"
            )
        return self

    @model_validator(mode="after")
    def _trained(self) -> Self:
        if self.keep and not self.training:
            raise problem("value", "only training keeps values; add training: true", key="keep")
        return self
