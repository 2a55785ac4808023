"""Remove modules that the forward never calls."""

from __future__ import annotations

from dataclasses import dataclass

from tnc.rewrite import Exact, Pass, Subject, passes


@passes.register("remove-dead")
@dataclass(frozen=True)
class RemoveDead(Pass):
    """Delete child modules all of whose parameters reach no output and that are never called.

    Other inputs may take other ways through the model, so this pass is run only when asked for.
    Modules that are called, and whose result is thrown away, stay.
    """

    contract = Exact(0.0)
    stage = "prepare"

    def apply(self, subject: Subject) -> Subject:
        dead = set(subject.trace.dead)
        called = {path for path, count in subject.trace.calls.items() if count}
        lines: list[str] = []
        for path, module in list(subject.model.named_modules()):
            names = {f"{path}.{name}" for name, _ in module.named_parameters()}
            gone = any(path.startswith(line.removeprefix("removed ") + ".") for line in lines)
            used = any(c == path or c.startswith(path + ".") for c in called)
            if path and names and names <= dead and not used and not gone:
                parent, _, name = path.rpartition(".")
                delattr(subject.model.get_submodule(parent), name)
                lines.append(f"removed {path}")
        return subject.edited(*lines)
