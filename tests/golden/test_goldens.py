"""Texts that a refactor may not change: lowered programs, and a plan.

After a wanted change: `python tests/golden/test_goldens.py` writes them again; review the diff.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1]))

import tnc  # noqa: E402
from tests.laws.data import LINEAR, structures  # noqa: E402
from tests.zoo import BY_NAME  # noqa: E402
from tnc.derive import forward  # noqa: E402
from tnc.kernels.einsums import lower  # noqa: E402


def programs() -> str:
    """Write the program of every structure on the first linear weight."""
    lines = []
    for name, family, signature in structures():
        if signature != LINEAR[0]:
            continue
        template = family.template(signature)
        ranks = template.within(signature.parameters // 2) or template.scaled(0.0)
        lines.append(name)
        for term in template.at(ranks).terms:
            contraction = forward(term, 64)
            program = lower(contraction)
            lines.append(f"  {term}\n  {contraction.order.flops} FLOPs")
            for step in program.instructions:
                shown = step.spec or f"{step.width} legs by {step.shape} -> {step.split}"
                lines.append(f"  {step.left} {step.right} {step.form} {shown}")
            lines.append(f"  final {program.final}")
    return "\n".join(lines) + "\n"


def plan() -> str:
    """Write the plan of the small BERT of the zoo, knapsack over two families."""
    case = BY_NAME["bert"]
    spec = tnc.Spec(
        version=1,
        budget={"scope": "encoder.*", "params": 0.7},
        metric="none",
        allocate="surrogate",
        round_to=2,
        rules=[
            {
                "match": "encoder.*",
                "op": "linear",
                "structure": ["low-rank", "block-tensor-train"],
            }
        ],
    )
    made = tnc.plan(case.build(), spec, example=case.inputs())
    lines = [f"{entry.site}: {entry.structure or 'dense'}" for entry in made.entries]
    lines += [f"{skip.site}: {skip.reason}" for skip in made.skips]
    return "\n".join([*lines, str(made.scope)]) + "\n"


GOLDENS = {"programs.txt": programs, "plan.txt": plan}


def test_programs_are_as_recorded() -> None:
    assert programs() == (HERE / "programs.txt").read_text()


def test_the_plan_is_as_recorded() -> None:
    assert plan() == (HERE / "plan.txt").read_text()


if __name__ == "__main__":
    for name, write in GOLDENS.items():
        (HERE / name).write_text(write())
