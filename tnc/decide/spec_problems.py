"""What is wrong with a spec: every error, in words, at its place, root causes first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from tnc.decide.spectree import Mark, Node
from tnc.errors import SpecError

Location = tuple[int | str, ...]

_ROOTS = ("unknown_key", "unknown_kind", "no_kind", "option_text")
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a map of keys",
    "mapping_type": "a map of keys",
    "model_type": "a map of keys",
    "model_attributes_type": "a map of keys",
}


@dataclass(frozen=True)
class Problem:
    """One error: its location in the spec, the words, and the place once the file is known."""

    location: Location
    kind: str
    message: str
    near: str = ""
    mark: Mark | None = None
    path: str = ""

    def __str__(self) -> str:
        path = self.path or ".".join(map(str, self.location))
        told = f"{path}: {self.message}" if path else self.message
        return f"{self.mark}: {told}\n{self.mark.caret}" if self.mark else told

    def as_json(self) -> dict[str, Any]:
        """Write the problem as plain data."""
        mark = self.mark
        place = {"file": mark.file, "line": mark.line, "column": mark.column} if mark else {}
        return {**place, "path": self.path, "message": self.message}


class SpecProblems(SpecError):
    """A spec with one error or several; `problems` holds them in the order to mend them."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=_order))
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[object, ...]:
        return (SpecProblems, (self.problems,))

    def placed(self, tree: Node) -> SpecProblems:
        """Return the same errors with their places in the files that `tree` was read from."""
        return SpecProblems(_place(problem, tree) for problem in self.problems)


def problem(kind: str, message: str, **context: Any) -> PydanticCustomError:
    """Return an error for pydantic to locate; `key` in the context names the key at fault."""
    return PydanticCustomError(kind, "{text}", {"text": message, **context})


def nearest(name: str, names: Iterable[str]) -> str:
    """Return the name most like `name`, or nothing."""
    return next(iter(get_close_matches(name, sorted(names), n=1)), "")


def tell(error: ValidationError, keys: Sequence[str]) -> ValidationError:
    """Put pydantic's errors about one model into words; `keys` are those that the model has.

    Each model tells its own errors, so that a suggestion comes from the kind that was chosen.
    """
    details = [
        InitErrorDetails(type=_told(dict(detail), keys), loc=detail["loc"], input=detail["input"])
        for detail in error.errors(include_url=False)
    ]
    return ValidationError.from_exception_data(error.title, details)


def problems_of(error: ValidationError) -> tuple[Problem, ...]:
    """Return the errors that `tell` has put into words.

    A key that is missing only because it is misspelt beside it is not reported again.
    """
    found = []
    for detail in error.errors(include_url=False):
        context = detail.get("ctx", {})
        key = context.get("key")
        location = (*detail["loc"], key) if key else tuple(detail["loc"])
        found.append(Problem(location, detail["type"], detail["msg"], context.get("near", "")))
    meant = {(*p.location[:-1], p.near) for p in found if p.near}
    return tuple(p for p in found if not (p.kind == "missing" and p.location in meant))


def _told(detail: dict[str, Any], keys: Sequence[str]) -> PydanticCustomError:
    kind, loc, context = detail["type"], detail["loc"], detail.get("ctx", {})
    if "text" in context:
        return PydanticCustomError(kind, "{text}", context)
    if kind == "extra_forbidden":
        near = nearest(str(loc[-1]), keys)
        guess = f"did you mean {near!r}?" if near else f"keys are: {', '.join(keys)}"
        return problem("unknown_key", f"unknown key {str(loc[-1])!r}; {guess}", near=near)
    if kind == "missing":
        return problem("missing", f"missing key {str(loc[-1])!r}")
    got = _shown(detail["input"])
    if kind == "literal_error":
        return problem("value", f"expected {context['expected']}, got {got}{_guess(detail)}")
    if kind in _EXPECTED:
        return problem("value", f"expected {_EXPECTED[kind]}, got {got}")
    return problem("value", f"{detail['msg'].replace('Input should be', 'expected')}, got {got}")


def _guess(detail: dict[str, Any]) -> str:
    names = str(detail["ctx"]["expected"]).replace(" or ", ", ").split(", ")
    near = nearest(str(detail["input"]), [name.strip("'") for name in names])
    return f"; did you mean {near!r}?" if near else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _order(problem: Problem) -> tuple[Any, ...]:
    rank = 0 if problem.kind in _ROOTS else 2 if problem.kind == "missing" else 1
    mark = problem.mark
    return (rank, (mark.file, mark.line, mark.column) if mark else (), str(problem))


def _place(problem: Problem, tree: Node) -> Problem:
    """Walk as far as the file goes: text forms and single values have fewer levels."""
    node, path = tree, []
    for depth, part in enumerate(problem.location):
        inner = _step(node, part)
        if inner is not None:
            node = inner
        elif isinstance(part, int):
            continue
        path.append(str(part))
        if inner is not None and depth == len(problem.location) - 1:
            mark = node.key if problem.kind == "unknown_key" else node.mark
            return replace(problem, mark=mark, path=".".join(path))
    mark = node.key if isinstance(node.value, dict) else node.mark
    return replace(problem, mark=mark, path=".".join(path))


def _step(node: Node, part: int | str) -> Node | None:
    if isinstance(node.value, dict):
        return node.value.get(str(part))
    if isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
        return node.value[part]
    return None
