"""Search specs: what is searched for, where, how, and until when; in YAML or in Python."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from tnc.decide.part import Part
from tnc.decide.spec_fields import Flag, Positive, Rank, Whole
from tnc.decide.spec_problems import Problem, SpecProblems, problem, problems_of
from tnc.decide.specfile import find_spec_file, override, read_tree
from tnc.decide.spectree import Node
from tnc.explore import Engine, Evaluator, Limits, Objective, Strategy
from tnc.explore.engine import engines
from tnc.explore.evaluator import evaluators
from tnc.explore.objective import objectives
from tnc.explore.strategy import strategies
from tnc.searching.choices import Keyed, Named, bonds
from tnc.searching.target import Target

FOLDER = "search"
"""The folder of tnc.specs whose searches are run by their bare name."""

Pair = Annotated[tuple[Whole, Whole], Field()]
Graph = Literal["ring", "chain", "tree", "star", "full"]
Bonds = Annotated[Graph | tuple[Pair, ...], BeforeValidator(bonds)]


class SpacePart(Part):
    """Which bonds there may be, up to which rank, and what is too large to be tried."""

    bonds: Bonds = "ring"
    rank: Rank = 4
    places: Flag | None = Field(default=None, description="Whether modes may change places.")
    ratio: Positive = Field(default=10.0, description="Parameters, of the tensor's entries.")
    params: Rank | None = None
    degree: Rank | None = None


class LimitsPart(Part):
    """When the search ends, besides by its strategy: what comes first."""

    evaluations: Rank | None = None
    seconds: Positive | None = None
    target: Annotated[float, Field(strict=True, allow_inf_nan=False)] | None = None
    patience: Rank | None = None
    repeats: Rank = 200

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.evaluations is None and self.seconds is None and self.patience is None:
            raise problem("value", "a search needs an end: give evaluations, seconds or patience")
        return self

    def limits(self, spent: float = 0.0) -> Limits:
        """Return the limits of a run of which `spent` seconds are over."""
        return Limits(**self.model_dump(), spent=spent)


class Search(Part):
    """One search: `Search.of(target=..., limits=...)`, with the keys of the YAML form."""

    target: Annotated[Target, Keyed()]
    space: SpacePart = SpacePart()
    objective: Annotated[Objective, Named(objectives)] = Field(
        default_factory=lambda: objectives.get("size-and-error")()
    )
    strategy: Annotated[Strategy, Named(strategies)] = Field(
        default_factory=lambda: strategies.get("spectral")()
    )
    evaluator: Annotated[Evaluator, Named(evaluators)] = Field(
        default_factory=lambda: evaluators.get("als")()
    )
    engine: Annotated[Engine, Named(engines)] = Field(
        default_factory=lambda: engines.get("processes")()
    )
    limits: LimitsPart
    seed: Whole = 0

    @classmethod
    def of(cls, **data: Any) -> Self:
        """Check what the YAML form would hold. Raises SpecProblems."""
        try:
            return cls(**data)
        except ValidationError as error:
            raise SpecProblems(problems_of(error)) from None


class _File(Part):
    """A spec file of a search."""

    version: Literal[1] = 1
    search: Search


@dataclass(frozen=True)
class SearchSpec:
    """A search with the tree that it was read from, if it was, to say where something is wrong."""

    search: Search
    tree: Node | None = None

    def to_data(self) -> dict[str, Any]:
        """Write as plain data, defaults included; `checked` reads it back."""
        return {"version": 1, "search": self.search.model_dump(mode="json", exclude_none=True)}

    @property
    def text(self) -> str:
        """The spec as YAML."""
        from ruamel.yaml import YAML

        stream = io.StringIO()
        writer = YAML()
        writer.width = 100
        writer.dump(self.to_data(), stream)
        return stream.getvalue()

    def wrong(self, key: str, message: str) -> SpecProblems:
        """Return an error about one key of the search, at its place."""
        error = SpecProblems([Problem(("search", *key.split(".")), "refused", message)])
        return error.placed(self.tree) if self.tree else error


def read_search(name: str | Path, overrides: Iterable[str] = ()) -> SearchSpec:
    """Read a spec file, or a search that comes with tnc by its bare name, and check it.

    Raises SpecError, or SpecProblems with every error at its file, line and column.
    """
    tree = read_tree(find_spec_file(str(name), FOLDER))
    for assignment in overrides:
        tree = override(tree, assignment)
    return checked(tree)


def checked(tree: Node) -> SearchSpec:
    """Check a tree that was read. Raises SpecProblems with places."""
    try:
        return SearchSpec(_File(**tree.plain).search, tree)
    except ValidationError as error:
        raise SpecProblems(problems_of(error)).placed(tree) from None


def schema() -> dict[str, Any]:
    """Return the JSON schema of a search spec, plug-ins included."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        **_File.model_json_schema(),
        "title": "tnc search spec",
    }
