"""Which layers of a model are fitted as one tensor: those of one kind, in the model's order."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from tnc.decide.group import Group
from tnc.decide.plan import Skip
from tnc.decide.target import Target


def stacked(targets: Sequence[Target]) -> tuple[tuple[Target, ...], tuple[Skip, ...]]:
    """Stack the targets of rules with `joint`; a layer left without a partner stays dense.

    Layers are of one kind where their paths differ in numbers alone and their shapes, dtypes and
    options are equal: `layer.0.query` and `layer.11.query`.
    """
    found = [target for target in targets if target.rule.joint is None]
    skips = []
    kinds: dict[object, list[Target]] = defaultdict(list)
    for target in targets:
        if target.rule.joint is not None:
            kinds[_kind(target)].append(target)
    for alike in kinds.values():
        alike.sort(key=lambda target: _natural(target.name))
        joint = alike[0].rule.joint
        size = joint if isinstance(joint, int) else len(alike)
        for start in range(0, len(alike), size):
            part = alike[start : start + size]
            if len(part) == 1:
                reason = f"dense: no layer of its kind is left to join it ({part[0].where})"
                skips.append(Skip(part[0].name, reason))
                continue
            sites = tuple(target.sites[0] for target in part)
            found.append(replace(part[0], group=Group(sites, stacked=True)))
    return tuple(sorted(found, key=lambda target: target.name)), tuple(skips)


def _kind(target: Target) -> object:
    site = target.sites[0]
    shape = (site.signature, site.dtype, site.transposed, site.groups, site.options, site.op)
    way = (site.stored, site.rebuilt)
    alone = "" if len(site.aliases) == 1 else site.name
    return (target.where, re.sub(r"\d+", "#", site.name), shape, way, alone)


def _natural(name: str) -> tuple[tuple[int, str], ...]:
    """Sort layer.2 before layer.10.

    >>> sorted(["a.10", "a.2"], key=_natural)
    ['a.2', 'a.10']
    """
    parts = re.split(r"(\d+)", name)
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in parts)
