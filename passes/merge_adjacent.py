"""Merge linear maps with nothing between them where one or both are structured."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import nn

from tnc.nn import LinearView, StructuredLayer
from tnc.rewrite import Exact, Pass, Subject, passes
from tnc.rewrite.adjoining import apart_in_training
from tnc.rewrite.edit import is_watched, replace_module_
from tnc.rewrite.merging import merge_layers, merged_reparams, plan_merge


@passes.register("merge-adjacent")
@dataclass(frozen=True)
class MergeAdjacent(Pass):
    """`B2 (A2 (B1 (A1 x)))` becomes `M (A1 x)` or `B2 (M x)`, where that costs no more.

    After the plan was carried out: for structured layers and `nn.Linear`, each called once, the
    second the sole reader of the first, nothing between them in training either. One of the two
    keeps the cores on its far side, everything else becomes one core; or the whole product becomes
    one. The cheapest that needs neither more parameters nor more FLOPs is taken; the bias goes
    through. The first layer holds the product, the second becomes an identity.
    """

    contract = Exact(1e-4)

    def apply(self, subject: Subject) -> Subject:
        links = [link for link in subject.trace.links if link.kind == "linear-linear"]
        pairs = [(link.first, link.second) for link in links]
        apart = apart_in_training(subject, pairs)
        lines = []
        for pair in pairs:
            first, second = (subject.model.get_submodule(path) for path in pair)
            if type(first) is nn.Linear and type(second) is nn.Linear:
                continue  # what `merge-linear` is for
            reason = apart.get(pair) or _cannot(subject.model, first, second)
            plan = None if reason else plan_merge(first, second)
            if plan is None:
                reason = reason or "every form of their product costs more"
                lines.append(f"left {pair[0]} and {pair[1]}: {reason}")
                continue
            layer = merge_layers(plan, first, second)
            replace_module_(subject.model, pair[0], layer)
            replace_module_(subject.model, pair[1], nn.Identity())
            lines.append(f"merged {pair[1]} into {pair[0]}: {layer.structure}")
            made = merged_reparams(subject.reparams, pair, layer)
            subject = subject.edited(reparams=made)
        return subject.edited(*lines or ("no structured layer is a neighbour of another",))


def _cannot(model: nn.Module, first: nn.Module, second: nn.Module) -> str:
    """Say why two layers are not to be merged, whatever it would cost."""
    for layer in (first, second):
        if type(layer) is nn.Linear:
            continue
        if not isinstance(layer, StructuredLayer) or not isinstance(layer.view, LinearView):
            return f"a {type(layer).__name__} is one of them"
        if layer.structure.stored:
            return "one has sparse cores"
        if type(layer) is not StructuredLayer:
            return "one shares a product with other layers: merge first"
    if is_watched(first) or is_watched(second):
        return "a hook watches one"
    held = [*first.parameters(), *second.parameters()]
    if len({parameter.requires_grad for parameter in held}) > 1:
        return "one is frozen, in part or as a whole, and the other is not"
    uses = Counter(id(p) for m in model.modules() for p in m._parameters.values())
    if any(uses[id(parameter)] > 1 for parameter in held):
        return "another layer holds one of their parameters too"
    return ""
