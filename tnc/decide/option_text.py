"""The text form of a registered thing with its options: `tucker{factors=2}`.

One parser and one printer serve structures, passes and sources. Values are JSON (`2`, `0.5`,
`true`, `"a b"`, `[1, 2]`, `{"r": 4}`), bare words, which are strings, or forms with options again
(`structured{family=tucker{factors=2}}`). `a + b{k=1}` is the thing named `sum` with the option
`terms`, a list of the forms that are joined.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

_NAME = re.compile(r"[A-Za-z][\w-]*")
_WORD = re.compile(r"[A-Za-z_][\w.:/*-]*")
_KEY = re.compile(r"[A-Za-z_]\w*")
_SPACE = re.compile(r"\s*")
SUM = "sum"
_CONSTANTS = {"true": True, "false": False, "null": None, "Infinity": math.inf, "NaN": math.nan}
"""Words that are no strings: those that JSON, as Python writes it, has for values."""


class OptionText(ValueError):
    """A text form that cannot be read: what was expected, and at which character (from 1)."""

    def __init__(self, message: str, text: str, at: int) -> None:
        super().__init__(f"{message} at character {at + 1} of {text!r}")


def parse_form(text: str) -> dict[str, Any]:
    """Read `name{key=value, key=value}` into a mapping whose `kind` is the name.

    >>> parse_form("tucker{factors=2}")
    {'kind': 'tucker', 'factors': 2}
    >>> parse_form("low-rank")
    {'kind': 'low-rank'}
    >>> parse_form("low-rank + tucker{factors=2}")
    {'kind': 'sum', 'terms': [{'kind': 'low-rank'}, {'kind': 'tucker', 'factors': 2}]}
    >>> parse_form("stacked{of=tucker{factors=2}}")
    {'kind': 'stacked', 'of': {'kind': 'tucker', 'factors': 2}}

    Raises OptionText.
    """
    found, at = _parse_sum(text, _skip(text, 0))
    if at != len(text):
        end = len(text[:at].rstrip())
        closed = text[end - 1] == "}"
        raise OptionText(f"expected {'nothing more' if closed else repr('{')}", text, end)
    return found


def print_form(options: Mapping[str, Any]) -> str:
    """Write a mapping with a `kind` in the text form; `parse_form` reads it back.

    >>> print_form({"kind": "free-form", "equation": "B[o r] A[r i] : i -> o"})
    'free-form{equation="B[o r] A[r i] : i -> o"}'
    >>> print_form({"kind": "sum", "terms": ["low-rank", {"kind": "tucker", "factors": 2}]})
    'low-rank + tucker{factors=2}'
    """
    if _is_sum(options):
        forms = [term if isinstance(term, str) else print_form(term) for term in options["terms"]]
        return " + ".join(forms)
    pairs = [f"{key}={_print_value(value)}" for key, value in options.items() if key != "kind"]
    return f"{options['kind']}{{{', '.join(pairs)}}}" if pairs else str(options["kind"])


def _is_sum(options: Mapping[str, Any]) -> bool:
    """Whether a mapping can be written as `a + b`, and read back as it is."""
    terms = options.get("terms")
    return (
        options["kind"] == SUM
        and len(options) == 2
        and isinstance(terms, list | tuple)
        and len(terms) > 1
        and all(
            (isinstance(term, str) and _NAME.fullmatch(term))
            or (isinstance(term, Mapping) and "kind" in term and term["kind"] != SUM)
            for term in terms
        )
    )


def _parse_sum(text: str, at: int) -> tuple[dict[str, Any], int]:
    found, at = _parse_one(text, at)
    terms = [found]
    while text.startswith("+", at):
        found, at = _parse_one(text, _skip(text, at + 1))
        terms.append(found)
    return (found if len(terms) == 1 else {"kind": SUM, "terms": terms}), at


def _parse_one(text: str, at: int) -> tuple[dict[str, Any], int]:
    name = _NAME.match(text, at)
    if name is None:
        raise OptionText("expected a name", text, at)
    found: dict[str, Any] = {"kind": name[0]}
    at = _skip(text, name.end())
    if not text.startswith("{", at):
        return found, at
    at = _expect(text, at, "{")
    while not text.startswith("}", at):
        at = _parse_pair(text, at, found)
        if not text.startswith("}", at):
            at = _expect(text, at, ",")
    return found, _skip(text, at + 1)


def _parse_pair(text: str, at: int, found: dict[str, Any]) -> int:
    key = _KEY.match(text, at)
    if key is None:
        raise OptionText("expected an option name", text, at)
    if key[0] in found:
        raise OptionText(f"option {key[0]!r} is given twice", text, at)
    at = _expect(text, _skip(text, key.end()), "=")
    found[key[0]], at = _parse_value(text, at)
    return _skip(text, at)


def _parse_value(text: str, at: int) -> tuple[Any, int]:
    word = _WORD.match(text, at)
    if word is not None and text[_skip(text, word.end()) :][:1] in ("{", "+"):
        return _parse_sum(text, at)
    if word is not None:
        return _CONSTANTS.get(word[0], word[0]), word.end()
    try:
        return json.JSONDecoder().raw_decode(text, at)
    except ValueError as error:
        raise OptionText("expected a value: a number, a word or JSON", text, at) from error


def _print_value(value: Any) -> str:
    if isinstance(value, str) and _WORD.fullmatch(value) and value not in _CONSTANTS:
        return value
    if isinstance(value, Mapping) and _is_form(value):
        return print_form(value)
    return json.dumps(value, ensure_ascii=False)


def _is_form(value: Mapping[str, Any]) -> bool:
    """Whether a mapping can be written as a form with options, and read back as it is."""
    kind = value.get("kind")
    if not isinstance(kind, str) or not _NAME.fullmatch(kind) or len(value) < 2:
        return False
    return all(isinstance(key, str) and _KEY.fullmatch(key) for key in value)


def _expect(text: str, at: int, mark: str) -> int:
    if not text.startswith(mark, at):
        raise OptionText(f"expected {mark!r}", text, at)
    return _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at
