"""The text form: `B[o r] A[r i] : i -> o | i=768 o=768 r=64`.

Cores with their legs, then the map. Parentheses group legs into one model dimension. A core is
trainable unless a mark follows it: `!` frozen, `=` constant. `S[o i]#n` is sparse: `n` of its
entries are stored. Sizes follow a bar.
"""

from __future__ import annotations

import re

from tnc.errors import EquationError
from tnc.net.equation import Axis, Core, Equation
from tnc.net.network import Network

_MARKS = {"": "trainable", "!": "frozen", "=": "constant"}
_KINDS = {kind: mark for mark, kind in _MARKS.items()}
_CORE = re.compile(r"\s*([^\s\[\]]+)\s*\[([^\[\]]*)\]([!=]?)(?:#([^\s\[\]]+))?")
_SIZE = re.compile(r"(\S+?)=(\d+)\Z")


def parse_equation(text: str) -> Equation:
    """Read an equation. Raises EquationError with the place in the text.

    >>> parse_equation("B[o r] A[r i] : i -> o").bonds
    ('r',)
    """
    body, colon, legs = text.partition(":")
    left, arrow, right = legs.partition("->")
    if not colon or not arrow:
        raise EquationError(
            f"{text!r} has no ': inputs -> outputs'", hint="example: 'B[o r] A[r i] : i -> o'"
        )
    return Equation(_cores(body), _axes(left, text), _axes(right, text))


def print_equation(equation: Equation) -> str:
    """Write an equation; `parse_equation` reads it back."""
    cores = " ".join(
        f"{core.name}[{' '.join(core.indices)}]{_KINDS.get(core.kind, '?')}"
        + (f"#{core.stored}" if core.stored else "")
        for core in equation.cores
    )
    return f"{cores} : {_print_axes(equation.inputs)} -> {_print_axes(equation.outputs)}"


def parse_network(text: str) -> Network:
    """Read an equation with sizes after a bar. Raises EquationError.

    >>> parse_network("B[o r] A[r i] : i -> o | i=8 o=4 r=2").signature
    Signature(outputs=(4,), inputs=(8,))
    """
    body, bar, sizes = text.partition("|")
    if not bar:
        raise EquationError(f"{text!r} has no sizes", hint="end with '| i=768 o=768 r=64'")
    found: dict[str, int] = {}
    for word in sizes.split():
        match = _SIZE.match(word)
        if not match:
            raise EquationError(f"size {word!r} is not 'index=number'", where=f"network {text!r}")
        found[match[1]] = int(match[2])
    return Network.of(parse_equation(body), found)


def print_network(network: Network) -> str:
    """Write a network; `parse_network` reads it back."""
    sizes = " ".join(f"{name}={size}" for name, size in network.sizes)
    return f"{print_equation(network.equation)} | {sizes}"


def _cores(body: str) -> tuple[Core, ...]:
    cores, place = [], 0
    while body[place:].strip():
        match = _CORE.match(body, place)
        if not match:
            raise EquationError(
                f"cannot read a core at {body[place:].strip()!r}",
                hint="a core is a name and its indices: 'A[r i]'",
            )
        cores.append(Core(match[1], tuple(match[2].split()), _MARKS[match[3]], match[4] or ""))
        place = match.end()
    return tuple(cores)


def _axes(side: str, text: str) -> tuple[Axis, ...]:
    axes: list[Axis] = []
    for group, name in re.findall(r"\(([^()]*)\)|([^\s()]+)", side):
        axes.append((name,) if name else tuple(group.split()))
    if side.count("(") != side.count(")") or any(not axis for axis in axes):
        raise EquationError(f"parentheses do not pair up in {side.strip()!r}", where=repr(text))
    return tuple(axes)


def _print_axes(axes: tuple[Axis, ...]) -> str:
    return " ".join(axis[0] if len(axis) == 1 else f"({' '.join(axis)})" for axis in axes)
