"""Carry a plan out block by block, on what the original and the compressed model compute."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tnc.artifact.manifest import checksum, file_state
from tnc.capture import Measurements, measure
from tnc.decide.pipeline import pipeline
from tnc.decide.plan import Entry, Plan
from tnc.decide.site import Site
from tnc.errors import PassError
from tnc.files import flush
from tnc.planner.task import Progress
from tnc.rewrite import Pass, Subject
from tnc.rewrite.factorizing import sites_of
from tnc.sources.skeleton import tied_names
from tnc.stream.blocks import REST
from tnc.stream.calibrating import Divided, measure_around, walk
from tnc.stream.flow import Alone, Flow, outside
from tnc.stream.journal import Journal
from tnc.stream.values import Shelf

CACHE = ".cache"
ROOM = 64 << 20
"""Bytes of activations that a pass keeps at once; the shelf has them all."""

Write = Callable[[str, Callable[[], dict[str, Tensor]]], None]
"""Makes a file of the artifact, unless it is done."""


@dataclass(frozen=True)
class Work:
    """What is compiled: the model in blocks, its plan, names of the result, where caches lie."""

    divided: Divided
    plan: Plan
    compiled: nn.Module
    journal: Journal
    folder: Path

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The passes that are carried out on every part, in order."""
        steps = [step for _, step in pipeline(self.plan.passes)]
        return tuple(s for s in steps if s.stage == "apply" and s.in_parts.carried)

    @property
    def sides(self) -> tuple[str, ...]:
        """The runs that are followed: the compressed one only where a pass asks for it."""
        return ("was", "now") if any(s.in_parts.follows for s in self.passes) else ("was",)

    def entries(self, part: int) -> tuple[Entry, ...]:
        """Return the entries of a part that have a structure."""
        return tuple(e for e in self.plan.entries if e.structure and self._part(e) == part)

    def sites(self, entries: Sequence[Entry]) -> list[Site]:
        """Return the sites whose figures the fits of entries need."""
        found = [e for e in entries if e.metric != "none"]
        return [site for e in found for site in sites_of(self.divided.subject, e)]

    def _part(self, entry: Entry) -> int:
        return self.divided.blocks.of_sites(sites_of(self.divided.subject, entry))


def files_of(divided: Divided) -> tuple[str, ...]:
    """Name the files: one for each block, and one for what is around them."""
    count = len(divided.blocks.paths) + 1
    return tuple(f"tnc-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count))


def carry_out_blocks(work: Work, write: Write, progress: Progress | None = None) -> None:
    """Make the files of the artifact that are not done; go on after the last block that is.

    Raises PassError where a fit is worse than the plan promised.
    """
    files = files_of(work.divided)
    flows, start = _begun(work)
    for block, file in enumerate(files):
        if progress:
            progress("fit and write", block, len(files))
        if block < start:
            write(file, dict)  # it is done
        elif block < len(files) - 1:
            made = _block(work, flows, block)
            write(file, partial(dict, made))
            del made
            _note_done(work, flows, block)
        else:
            write(file, partial(_around, work, flows))


def _is_done(work: Work, file: str) -> bool:
    line = work.journal.find("file", file)
    return line is not None and file_state(work.folder / file, line["sha256"]) == "ok"


def _begun(work: Work) -> tuple[dict[str, Flow], int]:
    """Return the runs as they were after the last block that is done, and the next block."""
    blocks, batches = work.divided.blocks, work.divided.batches
    shelf = Shelf(work.folder / CACHE)
    if all(_is_done(work, file) for file in files_of(work.divided)):
        return {}, len(files_of(work.divided))
    flows = {side: Flow(side, blocks, batches, shelf) for side in work.sides}
    done = work.journal.find("flowed")
    files = files_of(work.divided)
    if done is not None and all(_is_done(work, file) for file in files[: done["flowed"] + 1]):
        states = [file_state(work.folder / CACHE / n, d) for n, d in done["values"].items()]
        if all(state == "ok" for state in states):
            noted = json.loads((work.folder / CACHE / _state_file(done["flowed"])).read_text())
            for side, flow in flows.items():
                flow.restore(noted[side])
            return flows, done["flowed"] + 1
    shutil.rmtree(shelf.folder)
    return {s: Flow(s, blocks, batches, Shelf(shelf.folder)) for s in work.sides}, 0


def _note_done(work: Work, flows: Mapping[str, Flow], block: int) -> None:
    """Write to the journal that a block is done, then remove what is needed no longer."""
    cache = work.folder / CACHE
    state = cache / _state_file(block)
    state.write_text(json.dumps({side: flow.state() for side, flow in flows.items()}))
    flush(state)
    live = [flow.shelf.path(name) for flow in flows.values() for name in flow.live(block)]
    kept = [path for path in (state, *live) if path.exists()]
    work.journal.add({"flowed": block, "values": {p.name: checksum(p) for p in kept}})
    for flow in flows.values():
        flow.drop(block)
    (cache / _state_file(block - 1)).unlink(missing_ok=True)


def _state_file(block: int) -> str:
    return f"state-{block}.json"


def _block(work: Work, flows: Mapping[str, Flow], block: int) -> dict[str, Tensor]:
    """Fit a block; run the original and the compressed one; return the tensors to write."""
    divided, path = work.divided, work.divided.blocks.paths[block]
    if block == 0 or any(flow.is_open(block) for flow in flows.values()):
        _record(work, flows, block)
    entries = work.entries(block)
    with divided.lender.lent(divided.names(block)):
        module = divided.subject.model.get_submodule(path)
        original = Alone(path, module, "was")
        feeds = divided.feeds(flows, block)
        sites = work.sites(entries)
        measured = measure(original, sites, feeds) if sites else None
        subject = _subject(work, entries, feeds, measured, original)
        subject = replace(subject, model=Alone(path, copy.deepcopy(module), "now"))
        flows["was"].advance(block, original, feeds)

        def advance(made: Subject) -> None:
            flows["now"].advance(block, made.model, feeds)

        made = _passed(work.passes, subject, advance)
        return _tensors(work, block, made.model)


def _around(work: Work, flows: Mapping[str, Flow]) -> dict[str, Tensor]:
    """Fit what is around the blocks, once they have all run; return the tensors to write."""
    divided = work.divided
    with divided.lender.lent(divided.names(REST)):
        entries = work.entries(REST)
        sites = work.sites(entries)
        measured = measure_around(divided, flows["was"], sites) if sites else None
        made = _compressed_around(work, flows, entries, measured)
        return _tensors(work, REST, made.model)


def _record(work: Work, flows: Mapping[str, Flow], block: int) -> None:
    """Note what a block and those after it are given from outside, in both runs."""
    divided = work.divided
    names, model = divided.names(REST), divided.subject.model
    with divided.lender.lent(divided.early()):
        flows["was"].record(model, block)
    if "now" not in flows:
        return
    early = [e for e in work.entries(REST) if _starts_before(work, e, block)]
    measured = _measured_early(work, flows, early, block)
    with divided.lender.lent(names):
        if flows["now"].calls[0]:
            made = _compressed_around(work, flows, early, measured)
        else:  # the compressed run has no results of blocks yet: it begins as the original
            flows["now"].restore(copy.deepcopy(flows["was"].state()))
            made = _compressed_around(work, flows, early, measured)
        flows["now"].record(made.model, block)


def _starts_before(work: Work, entry: Entry, block: int) -> bool:
    sites = sites_of(work.divided.subject, entry)
    return any(work.divided.blocks.starts_before(site, block) for site in sites)


def _measured_early(
    work: Work, flows: Mapping[str, Flow], early: Sequence[Entry], block: int
) -> Measurements | None:
    """Measure what runs before a block; what is read again later asks for a whole run."""
    divided, sites = work.divided, work.sites(early)
    if not sites:
        return None
    if not all(divided.blocks.ends_before(site, block) for site in sites):
        whole = Shelf(work.folder / CACHE / "whole")
        ((_, found),) = walk(divided, {REST: sites}, whole)
        shutil.rmtree(whole.folder)
        return found
    with divided.lender.lent(divided.names(REST)):
        return measure_around(divided, flows["was"], sites)


def _compressed_around(
    work: Work,
    flows: Mapping[str, Flow],
    entries: Sequence[Entry],
    measured: Measurements | None,
) -> Subject:
    """Return what is around the blocks with entries carried out; its weights are lent."""
    divided, original = work.divided, work.divided.subject.model
    model = copy.deepcopy(original)
    feeds = divided.feeds(flows, 0)
    with ExitStack() as stack:
        stack.enter_context(outside(original, flows["was"]))
        if "now" in flows:
            stack.enter_context(outside(model, flows["now"]))
        subject = _subject(work, entries, feeds, measured, original)
        return _passed(work.passes, replace(subject, model=model))


def _subject(
    work: Work,
    entries: Sequence[Entry],
    feeds: tuple[Any, ...],
    measured: Measurements | None,
    original: nn.Module,
) -> Subject:
    held = {name for name, _ in original.named_parameters(remove_duplicate=False)}
    return replace(
        work.divided.subject,
        plan=replace(work.plan, entries=tuple(entries)),
        measurements=measured,
        batches=feeds,
        ties=tuple(group for group in work.divided.subject.ties if held.issuperset(group)),
        original=original,
        room=ROOM,
    )


def _passed(
    passes: Sequence[Pass], subject: Subject, follow: Callable[[Subject], None] | None = None
) -> Subject:
    """Run passes on a part, hold each to its contract; follow the run after the last that asks."""
    last = max((n for n, step in enumerate(passes) if step.in_parts.follows), default=-1)
    for number, step in enumerate(passes):
        made = step.apply(replace(subject, edits=()))
        reason = step.contract.breach((), (), subject, made)
        if reason:
            raise PassError(reason, where=f"pass {step}", hint="make the plan again")
        subject = made
        if number == last and follow is not None:
            follow(subject)
    return subject


def _tensors(work: Work, part: int, model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a part under their first names in the compiled model."""
    blocks, state = work.divided.blocks, model.state_dict()
    firsts = dict.fromkeys(names[0] for names in tied_names(work.compiled).values())
    return {
        name: state[name].detach().contiguous()
        for name in sorted(firsts)
        if blocks.part(name) == part
    }


def measured_entries(plan: Plan) -> Iterator[Entry]:
    """Yield the entries that are fitted in a measured metric."""
    yield from (e for e in plan.entries if e.structure is not None and e.metric != "none")
