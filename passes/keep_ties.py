"""Keep parameters that were one tensor one tensor."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from tnc.errors import PassError
from tnc.rewrite import Exact, InParts, Pass, Subject, passes
from tnc.rewrite.edit import owner_of


@passes.register("keep-ties")
@dataclass(frozen=True)
class KeepTies(Pass):
    """Check every tie of the original model and mend what a pass cut.

    Names that no longer exist were rewritten as a whole and share their cores; names that remain
    must be one parameter. Raises PassError where their values have gone apart.
    """

    contract = Exact(1e-6)
    in_parts = InParts(carried=True)

    def apply(self, subject: Subject) -> Subject:
        lines = []
        now = dict(subject.model.named_parameters(remove_duplicate=False))
        for group in subject.ties:
            left = [name for name in group if name in now]
            if left and len(left) < len(group):
                raise PassError(
                    f"only some of the tied parameters {', '.join(group)} were rewritten",
                    hint="rewrite all of them or none: they are one tensor",
                )
            for name in left[1:]:
                if now[name] is not now[left[0]]:
                    _tie_(subject.model, left[0], name)
                    lines.append(f"tied {name} to {left[0]} again")
        return subject.edited(*lines or (f"{len(subject.ties)} ties hold",))


def _tie_(model: nn.Module, first: str, name: str) -> None:
    source, source_name = owner_of(model, first)
    target, target_name = owner_of(model, name)
    one, other = source._parameters[source_name], target._parameters[target_name]
    assert one is not None and other is not None
    if not one.equal(other):
        raise PassError(f"{first} and {name} were tied and no longer hold the same values")
    target._parameters[target_name] = one
