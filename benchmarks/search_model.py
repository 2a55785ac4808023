"""MiniLM at half its encoder: feed-forward weights as trains, foldings searched or even.

The plan is that of the recipe `minilm` (the encoder keeps 50 % of its parameters, attention weights
are of low rank), but feed-forward weights are trains or block trains. Both plans choose
among the same families with the same planner, budget and calibration; one may also choose foldings
that a search found, layer by layer, by the error of the fitted weight in the metric of the plan.
Rings are for `--only tensor-ring`: their ALS takes most of an hour over all layers and ranks.
The figure is the mean (1 - cosine) of embeddings of held-out sentences.
"""

from __future__ import annotations

import time
from typing import Any

import tnc
from benchmarks.outcome import Arguments, Goal, Outcome, table
from tnc.decide.spec import read_spec
from tnc.inputs import load
from tnc.recipe import compare

NAME = "search-model"

KEEP = 0.5
FAMILIES = ("tensor-train", "tensor-train{factors=3}")
RINGS = "tensor-ring"
BLOCKS = "block-tensor-train"
MATCH = ["encoder.layer.*.intermediate.dense", "encoder.layer.[0-9].output.dense"]
EVALUATIONS = 24


def run(arguments: Arguments) -> Outcome:
    """Compile twice and compare; `--quick` takes 6 foldings a family and 64 sentences."""
    families = [*FAMILIES, BLOCKS, *([RINGS] if arguments.only == RINGS else [])]
    count = 6 if arguments.quick else EVALUATIONS
    sought = {"search": {"families": families, "evaluations": count, "keep": KEEP}}
    structures = {"even": families, "searched": [sought]}
    rows: list[tuple[object, ...]] = []
    figures: dict[str, dict[str, Any]] = {}
    for name, structure in structures.items():
        figures[name] = found = _compiled(structure, arguments.quick)
        print(name, found["error"], f"{found['seconds']:.0f} s", flush=True)
        rows.append((name, found["error"], found["params"], found["seconds"]))
    ratio = figures["searched"]["error"] / figures["even"]["error"]
    goals = (Goal("embedding error, searched over even foldings", ratio, 0.999999),)
    heads = ("foldings", "1 - cosine", "parameters", "seconds")
    return Outcome((table(heads, rows),), goals, figures)


def _compiled(structure: list[object], quick: bool) -> dict[str, Any]:
    samples = 64 if quick else 512
    sizes = [f"calibration.samples={samples}", f"calibration.held_out={samples}"]
    recipe = read_spec("minilm", sizes).spec
    plain = recipe.model_dump(exclude_none=True, exclude_defaults=True)
    rules = [{"match": MATCH, "op": "linear", "structure": structure}, *plain["rules"]]
    spec = type(recipe).model_validate(plain | {"rules": rules})
    begun = time.process_time()
    inputs = load(spec)
    made = tnc.compile(inputs.loaded.model, spec, **inputs.given)
    return {
        "error": next(iter(compare(inputs, made.model).values())),
        "params": sum(entry.params for entry in made.plan.entries),
        "seconds": time.process_time() - begun,
        "chosen": {entry.site: entry.family for entry in made.plan.entries},
        "notes": list(made.plan.notes),
    }
