"""Run one benchmark: python -m benchmarks NAME [--data DIR] [--quick] [--json FILE]."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.outcome import Arguments, Outcome


def found() -> dict[str, tuple[str, str]]:
    """Walk this folder for modules with a NAME: name to (module, first line of its docstring).

    The files are read, not imported, so that listing needs none of what they need.
    """
    names: dict[str, tuple[str, str]] = {}
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if (name := _name(tree)) is None:
            continue
        if name in names:
            raise SystemExit(f"two benchmarks are named {name}: {names[name][0]} and {path}")
        parts = path.relative_to(root).with_suffix("").parts
        first = (ast.get_docstring(tree) or "").split("\n")[0]
        names[name] = (".".join(("benchmarks", *parts)), first)
    return names


def _name(tree: ast.Module) -> str | None:
    for node in tree.body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Constant)
            and any(isinstance(t, ast.Name) and t.id == "NAME" for t in node.targets)
        ):
            return str(node.value.value)
    return None


def main(words: list[str] | None = None) -> int:
    """List the benchmarks, or run one; 0 when all goals are met, 1 when one is short."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="?", help="which benchmark; none lists them")
    parser.add_argument("--data", type=Path, help="folder with models and data sets")
    parser.add_argument("--quick", action="store_true", help="fewer cases and repeats")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--minutes", type=float, help="distill for so long, where it is offered")
    parser.add_argument("--checkpoint", type=Path, help="folder to resume from")
    parser.add_argument("--only", help="words that a cell's name must have: '768x3072 tt,btt b=1'")
    parser.add_argument("--threads", type=int, default=1, help="threads, where it is offered")
    parser.add_argument("--tune", default="model", help="how kernels are chosen: model or measure")
    parser.add_argument("--compiled", action="store_true", help="let torch.compile take part")
    parser.add_argument("--device", default="cpu", help="cpu or cuda, where it is offered")
    parser.add_argument("--dtype", help="with --device cuda: float32,tf32,bfloat16,float16")
    options = parser.parse_args(words)
    names = found()
    if options.name is None:
        for name, (_, first) in names.items():
            print(f"{name:16} {first}")
        return 0
    if options.name not in names:
        parser.error(f"no benchmark {options.name!r}; there are {', '.join(names)}")
    module = importlib.import_module(names[options.name][0])
    if (options.device != "cpu" or options.dtype) and not getattr(module, "DEVICES", ()):
        parser.error(f"{options.name} is of the CPU and chooses its dtypes itself")
    if words is None:
        _restart_under(getattr(module, "ENVIRONMENT", {}))
    given = {key: value for key, value in vars(options).items() if key not in ("name", "json")}
    outcome: Outcome = module.run(Arguments(**given))
    if options.json is not None:
        _write(options.json, options.name, options.quick, outcome)
    return _report(options.name, outcome)


def _restart_under(environment: Mapping[str, str]) -> None:
    """Start this program anew where it lacks variables that are read at the start of a process."""
    if any(os.environ.get(name) != value for name, value in environment.items()):
        command = [sys.executable, "-m", "benchmarks", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **environment})


def _report(name: str, outcome: Outcome) -> int:
    for printed in outcome.tables:
        print(printed, end="\n\n")
    for goal in outcome.goals:
        print(goal.line(name))
    return 0 if all(goal.met for goal in outcome.goals) else 1


def _write(path: Path, name: str, quick: bool, outcome: Outcome) -> None:
    goals = [
        {"figure": g.figure, "value": g.value, "sense": g.sense, "goal": g.goal, "met": g.met}
        for g in outcome.goals
    ]
    document = {
        "benchmark": name,
        "quick": quick,
        "machine": describe(),
        "goals": goals,
        "figures": dict(outcome.figures),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
