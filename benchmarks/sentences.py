"""MiniLM after distillation on sentences without labels; none that is held out is trained on.

The text is what comes with Python: the topics that are not held out, and docstrings of the standard
library. Rate, batch size and mixture were chosen by short runs on training sentences alone.
"""

from __future__ import annotations

import ast
import json
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import tnc
from benchmarks.outcome import Arguments, Goal, Outcome, table
from tnc.decide.spec import read_spec
from tnc.decide.spec_parts import Distill
from tnc.inputs import Inputs, load
from tnc.recipe import compare
from tnc.sources import Batch, Loaded
from tnc.sources.data.topics import Topics
from tnc.sources.tokens import sentences, tokenize

GOAL = 0.3
"""At most this times the figure of uniform whitened SVD."""
SETTINGS: dict[str, object] = {
    "rate": 0.004,
    "layerwise": 0.0,
    "blocks": 0.0,
    "freeze": "embeddings.*",
    "precision": "bfloat16",
}
BATCH = 16
REPEATS = 3
"""How often an epoch passes over the topics for each pass over the docstrings."""
DOCSTRINGS = 4500
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def distilled(arguments: Arguments, shares: tuple[float, ...]) -> Outcome:
    """Compile at every size, distill for `arguments.minutes`, compare with whitened SVD."""
    rows, goals, figures = [], [], {}
    for share in (0.5,) if arguments.quick else shares:
        found = _remembered(arguments, share)
        ratio = found["distilled"] / found["svd-llm"]
        rows.append((f"{share:.0%}", *found.values(), ratio))
        goals.append(Goal(f"distilled over uniform whitened SVD at {share:.0%}", ratio, GOAL))
        figures[f"{share:.0%}"] = found | {"ratio": ratio}
        print(rows[-1], flush=True)
    columns = ("size", "minilm", "distilled", "steps", "svd-llm", "distilled / svd-llm")
    return Outcome((table(columns, rows),), tuple(goals), figures)


def _remembered(arguments: Arguments, share: float) -> dict[str, float]:
    """Return the figures of a size, from the checkpoint folder if it was finished before."""
    place = arguments.checkpoint
    if place is None:
        return _at(arguments, share, None)
    file = place / f"{share:g}.json"
    if not file.is_file():
        found = _at(arguments, share, place / f"{share:g}")
        file.write_text(json.dumps(found), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def _at(arguments: Arguments, share: float, place: Path | None) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in ("minilm", "svd-llm"):
        resolved = read_spec(name, [f"budget.params={share}"])
        inputs = load(resolved.spec)
        made = tnc.compile(
            inputs.loaded.model, resolved.spec, locations=resolved.locations, **inputs.given
        )
        found[name] = _figure(inputs, made.model)
        if name == "minilm":
            done = tnc.distill(
                made.model,
                inputs.loaded.model,
                training(inputs),
                Distill(minutes=arguments.minutes, **SETTINGS),
                evaluation=inputs.evaluation,
                checkpoint=place,
            )
            found["distilled"], found["steps"] = _figure(inputs, done.model), done.steps
    return found


def training(inputs: Inputs) -> list[Batch]:
    """Return batches of all topics that are not held out, and of docstrings."""
    source = inputs.spec.calibration
    assert isinstance(source, Topics)
    every = source.sentences()
    held = set(every[source.samples : source.samples + source.held_out])
    loaded: Loaded = inputs.loaded
    topics, others = (
        tokenize(loaded, [text for text in texts if text not in held], BATCH, source.max_length)
        for texts in (every, docstrings()[:DOCSTRINGS])
    )
    return REPEATS * topics + others


def docstrings() -> list[str]:
    """Return the sentences of the standard library's docstrings, shuffled."""
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, None] = {}
    for file in sorted(root.rglob("*.py")):
        if not {"site-packages", "test", "tests", "topics.py"} & set(file.parts):
            for text in _docstrings(file):
                found.update(dict.fromkeys(sentences(text)))
    texts = list(found)
    random.Random(0).shuffle(texts)
    return texts


def _docstrings(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):  # samples of wrong code
        return
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            yield text


def _figure(inputs: Inputs, model) -> float:  # type: ignore[no-untyped-def]
    return next(iter(compare(inputs, model).values()))
