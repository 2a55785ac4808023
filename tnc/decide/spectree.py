"""YAML as a tree that remembers where everything was written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tnc.errors import SpecError

SET = "<--set>"


@dataclass(frozen=True)
class Mark:
    """A place in a file: line and column count from 1; `text` is the line itself."""

    file: str
    line: int
    column: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    @property
    def short(self) -> str:
        """The place as plans cite it: file name and line, or the override."""
        if self.file == SET:
            return f"--set {self.text}"
        return f"{Path(self.file).name}:{self.line}"

    @property
    def caret(self) -> str:
        """The line with a caret under the column."""
        return f"  {self.text.rstrip()}\n  {' ' * (self.column - 1)}^"


@dataclass(frozen=True)
class Node:
    """A value with its place; `key` is the place of the key or dash that holds it."""

    value: dict[str, Node] | list[Node] | str | int | float | bool | None
    mark: Mark
    key: Mark

    @property
    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {name: node.plain for name, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain for node in self.value]
        return self.value


def parse_tree(text: str, file: str) -> Node:
    """Parse YAML 1.2 text into a tree. Raises SpecError with the place for anything but a map."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    lines = text.split("\n")
    try:
        data = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        mark = _mark(file, lines, at.line, at.column) if at else Mark(file, 1, 1, "")
        what = str(error.problem or error.context).split("\n")[0]
        raise SpecError(f"{mark}: not YAML: {what}\n{mark.caret}") from error
    except YAMLError as error:
        what = str(error).split("\n")[0]
        raise SpecError(
            f"not YAML: {what}", where=file, hint="a spec is text in UTF-8: `tnc spec init`"
        ) from error
    start = _mark(file, lines, 0, 0)
    if not isinstance(data, dict):
        raise SpecError(
            f"{start}: a spec is a map of keys, got {_told(data)}\n{start.caret}",
            hint="start with 'version: 1', or run `tnc spec init`",
        )
    return _Reader(file, lines).node(data, start, start, ())


def _told(data: Any) -> str:
    if data is None:
        return "an empty file"
    return "a list" if isinstance(data, list) else repr(str(data))


def _mark(file: str, lines: Sequence[str], line: int, column: int) -> Mark:
    text = lines[line] if line < len(lines) else ""
    return Mark(file, line + 1, column + 1, text)


@dataclass(frozen=True)
class _Reader:
    file: str
    lines: list[str]

    def node(self, data: Any, mark: Mark, key: Mark, above: tuple[int, ...]) -> Node:
        if id(data) in above:
            raise SpecError(f"{mark}: an alias contains itself\n{mark.caret}")
        inside = (*above, id(data))
        if isinstance(data, dict):
            value: Any = {}
            for name in data:
                keyed, valued = self._entry(data, name, mark)
                value[str(name)] = self.node(data[name], valued, keyed, inside)
            return Node(value, mark, key)
        if isinstance(data, list):
            marks = [self._item(data, index, mark) for index in range(len(data))]
            return Node([self.node(d, m, m, inside) for d, m in zip(data, marks)], mark, key)
        return Node(self._scalar(data, mark), mark, key)

    def _entry(self, data: Any, name: Any, mark: Mark) -> tuple[Mark, Mark]:
        place = (data.lc.data or {}).get(name)
        if place is None:
            return mark, mark
        return self._mark(place[0], place[1]), self._mark(place[2], place[3])

    def _item(self, data: Any, index: int, mark: Mark) -> Mark:
        place = (data.lc.data or {}).get(index)
        return mark if place is None else self._mark(place[0], place[1])

    def _mark(self, line: int, column: int) -> Mark:
        return _mark(self.file, self.lines, line, column)

    def _scalar(self, data: Any, mark: Mark) -> Any:
        if data is None or isinstance(data, bool):
            return data
        for kind in (int, float, str):
            if isinstance(data, kind):
                return bool(data) if type(data).__name__ == "ScalarBoolean" else kind(data)
        raise SpecError(
            f"{mark}: expected text, a number, true or false, got {data}\n{mark.caret}",
            hint="put it into quotes",
        )
