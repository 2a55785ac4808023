"""Steps of a streamed compilation: each makes one file, from one or a few weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf

from torch import Tensor, nn

from tnc.decide.group import Group
from tnc.decide.plan import Entry
from tnc.decide.site import Site
from tnc.errors import PassError
from tnc.fit import Metric
from tnc.rewrite import Approximate, Reparam, Subject
from tnc.rewrite.factorizing import members_of, sites_of
from tnc.rewrite.fitting import fit_sites
from tnc.sources.skeleton import tied_names
from tnc.stream.lending import Lender

STEP_BYTES = 128 << 20
"""Weights are taken together up to this size, so that files are neither huge nor many."""


@dataclass(frozen=True)
class Step:
    """One file of the artifact: entries of the plan to carry out, tensors to copy."""

    file: str
    entries: tuple[Entry, ...]
    copies: tuple[str, ...]


def steps_of(subject: Subject, compiled: Subject, size: int = STEP_BYTES) -> tuple[Step, ...]:
    """Divide the work into steps, in the order of names; the same for the same plan and size."""
    assert compiled.plan is not None
    groups: list[tuple[list[Entry], list[str]]] = [([], [])]
    filled = 0
    for work, nbytes in sorted(_works(subject, compiled), key=lambda item: _name(item[0])):
        if filled and filled + nbytes > size:
            groups.append(([], []))
            filled = 0
        entries, copies = groups[-1]
        if isinstance(work, Entry):
            entries.append(work)
        else:
            copies.append(work)
        filled += nbytes
    return tuple(
        Step(f"tnc-{n + 1:05d}-of-{len(groups):05d}.safetensors", tuple(entries), tuple(copies))
        for n, (entries, copies) in enumerate(groups)
    )


def _works(subject: Subject, compiled: Subject) -> Iterator[tuple[Entry | str, int]]:
    """Yield each entry with a structure and each tensor that is kept, with the bytes it reads."""
    assert compiled.plan is not None
    before = subject.model.state_dict(keep_vars=True)
    made = {new for reparam in compiled.reparams for _, new in reparam.new}
    for entry in compiled.plan.entries:
        if entry.structure is not None:
            yield entry, sum(_nbytes(before[name]) for name in entry.members)
    ties = tied_names(compiled.model)
    for name, names in ties.items():
        if name == names[0] and not made.intersection(names):
            yield name, _nbytes(compiled.model.state_dict(keep_vars=True)[name])


def _name(work: Entry | str) -> str:
    return work if isinstance(work, str) else work.site


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def carry_out(step: Step, subject: Subject, compiled: Subject, lender: Lender) -> dict[str, Tensor]:
    """Return the tensors of a step by their names in the compiled model.

    Raises PassError where a fit is worse than the plan promised.
    """
    made: dict[str, Tensor] = {}
    ties = tied_names(compiled.model)
    for entry in step.entries:
        for name, core in _fitted(entry, subject, compiled, lender):
            made.setdefault(ties[name][0], core)
    for name in step.copies:
        made[name] = _kept(name, compiled.model, lender)
    return {name: tensor.contiguous() for name, tensor in sorted(made.items())}


def _fitted(
    entry: Entry, subject: Subject, compiled: Subject, lender: Lender
) -> Iterator[tuple[str, Tensor]]:
    assert entry.structure is not None and compiled.plan is not None
    group = Group.of(sites_of(subject, entry), entry.structure)
    seed = compiled.plan.seed
    with lender.lent(entry.members):
        found = fit_sites(subject.model, group, entry.structure, entry.fit, Metric(), None, seed)
    shapes = {reparam.old[0]: reparam for reparam in compiled.reparams}
    for site, _, cores, _ in members_of(group, entry.structure, found.cores):
        reparam = replace(shapes[site.aliases[0]], residual=found.relative, plain=found.plain)
        _check(entry, site, reparam, compiled)
        for name, path in reparam.new:
            yield path, cores[name]


def _check(entry: Entry, site: Site, reparam: Reparam, compiled: Subject) -> None:
    """Hold a fit to what the plan promised, as the pass does."""
    promised = inf if entry.relative is None else entry.relative
    done = replace(compiled, reparams=(replace(reparam, promised=promised),))
    reason = Approximate().breach((), (), replace(compiled, reparams=()), done)
    if reason:
        raise PassError(reason, where=f"site {site.name}", hint="make the plan again")


def _kept(name: str, model: nn.Module, lender: Lender) -> Tensor:
    """Return a tensor that the plan leaves alone: a buffer of the model, or from the checkpoint."""
    held: Tensor = model.state_dict()[name]
    return lender.read(name) if held.is_meta else held.detach()
