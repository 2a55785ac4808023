"""Look-ups: rows of some operands are gathered by number, then matrix products put them together.

A row number has one digit for each output leg, the last leg fastest. An operand with output legs is
a table of its own: what it is asked for are the digits of its legs, as one number. The value that
is gathered first is the activation; it absorbs the other operands, gathered or whole, in turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, permutations

from tnc.derive.dense import ROWS
from tnc.kernels.layouts import same_memory
from tnc.kernels.merges import Piece, groupings
from tnc.kernels.operands import Lay, lay_of
from tnc.kernels.program import Copy, Matrix, Multiply, Operand, Step, extent, written
from tnc.net import Axis, Network

MOST_ORDERS = 16
"""Orders of one set of operands that are tried."""


@dataclass(frozen=True)
class Table:
    """An operand: its output legs, outermost in memory, by whose digits rows are gathered.

    Without such legs the operand is taken whole.
    """

    operand: Operand
    picked: Axis

    @property
    def rows(self) -> str:
        """The name of the gathered value."""
        return f"{self.operand.name}_rows" if self.picked else self.operand.name

    @property
    def rest(self) -> Axis:
        """The legs of a gathered row."""
        return self.operand.layout[len(self.picked) :]


@dataclass(frozen=True)
class LookUp:
    """Tables in the order in which they are met, and the products that put rows together."""

    tables: tuple[Table, ...]
    steps: tuple[Step, ...]
    outputs: Axis
    inputs: Axis
    sizes: tuple[tuple[str, int], ...]

    @property
    def products(self) -> tuple[Multiply, ...]:
        """The matrix products, in order."""
        return tuple(step for step in self.steps if isinstance(step, Multiply))

    @property
    def last(self) -> str:
        """The value that is returned."""
        return written(self.steps[-1]) if self.steps else self.tables[0].rows

    def runs(self, table: Table) -> tuple[tuple[int, int, int], ...]:
        """Return how a row number becomes one of a table: a sum of (x // after % size) * stride.

        A size of 0 takes no remainder.
        """
        size, found = dict(self.sizes), []
        place = 0
        while place < len(table.picked):
            first = self.outputs.index(table.picked[place])
            count = 1
            while (
                place + count < len(table.picked)
                and first + count < len(self.outputs)
                and self.outputs[first + count] == table.picked[place + count]
            ):
                count += 1
            after = extent(self.outputs[first + count :], size)
            stride = extent(table.picked[place + count :], size)
            own = extent(self.outputs[first : first + count], size) if first else 0
            found.append((after, own, stride))
            place += count
        return tuple(found)

    def __str__(self) -> str:
        lines = []
        for table in self.tables:
            operand = table.operand
            if len(operand.cores) > 1:
                made = ", ".join(operand.cores)
                lines.append(f"{operand.name}[{' '.join(operand.layout)}] = product of {made}")
            if table.picked:
                legs = " ".join((ROWS, *table.rest))
                lines.append(
                    f"{table.rows}[{legs}] = rows {' '.join(table.picked)} of {operand.name}"
                )
        return "\n".join([*lines, *map(str, self.steps)])


def lookups(network: Network) -> Iterator[LookUp]:
    """Yield the ways to look rows up: merges of cores, and orders of what is left.

    The table itself is never among them. Networks with legs of both sides have none.
    """
    if network.equation.shared:
        return
    outputs = set(network.equation.output_indices)
    for pieces in groupings(network):
        if len(pieces) == 1 < len(network.equation.cores):
            continue
        every = (order for order in permutations(pieces) if outputs & set(order[0][2]))
        for order in islice(filter(_meet, every), MOST_ORDERS):
            yield _chain(network, order)


def _meet(order: Sequence[Piece]) -> bool:
    """Whether every operand shares a leg with one before, if it shares one with any."""
    reached = set(order[0][2])
    for place, (_, _, legs) in enumerate(order[1:], start=1):
        later = {name for _, _, others in order[place:] for name in others}
        if not reached & set(legs) and reached & later:
            return False
        reached |= set(legs)
    return True


def _chain(network: Network, pieces: Sequence[Piece]) -> LookUp:
    outputs, inputs = network.equation.output_indices, network.equation.input_indices
    size = dict(network.sizes)
    tables: list[Table] = []
    steps: list[Step] = []
    layout: Axis = ()
    for place, (name, cores, legs) in enumerate(pieces):
        picked = tuple(n for n in outputs if n in legs)
        rest = tuple(n for n in legs if n not in picked)
        later = {n for _, _, others in pieces[place + 1 :] for n in others}
        if not place:
            following = pieces[1][2] if len(pieces) > 1 else ()
            rest = _sorted(rest, inputs, following, later)
            tables.append(Table(Operand(name, cores, (*picked, *rest)), picked))
            layout, value = (ROWS, *rest), tables[0].rows
            continue
        own = {*rest, *((ROWS,) if picked else ())}
        needed = {*inputs, ROWS, *later}
        kinds = {n: "m" if n not in own else "b" if n in needed else "k" for n in layout}
        roles, groups = _runs(layout, kinds)
        given = {role: tuple(n for n in layout if kinds[n] == role) for role in "bmk"}
        if len(set(roles)) < len(roles) or (picked and given["b"][0] != ROWS):
            turned = tuple(n for role in "bmk" for n in given[role])
            first = tuple(n for n in turned if n == ROWS)
            given = (
                {role: tuple(sorted(given[role], key=lambda n: n != ROWS)) for role in given}
                if first
                else given
            )
            turned = tuple(n for role in "bmk" for n in given[role])
            steps.append(Copy(f"t{place}c", value, layout, turned))
            value, layout = f"t{place}c", turned
            roles, groups = _runs(layout, kinds)
        fresh = tuple(n for n in rest if n not in layout)
        following = pieces[place + 1][2] if place + 1 < len(pieces) else ()
        fresh = _sorted(fresh, inputs, following, later)
        table, right = _operand(name, cores, legs, picked, given, fresh, size)
        tables.append(table)
        batch = "b" if given["b"] else ""
        parts = {**given, "n": fresh}
        made = f"{batch}mn"
        result = Matrix(f"t{place}", tuple(parts[role] for role in made), made)
        steps.append(Multiply(result, Matrix(value, groups, roles), right))
        value, layout = result.value, result.layout
    wanted = (ROWS, *inputs)
    if not same_memory(layout, wanted, size | {ROWS: 2}):
        steps.append(Copy("output", value, layout, wanted))
    return LookUp(tuple(tables), tuple(steps), outputs, inputs, network.sizes)


def _operand(
    name: str,
    cores: tuple[str, ...],
    legs: Axis,
    picked: Axis,
    given: Mapping[str, Axis],
    fresh: Axis,
    size: Mapping[str, int],
) -> tuple[Table, Matrix]:
    """Return an operand as its core lies already if a product can take it so, else turned."""
    parts = {**given, "n": fresh}
    batch = "b" if given["b"] else ""
    found = []
    for roles in (f"{batch}kn", f"{batch}nk"):
        groups = tuple(parts[role] for role in roles)
        rest = tuple(n for group in groups for n in group if n != ROWS)
        table = Table(Operand(name, cores, (*picked, *rest)), picked)
        found.append((table, Matrix(table.rows, groups, roles)))
        if len(cores) == 1 and same_memory(table.operand.layout, legs, size):
            return found[-1]
    return found[0]


def _sorted(legs: Axis, inputs: Axis, following: Axis, later: set[str]) -> Axis:
    """Order new legs: those that stay, then those that the next operand sums."""
    place = {name: number for number, name in enumerate(inputs)}

    def key(name: str) -> tuple[bool, int]:
        return (name in following or name in later, place.get(name, 0))

    return tuple(sorted(legs, key=key))


def _runs(layout: Axis, kinds: Mapping[str, str]) -> tuple[str, tuple[Axis, ...]]:
    roles: list[str] = []
    groups: list[list[str]] = []
    for name in layout:
        if roles and roles[-1] == kinds[name]:
            groups[-1].append(name)
        else:
            roles.append(kinds[name])
            groups.append([name])
    for role in "mk":
        if role not in roles:
            roles.append(role)
            groups.append([])
    return "".join(roles), tuple(map(tuple, groups))


def lays(network: Network, program: LookUp) -> tuple[Lay, ...]:
    """Return how the operands are made of the cores: tables of two dimensions, else matrices."""
    found = []
    rights = {step.right.value: step.right for step in program.products}
    for table in program.tables:
        groups = (table.picked, table.rest) if table.picked else rights[table.rows].groups
        shape = tuple(extent(group, network.size) for group in groups)
        found.append(lay_of(network, table.operand, shape))
    return tuple(found)
