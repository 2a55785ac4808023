"""The blocks of a model: modules of one class that run one after another, and what is around."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from tnc.capture.trace import Trace
from tnc.decide.site import Site
from tnc.errors import PlanError
from tnc.sources.skeleton import tied_names

REST = -1
"""The part of a model that is in no block."""


class Undivided(PlanError):
    """A model that cannot be run block by block; the message says why."""

    def __init__(self, message: str) -> None:
        super().__init__(
            message,
            where="a streamed run on calibration data",
            hint="set `metric: none`, or compile with --no-stream on a larger machine",
        )


@dataclass(frozen=True)
class Blocks:
    """Paths of the blocks in the order of execution, and how often and when modules are called.

    A part of the model is the number of a block, or `REST`.
    """

    paths: tuple[str, ...]
    calls: dict[str, int]

    def part(self, name: str) -> int:
        """Return the part that holds a parameter."""
        found = (n for n, path in enumerate(self.paths) if name.startswith(path + "."))
        return next(found, REST)

    def of_sites(self, sites: Iterable[Site]) -> int:
        """Return the part that holds all sites. Raises Undivided where they are in several."""
        names = [alias for site in sites for alias in site.aliases]
        parts = {self.part(name) for name in names}
        if len(parts) > 1:
            raise Undivided(f"{names[0]} and {names[-1]} are decided at once, in different blocks")
        return parts.pop()

    def starts_before(self, site: Site, block: int) -> bool:
        """Whether a site outside of the blocks is read before a block runs."""
        return any(self._place(use.module) < self._place(self.paths[block]) for use in site.uses)

    def ends_before(self, site: Site, block: int) -> bool:
        """Whether a site outside of the blocks is not read any more once a block runs."""
        return all(self._place(use.module) < self._place(self.paths[block]) for use in site.uses)

    def _place(self, path: str) -> int:
        order = list(self.calls)
        return order.index(path) if path in self.calls else len(order)


def find_blocks(model: nn.Module, trace: Trace) -> Blocks:
    """Find the blocks: children of one class of a list or sequence, each called once.

    Raises Undivided where there are none, or where one shares a tensor with another part.
    """
    calls = {path: place for place, path in enumerate(trace.calls)}
    found = [path for paths in _lists(model, trace) for path in paths]
    if not found:
        raise Undivided("no blocks of one class run one after another, each once")
    blocks = Blocks(tuple(sorted(found, key=calls.__getitem__)), calls)
    for names in dict.fromkeys(tied_names(model).values()):
        if len({blocks.part(name) for name in names}) > 1:
            raise Undivided(f"{names[0]} and {names[-1]} are one tensor, in different blocks")
    return blocks


def _lists(module: nn.Module, trace: Trace, path: str = "") -> Iterator[tuple[str, ...]]:
    children = [(f"{path}.{n}".removeprefix("."), child) for n, child in module.named_children()]
    alike = len({type(child) for _, child in children}) == 1 and len(children) > 1
    filled = all(any(True for _ in child.parameters()) for _, child in children)
    once = all(trace.calls.get(place) == 1 for place, _ in children)
    if isinstance(module, nn.ModuleList | nn.Sequential) and alike and filled and once:
        yield tuple(place for place, _ in children)
        return
    for place, child in children:
        yield from _lists(child, trace, place)
