"""Read a recorded forward pass: neighbours, shared inputs, and what nothing depends on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from tnc.capture.flow import Flow, Step
from tnc.capture.trace import Link
from tnc.decide.site import Site

NORMS = ("layernorm", "rmsnorm", "scale")
LAYERS = ("linear", "conv", "embedding", "batchnorm", "groupnorm", *NORMS)


def links(flow: Flow, kept: Iterable[int], calls: Mapping[str, int]) -> tuple[Link, ...]:
    """Return the neighbours with nothing between them, sorted; `kept` are values that escape."""
    steps = _with_biases(flow.steps)
    readers: dict[int, list[Step]] = defaultdict(list)
    for step in steps:
        for value in step.reads:
            readers[value].append(step)
    escaped = set(kept)
    ends = Counter(step.end for step in steps if step.role in LAYERS)
    found = set()
    for first in steps:
        if first.role not in LAYERS or first.made is None or first.made.value in escaped:
            continue
        seconds = readers[first.made.value]
        if not seconds or (len(seconds) > 1 and first.role not in NORMS):
            continue
        if len(seconds) > 1 and any(second.role != "linear" for second in seconds):
            continue
        if all(_adjacent(first, second) for second in seconds):
            pairs = [(first.end, second.end) for second in seconds]
            if all(ends[a] == ends[b] == calls.get(a) == calls.get(b) == 1 for a, b in pairs):
                found |= {Link(f"{first.role}-{s.role}", first.end, s.end) for s in seconds}
    return tuple(sorted(found, key=lambda link: (link.first, link.second, link.kind)))


def shared_inputs(sites: Sequence[Site]) -> tuple[tuple[str, ...], ...]:
    """Return groups of linear sites that read one tensor in one module, each sorted.

    Their weights can share the factor on the input side: the groups stack by outputs.
    """
    groups: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for site in sites:
        if {use.op for use in site.uses} != {"linear"}:
            continue
        where = tuple((_scope(use.module, use.view), use.reads, use.rows) for use in site.uses)
        key = (where, site.transposed, site.dtype, site.signature.inputs)
        groups[key].append(site.name)
    return tuple(sorted(tuple(sorted(names)) for names in groups.values() if len(names) > 1))


def dead(flow: Flow, kept: Iterable[int], names: Iterable[str]) -> tuple[str, ...]:
    """Return the parameters that no escaping value depends on, nor any value that is looked at."""
    needed = set(kept)
    alive: set[str] = set()
    for step in reversed(flow.steps):
        if not step.makes or needed.intersection(step.makes):
            needed.update(step.reads)
            alive.update(step.parameters)
    return tuple(sorted(set(names) - alive))


def _with_biases(steps: Sequence[Step]) -> list[Step]:
    """Take a product and the bias added to it for one layer's operation."""
    made = {step.made.value: place for place, step in enumerate(steps) if step.made}
    readers = Counter(value for step in steps for value in step.reads)
    merged = list(steps)
    for place, step in enumerate(steps):
        if step.role != "bias" or step.data is None:
            continue
        before = made.get(step.data.value)
        product = steps[before] if before is not None else None
        if before is None or product is None or readers[step.data.value] != 1:
            continue
        if product.role == "linear" and product.end == step.end:
            merged[before] = replace(product, made=step.made)
            merged[place] = replace(step, role="", reads=(), made=None)
    return merged


def _adjacent(first: Step, second: Step) -> bool:
    if second.role not in LAYERS or second.data is None or first.made is None:
        return False
    if first.made.value != second.data.value or not first.end or not second.end:
        return False
    if first.end == second.end:
        return False
    roles = (first.role, second.role)
    if "conv" in roles:
        return (first.made.shape, first.made.strides) == (second.data.shape, second.data.strides)
    if {"batchnorm", "groupnorm"} & set(roles) and len(second.data.shape) != 2:
        return False  # channels are the second axis there, the last one in a linear layer
    return first.made.same_rows(second.data)


def _scope(module: str, view: str) -> str:
    return module.rpartition(".")[0] if view == "module" else module
