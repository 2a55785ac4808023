"""Spec files: what they extend, what is set over them, where they are found.

Maps are merged deeply, lists are replaced. A map that names another `kind` replaces the whole map,
so that no option of the old kind lingers. Overrides (`--set`) come last, before anything is
checked.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from tnc.decide.spectree import SET, Mark, Node, parse_tree
from tnc.errors import SpecError


def read_tree(path: Path, chain: tuple[Path, ...] = ()) -> Node:
    """Read a spec file with everything that it extends. Raises SpecError with the place."""
    if path.resolve() in chain:
        circle = " -> ".join(file.name for file in (*chain, path))
        raise SpecError(
            f"specs extend each other in a circle: {circle}",
            where=f"extends of {chain[-1]}",
            hint="leave one `extends` of the circle out",
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read the spec: {error}", where=str(path)) from error
    tree = parse_tree(text, str(path))
    assert isinstance(tree.value, dict)
    bases = tree.value.pop("extends", None)
    for base in reversed(_bases(bases) if bases else []):
        tree = merge(read_tree(_beside(path, base), (*chain, path.resolve())), tree)
    return tree


def merge(base: Node, over: Node) -> Node:
    """Lay one tree over another: maps are merged, everything else is replaced.

    >>> low = parse_tree("a: {x: 1, y: 2}", "low")
    >>> merge(low, parse_tree("a: {y: 3}", "high")).plain
    {'a': {'x': 1, 'y': 3}}
    """
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    kinds = [node.value.get("kind") for node in (base, over) if isinstance(node.value, dict)]
    if kinds[0] and kinds[1] and kinds[0].value != kinds[1].value:
        return over
    merged = dict(base.value)
    for name, node in over.value.items():
        merged[name] = merge(merged[name], node) if name in merged else node
    return replace(over, value=merged)


def override(tree: Node, assignment: str) -> Node:
    """Set one value, such as `budget.params=0.3` or `rules.0.keep=0.5`. Raises SpecError."""
    path, equals, text = assignment.partition("=")
    if not equals or not path.strip():
        raise SpecError(
            f"{assignment!r} is no assignment", where="--set", hint="write --set key.key=value"
        )
    parsed = parse_tree(f"value: {text}", SET)
    assert isinstance(parsed.value, dict)
    value = _at(parsed.value["value"], Mark(SET, 1, len(path) + 2, assignment))
    return _put(tree, path.strip().split("."), value, assignment)


def find_spec_file(name: str, folder: str = "recipes") -> Path:
    """Return the file of a spec: a path, or the bare name of one that comes with tnc in `folder`.

    Raises SpecError with the nearest names.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = recipes(folder)
    if name in shipped:
        return shipped[name]
    if path.is_dir():
        raise SpecError(
            f"{name} is a folder, not a spec file",
            hint=f"name the file in it; `tnc inspect {name}` shows an artifact",
        )
    near = get_close_matches(name, sorted(shipped), n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    raise SpecError(
        f"no spec file and no recipe is named {name!r}",
        hint=f"{guess}{folder}: {', '.join(sorted(shipped))}",
    )


def recipes(folder: str = "recipes") -> dict[str, Path]:
    """Return the recipes that come with tnc, or the specs of another folder of it, by name."""
    package = importlib.util.find_spec("tnc.specs")
    places = (package.submodule_search_locations or []) if package else []
    return {
        file.stem: file
        for place in places
        for file in sorted((Path(place) / folder).glob("*.yaml"))
    }


def _bases(node: Node) -> list[Node]:
    names = node.value if isinstance(node.value, list) else [node]
    for name in names:
        if not isinstance(name.value, str):
            raise SpecError(
                f"{name.mark}: extends: expected a file name, got {name.plain!r}\n{name.mark.caret}"
            )
    return names


def _beside(path: Path, base: Node) -> Path:
    name = str(base.value)
    beside = path.parent / name
    if beside.is_file():
        return beside
    if name in recipes():
        return recipes()[name]
    raise SpecError(
        f"{base.mark}: extends: no file {name!r} beside {path.name}, and no recipe of that name"
        f"\n{base.mark.caret}"
    )


def _put(tree: Node, path: Sequence[str], value: Node, assignment: str) -> Node:
    if not path:
        return value
    head, rest = path[0], path[1:]
    if isinstance(tree.value, list):
        if not head.isdigit() or int(head) >= len(tree.value):
            raise SpecError(
                f"{head!r} is no index of a list of {len(tree.value)}",
                where=f"--set {assignment}",
                hint="items count from 0",
            )
        items = list(tree.value)
        items[int(head)] = _put(items[int(head)], rest, value, assignment)
        return replace(tree, value=items)
    inner = dict(tree.value) if isinstance(tree.value, dict) else {}
    empty = Node({}, replace(value.mark, column=1), replace(value.mark, column=1))
    inner[head] = _put(inner.get(head, empty), rest, value, assignment)
    return replace(tree, value=inner)


def _at(node: Node, mark: Mark) -> Node:
    value = node.value
    if isinstance(value, dict):
        value = {name: _at(inner, mark) for name, inner in value.items()}
    elif isinstance(value, list):
        value = [_at(inner, mark) for inner in value]
    return Node(value, mark, replace(mark, column=1))
