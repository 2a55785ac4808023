"""Measure a streamed model: block by block, on what the blocks before it return."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tnc.capture import Measurements, measure
from tnc.decide.site import Site
from tnc.decide.target import Target
from tnc.planner.task import Progress
from tnc.rewrite import Subject
from tnc.sources.skeleton import tied_names
from tnc.stream.blocks import REST, Blocks, Undivided
from tnc.stream.flow import Alone, Flow, fed, outside
from tnc.stream.lending import Lender
from tnc.stream.values import Shelf


@dataclass(frozen=True)
class Divided:
    """A model without memory that runs block by block, and its calibration batches."""

    subject: Subject
    lender: Lender
    blocks: Blocks
    batches: tuple[Any, ...]

    def names(self, part: int) -> list[str]:
        """Return the parameters of a block, or of what is around the blocks."""
        model = self.subject.model
        return [name for name, _ in model.named_parameters() if self.blocks.part(name) == part]

    def early(self) -> list[str]:
        """Return the parameters around the blocks that are not only read after the last one."""
        ties = tied_names(self.subject.model)
        last = self.blocks.calls[self.blocks.paths[-1]]

        def late(name: str) -> bool:
            return self.blocks.calls.get(name.rpartition(".")[0], -1) > last

        return [n for n in self.names(REST) if not all(map(late, ties.get(n, (n,))))]

    def feeds(self, flows: Mapping[str, Flow], block: int) -> tuple[dict[str, Any], ...]:
        """Return the batches for a block alone, or for what is around the blocks."""
        return tuple(fed(batch, flows, block, n) for n, batch in enumerate(self.batches))


def visits(
    divided: Divided,
    targets: Sequence[Target],
    progress: Progress | None = None,
    scratch: Path | None = None,
) -> Iterator[tuple[Subject, Sequence[Target]]]:
    """Go through targets in the order of execution, each with its weights and figures at hand.

    What blocks return lies in a folder in `scratch` for as long as it is needed. Raises Undivided
    where the model cannot be run block by block.
    """
    parts: dict[int, list[Target]] = defaultdict(list)
    for target in targets:
        parts[divided.blocks.of_sites(target.sites)].append(target)
    sites = {part: [s for t in found for s in t.sites] for part, found in parts.items()}
    if scratch is not None:
        scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tnc-stream-", dir=scratch) as folder:
        for part, measured in walk(divided, sites, Shelf(Path(folder)), progress):
            yield replace(divided.subject, measurements=measured), parts[part]


def walk(
    divided: Divided,
    sites: Mapping[int, Sequence[Site]],
    shelf: Shelf,
    progress: Progress | None = None,
) -> Iterator[tuple[int, Measurements]]:
    """Run the original and yield the figures of the sites of each part, its weights in memory."""
    blocks, lender, model = divided.blocks, divided.lender, divided.subject.model
    flow = Flow("was", blocks, divided.batches, shelf)
    end = len(blocks.paths) if REST in sites else max(sites, default=-1) + 1
    for block, path in enumerate(blocks.paths[:end]):
        if progress:
            progress("measure blocks", block, end)
        if block == 0 or flow.is_open(block):
            with lender.lent(divided.early()):
                flow.record(model, block)
        with lender.lent(divided.names(block)):
            alone = Alone(path, model.get_submodule(path), "was")
            feeds = divided.feeds({"was": flow}, block)
            if block in sites:
                yield block, measure(alone, sites[block], feeds)
            if block + 1 < end or REST in sites:
                flow.advance(block, alone, feeds)
                flow.drop(block)
    if REST in sites:
        with lender.lent(divided.names(REST)):
            yield REST, measure_around(divided, flow, sites[REST])


def measure_around(divided: Divided, flow: Flow, sites: Sequence[Site]) -> Measurements:
    """Measure sites around the blocks, whose results are on the shelf. Raises Undivided."""
    model = divided.subject.model
    with outside(model, flow):
        found = measure(model, sites, divided.feeds({flow.side: flow}, 0))
    check_finite(found)
    return found


def check_finite(found: Measurements) -> None:
    """Raise Undivided for figures that were made of results that were not there."""
    for name, site in found.sites.items():
        if site.moment is not None and not bool(site.moment.isfinite().all()):
            raise Undivided(f"{name} reads results of blocks that are not kept")
