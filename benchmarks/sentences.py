"""MiniLM after distillation on sentences without labels; none that is held out is trained on."""

from __future__ import annotations

import random
from pathlib import Path

import tnc
from benchmarks.outcome import Arguments, Goal, Outcome, table
from tnc.decide.spec import Distill, read_spec
from tnc.inputs import Inputs, load
from tnc.recipe import compare
from tnc.sources import Batch, Loaded
from tnc.sources.data.topics import Topics
from tnc.sources.tokens import sentences, tokenize

GOAL = 0.3
"""At most this times the figure of uniform whitened SVD."""
SETTINGS: dict[str, object] = {"rate": 0.003, "layerwise": 0.2, "freeze": "embeddings.*"}
LONGEST = 30_000


def distilled(arguments: Arguments, shares: tuple[float, ...]) -> Outcome:
    """Compile at every size, distill for `arguments.minutes`, compare with whitened SVD."""
    rows, goals, figures = [], [], {}
    for share in (0.5,) if arguments.quick else shares:
        found = {}
        for name in ("minilm", "svd-llm"):
            resolved = read_spec(name, [f"budget.params={share}"])
            inputs = load(resolved.spec)
            made = tnc.compile(
                inputs.loaded.model, resolved.spec, locations=resolved.locations, **inputs.given
            )
            found[name] = _figure(inputs, made.model)
            if name == "minilm":
                place = arguments.checkpoint
                done = tnc.distill(
                    made.model,
                    inputs.loaded.model,
                    training(inputs, arguments.data),
                    Distill(minutes=arguments.minutes, **SETTINGS),
                    evaluation=inputs.evaluation,
                    checkpoint=place / f"{share:g}" if place else None,
                )
                found["distilled"], found["steps"] = _figure(inputs, done.model), done.steps
        ratio = found["distilled"] / found["svd-llm"]
        rows.append((f"{share:.0%}", *found.values(), ratio))
        goals.append(Goal(f"distilled over uniform whitened SVD at {share:.0%}", ratio, GOAL))
        figures[f"{share:.0%}"] = found | {"ratio": ratio}
        print(rows[-1], flush=True)
    columns = ("size", "minilm", "distilled", "steps", "svd-llm", "distilled / svd-llm")
    return Outcome((table(columns, rows),), tuple(goals), figures)


def training(inputs: Inputs, data: Path | None) -> list[Batch]:
    """Return batches of all topics that are not held out, and of the texts in `DIR/text`."""
    source = inputs.spec.calibration
    assert isinstance(source, Topics)
    every = source.sentences()
    held = set(every[source.samples : source.samples + source.held_out])
    texts = [text for text in every if text not in held]
    for file in sorted((data / "text").glob("*.txt")) if data else ():
        found = [text for text in sentences(file.read_text("utf-8")) if text not in held]
        random.Random(0).shuffle(found)
        texts += found[:LONGEST]
    loaded: Loaded = inputs.loaded
    return tokenize(loaded, texts, source.batch, source.max_length)


def _figure(inputs: Inputs, model) -> float:  # type: ignore[no-untyped-def]
    return next(iter(compare(inputs, model).values()))
