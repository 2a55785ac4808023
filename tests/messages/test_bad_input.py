"""Bad input: each row is a mistake, the command that meets it, its exit code, what must be told.

A row's words are fragments of what is printed: what is wrong, where, what to do. For every row:
no traceback, no internal error, nothing left behind, old files untouched.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import tnc
from tests.messages import wrong
from tnc.cli import main
from tnc.errors import TncError
from tnc.net import digest

WRONG = "tests.messages.wrong"
KEEP = "structure: low-rank, keep: 0.5"
RANDOM = "calibration: {kind: random, shapes: [[16]], samples: 16, held_out: 8, batch: 8}\n"
HALF = "budget: {params: 0.6}\n"
PLAN = ("plan", "{spec}")
COMPILE = ("compile", "{spec}", "--out", "{folder}/out")
STREAM = (*PLAN, "--stream")
Prepare = Callable[[Path], object]


def text(rule: str = KEEP, more: str = "", model: str = "good") -> str:
    """A spec whose rule is in line 4, what follows from line 5 on."""
    source = f"{{kind: callable, function: '{WRONG}:{model}'}}"
    return f"version: 1\nmodel: {source}\nrules:\n  - {{match: '*', {rule}}}\n{more}"


def of_source(source: str) -> str:
    return f"version: 1\nmodel: {{{source}}}\nrules:\n  - {{match: '*', {KEEP}}}\n"


def data(function: str) -> str:
    return f"calibration: {{kind: callable, function: '{WRONG}:{function}'}}\n"


@dataclass(frozen=True)
class Row:
    """A mistake; `told` are the fragments, in which {folder} and {spec} are filled in."""

    spec: str
    code: int
    told: tuple[str, ...]
    words: tuple[str, ...] = PLAN
    prepare: Prepare = lambda folder: None


def two(spec: str, *told: str, words: tuple[str, ...] = PLAN, prepare: Prepare = id) -> Row:
    """A row of exit code 2."""
    return Row(spec, 2, told, words, prepare)


AT = "{spec}:5:"
SPECS = {
    "a value of another type": two(text(more="seed: one\n"), AT + "7: seed: expected a whole"),
    "a key twice": two(
        text(more="seed: 1\nseed: 2\n"), "{spec}:6:1: not YAML: found duplicate key"
    ),
    "a tab": two("version: 1\nrules:\n\t- a\n", "{spec}:3:1: not YAML: found character '\\t'"),
    "an empty file": two("", "{spec}:1:1: a spec is a map", "try: start with 'version: 1'"),
    "a list": two("- 1\n", "{spec}:1:1: a spec is a map of keys, got a list"),
    "a binary file": two(
        "\x00\x01", "not YAML: unacceptable character", "at: {spec}", "try: a spec"
    ),
    "a bracket left open": two("version: 1\nrules: [\n", "{spec}:3:1: not YAML"),
    "no such file": two(
        "", "no spec file and no recipe", "recipes: minilm", words=("plan", "no.yaml")
    ),
    "a folder": two("", "is a folder, not a spec file", "inspect", words=("plan", "{folder}")),
    "an unknown key": two(
        text(more="sed: 1\n"), AT + "1: sed: unknown key", "did you mean 'seed'?"
    ),
    "an unknown structure": two(
        text("structure: tuker, keep: 0.5"),
        "{spec}:4:29: rules.0.structure",
        "did you mean 'tucker'?",
    ),
    "an unknown fit": two(
        text(KEEP + ", fit: svdd"), "no fit is named", "at: s.yaml:4", "mean 'svd'"
    ),
    "an unknown pass": two(text(more="passes: [factorise]\n"), AT + "10: passes.0", "'factorize'?"),
    "an unknown allocator": two(
        text(more="allocate: greedy\n"), AT + "11: allocate", "there are: "
    ),
    "an unknown schedule": two(
        text(more="train: dlrtt\n"), AT + "8: train", "did you mean 'dlrt'?"
    ),
    "an unknown evaluation": two(text(more="evaluation: accuracy\n"), AT + "13: evaluation: no"),
    "an option out of range": two(
        text("structure: 'tucker{factors=0}', keep: 0.5"),
        "{spec}:4:29: rules.0.structure: tucker: factors is 0; use 1 or more",
    ),
    "nothing kept": two(
        text("structure: low-rank, keep: 0"), "{spec}:4:45: rules.0.keep: expected gr"
    ),
    "NaN kept": two(
        text("structure: low-rank, keep: .nan"), "{spec}:4:45: rules.0.keep", "got nan"
    ),
    "a budget of NaN": two(
        text(more="budget: {params: .nan}\n"), AT + "18: budget.params", "got nan"
    ),
    "an infinite budget": two(
        text(more="budget: {params: .inf}\n"), AT + "18: budget.params", "inf"
    ),
    "a negative budget": two(
        text(more="budget: {params: -5}\n"), AT + "18: budget.params", "got -5"
    ),
    "a budget too small": Row(
        text("structure: low-rank", "budget: {params: 20}\n"),
        3,
        ("no plan meets the budget: params 20", "at: budget, scope '*'", "try: raise the budget"),
    ),
    "a scope that matches nothing": two(
        text("structure: low-rank", "budget: {params: 0.5, scope: 'encoder.*'}\n"),
        "no parameter lies in the budget's scope 'encoder.*'",
        "at: budget.scope",
        "try: scopes are",
    ),
    "a rule that matches nothing": two(
        text(KEEP + ", op: conv"),
        "rule '*' with op conv matches no site",
        "at: s.yaml:4",
        "sites are",
    ),
    "a rule in the shadow of another": two(
        text().replace("\n  - {match", "\n  - {match: '*', structure: dense}\n  - {match"),
        "rule '*' matches 2 sites, all taken by earlier rules",
        "at: s.yaml:5",
        "try: the first",
    ),
    "a sum of unknown terms": two(
        text("structure: low-rank + spares, keep: 0.5"), "{spec}:4:29: ", "did you mean 'sparse'?"
    ),
    "a sum that ends early": two(
        text("structure: 'low-rank + ', keep: 0.5"),
        "{spec}:4:29: ",
        "expected a name at character 12",
    ),
    "a stack of one": two(
        text("structure: tucker, keep: 0.5, joint: 1"),
        "{spec}:4:55: rules.0.joint: expected a number of layers, 2 or more, or 'all', got 1",
    ),
    "ranks for several structures": two(
        text("structure: [low-rank, tucker], ranks: {r: 4}"),
        "{spec}:4:56: rules.0.ranks: ranks need",
    ),
    "a rank of none": two(
        text("structure: low-rank, ranks: {r: 0}"), "{spec}:4:50: rules.0.ranks.r"
    ),
    "an unknown rank": two(
        text("structure: low-rank, ranks: {q: 4}"), "no rank q, r is missing", "try: ranks are r"
    ),
    "a spec that extends itself": two(
        text(more="extends: s.yaml\n"),
        "in a circle: s.yaml -> s.yaml",
        "at: extends of",
        "try: leave",
    ),
    "a spec that extends nothing": two(
        text(more="extends: base.yaml\n"), AT + "10: extends: no file"
    ),
    "version 2": two(
        text().replace("version: 1", "version: 2"), "{spec}:1:10: version: expected 1"
    ),
    "--set of an unknown key": two(
        text(),
        "<--set>:1:1: sed: unknown key",
        "did you mean 'seed'?",
        words=(*PLAN, "--set", "sed=1"),
    ),
    "--set without a value": two(
        text(), "'seed' is no assignment", "at: --set", "try: write", words=(*PLAN, "--set", "seed")
    ),
    "--set of an item that is not there": two(
        text(), "'7' is no index", "at: --set rules.7", words=(*PLAN, "--set", "rules.7.keep=0.5")
    ),
    "a distillation without end": two(
        text(more="distill: {rate: 0.1}\n"),
        AT + "10: distill: a distillation needs minutes or steps",
    ),
    "a distillation on nothing": two(
        text(more="distill: {steps: 2}\n"),
        "no data to distill on",
        "at: distill",
        "try: add `data`",
        words=COMPILE,
    ),
    "a quality gate on nothing": two(
        text(more="quality: {max_error: 0.5}\n"),
        "the quality gate needs held-out data",
        "at: s.yaml:5",
        "try: add calibration data",
        words=COMPILE,
    ),
    "an unknown command": two(
        "", "No such command 'complie'", "mean 'compile'", words=("complie",)
    ),
    "an unknown option": two(
        "", "No such option: --frob", "try: tnc", words=("plan", "a", "--frob")
    ),
}


def hf(**settings: Any) -> Prepare:
    """A folder of transformers with settings, and a file with one tensor that is not asked for."""

    def write(folder: Path) -> None:
        logging = pytest.importorskip("transformers").utils.logging
        logging.set_verbosity_error()
        (folder / "hf").mkdir()
        if settings:
            (folder / "hf" / "config.json").write_text(json.dumps(settings))
            save_file({"x": torch.ones(2)}, folder / "hf" / "model.safetensors")

    return write


def stored(change: Callable[[dict[str, Any]], object]) -> Prepare:
    """A checkpoint of the small model, changed."""

    def write(folder: Path) -> None:
        state = wrong.small().state_dict()
        change(state)
        save_file(state, folder / "w.safetensors")

    return write


BERT = {
    "model_type": "bert",
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 16,
    "vocab_size": 20,
    "max_position_embeddings": 8,
}
HF = of_source("kind: hf, path: '{folder}/hf'")
STORED = of_source(
    f"kind: safetensors, function: '{WRONG}:good', state: '{{folder}}/w.safetensors'"
)
NOT_RUN = "the model fails on an input: "
NO_WEIGHT = ("the model has no weight that could be rewritten", "at: s.yaml:4")
NOT_FINITE = (
    "2.weight holds 1 of 120 entries that are NaN or infinite",
    "at: s.yaml:4",
    "try: mend",
)
MODELS = {
    "a forward that raises": two(
        text(model="raising"), NOT_RUN, "on fire", "at: Raising", "try: call"
    ),
    "an answer without tensors": two(
        text(model="telling"),
        "the model returned str, which holds no tensor",
        "at: Ans",
        "try: the o",
    ),
    "no answer": two(text(model="nothing"), "the model returned NoneType, which holds no tensor"),
    "a weight with NaN": two(text(model="nan_weight"), *NOT_FINITE),
    "an infinite weight": two(text(model="infinite_weight"), *NOT_FINITE),
    "weights on meta": two(text(model="on_meta"), NOT_RUN, "meta", "at: module '0'"),
    "weights that are not there yet": two(
        text(model="lazy"), "not initialised yet", "run the model"
    ),
    "whole numbers as weights": two(text(model="integers"), *NO_WEIGHT, "weight: its dtype int64"),
    "parametrized weights": two(
        text(model="parametrized"), *NO_WEIGHT, "remove the parametrization"
    ),
    "a tensor subclass": two(
        text(model="subclassed"), "the model cannot be copied", "try: copy.deep"
    ),
    "a model without weights": two(text(model="weightless"), *NO_WEIGHT, "try: weights are param"),
    "an input of another shape": two(text(model="wrong_shape"), NOT_RUN, "4x15 and 16x12", "'0'"),
    "an input of another dtype": two(text(model="wrong_type"), NOT_RUN, "Long and Float", "'0'"),
    "text as an input": two(text(model="text_input"), NOT_RUN, "at: Sequential"),
    "a class as a model": two(
        text(model="module_class"), "returned type, not a model", "try: return"
    ),
    "a function that raises": two(
        text(model="complaining"), "ValueError: no way", "wrong.py:", "mend"
    ),
    "a number as a function": two(
        text(model="not_callable"), "is no function but int", "at: ", "try:"
    ),
    "a function that is not there": two(
        text(model="godo"), "has no 'godo'", "did you mean 'good'?"
    ),
    "a module that is not there": two(
        of_source("kind: callable, function: 'nowhere.at:all'"),
        "cannot import 'nowhere'",
        "try: inst",
    ),
    "no colon": two(of_source("kind: callable, function: good"), "names no function", "try: write"),
    "no such folder": two(HF, "no file or folder", "try: paths in a spec"),
    "a folder without config.json": two(
        HF, "cannot load the model", "at: {folder}/hf", "try: the folder needs", prepare=hf()
    ),
    "a checkpoint of other names": two(
        HF,
        "the checkpoint has no 'embeddings.LayerNorm.bias' and 22 more",
        "at: {folder}/hf",
        "try: name the class in `auto`",
        prepare=hf(**BERT),
    ),
    "a weight of another shape": two(
        STORED,
        "'0.weight' has shape (3, 16) in the file and (12, 16) in the model",
        "at: {folder}/w",
        "try: name",
        prepare=stored(lambda s: s.update({"0.weight": torch.ones(3, 16)})),
    ),
    "a weight that is missing": two(
        STORED,
        "no '2.bias' in the file",
        "at: {folder}/w",
        "try:",
        prepare=stored(lambda s: s.pop("2.bias")),
    ),
    "a checkpoint of whole numbers": two(
        STORED,
        "holds torch.int64 in the file",
        "at: {folder}/w",
        "try: whole",
        prepare=stored(lambda s: s.update({"0.bias": torch.ones(12, dtype=torch.int64)})),
    ),
    "a checkpoint that is none": two(
        STORED,
        "cannot read the weights",
        "at: {folder}/w",
        "try: ",
        prepare=lambda folder: (folder / "w.safetensors").write_bytes(b"garbage!"),
    ),
    "streamed: a weight of another shape": two(
        STORED,
        "0.weight has shape (3, 16) in the checkpoint",
        "at: {folder}/w",
        "try: config.json",
        words=STREAM,
        prepare=stored(lambda s: s.update({"0.weight": torch.ones(3, 16)})),
    ),
    "streamed: a weight that is missing": two(
        STORED,
        "the checkpoint has no '2.bias'",
        "try: ",
        words=STREAM,
        prepare=stored(lambda s: s.pop("2.bias")),
    ),
    "streamed: a weight with NaN": two(
        STORED,
        "0.weight holds 192 of 192 entries that are NaN",
        "at: s.yaml:4",
        words=STREAM,
        prepare=stored(lambda s: s["0.weight"].fill_(float("nan"))),
    ),
    "streamed: a checkpoint that is none": two(
        STORED,
        "cannot be read",
        "at: {folder}/w",
        "try: copy",
        words=STREAM,
        prepare=lambda folder: (folder / "w.safetensors").write_bytes(b"garbage!"),
    ),
    "streamed: a model that makes its weights": two(
        text(), "cannot be streamed", "at: model", "try: stream models of kind", words=STREAM
    ),
}


def npz(**arrays: Any) -> Prepare:
    return lambda folder: np.savez(folder / "a.npz", **arrays)


NPZ = text(more="calibration: {kind: npz, file: '{folder}/a.npz', samples: 2, held_out: 2}\n")
SEARCHED = "structure: low-rank"
DATA = {
    "no such file of data": two(NPZ, "no file or folder", "try: paths in a spec"),
    "no such array": two(NPZ, "cannot read 'x'", "at: {folder}/a.npz", "'key'", prepare=npz(y=[1])),
    "text as images": two(
        NPZ, "'x' is <U1 of shape (4,), no images", "at: {folder}/a", prepare=npz(x=list("abcd"))
    ),
    "fewer images than asked for": two(
        NPZ,
        "2 + 2 samples are asked for, there are 1",
        "try: lower",
        prepare=npz(x=np.ones((1, 1, 4, 4))),
    ),
    "no batch": two(text(SEARCHED, HALF + data("no_batches")), "no batches for cal", "try: return"),
    "a batch of nothing": two(
        text(SEARCHED, HALF + data("empty_batches")), "hold no sample", "try:"
    ),
    "a batch with NaN": two(
        text(SEARCHED, HALF + data("nan_batches")),
        "the inputs are not finite",
        "at: site 0.weight",
        "try: look for NaN",
    ),
    "a batch of another dtype": two(text(SEARCHED, HALF + data("long_batches")), NOT_RUN, "Long"),
    "text as a batch": two(text(SEARCHED, HALF + data("text_batches")), NOT_RUN, "not str"),
    "a number as batches": two(
        text(SEARCHED, HALF + data("number_of_batches")), "not iterable", "at:"
    ),
    "no samples": two(text(more=RANDOM.replace("16,", "0,")), AT + "14: calibration: samples is 0"),
    "a figure of NaN": Row(
        text(KEEP + ", metric: none", RANDOM, "nan_answer"),
        4,
        ("relative squared error on held-out data is NaN",),
        COMPILE,
    ),
}


def made(folder: Path) -> None:
    """An artifact in `made` and its plan in `plan.json`."""
    (folder / "good.yaml").write_text(text())
    assert main(["compile", str(folder / "good.yaml"), "--out", str(folder / "made")]) == 0
    (folder / "plan.json").write_text((folder / "made" / "plan.json").read_text())


def shard(change: Callable[[Path], object]) -> Prepare:
    def damage(folder: Path) -> None:
        made(folder)
        change(next((folder / "made").glob("tnc-*.safetensors")))

    return damage


def flipped(file: Path) -> None:
    held = bytearray(file.read_bytes())
    held[-1] ^= 1
    file.write_bytes(bytes(held))


def manifest(**fields: Any) -> Prepare:
    """An artifact whose manifest has other fields, and a digest that fits."""

    def edit(folder: Path) -> None:
        made(folder)
        file = folder / "made" / "tnc.json"
        held = json.loads(file.read_text()) | fields
        held.pop("digest")
        file.write_text(json.dumps(held | {"digest": digest(held)}))

    return edit


def planned(change: Callable[[Any], object]) -> Prepare:
    """A plan that a person edited, its digest removed."""

    def edit(folder: Path) -> None:
        made(folder)
        file = folder / "plan.json"
        held = json.loads(file.read_text())
        change(held)
        file.write_text(json.dumps(held | {"digest": ""}))

    return edit


def entry(**fields: Any) -> Prepare:
    return planned(lambda plan: plan["entries"][0].update(fields))


def full_out(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "thesis.tex").write_text("years of work")


VERIFY = ("verify", "{folder}/made")
REPORT = ("report", "{folder}/plan.json", "--out", "{folder}/r.html")
GIVEN = (*COMPILE, "--plan", "{folder}/plan.json")
DENSE = ("export", "{folder}/made", "--to", "dense", "--out")
ARTIFACTS = {
    "a shard cut off": two(
        "",
        "changed since it was saved",
        "at: {folder}/made",
        "try: copy",
        words=VERIFY,
        prepare=shard(lambda file: file.write_bytes(file.read_bytes()[:-40])),
    ),
    "a flipped bit": two(
        "", "changed since", "at: {folder}/made", words=VERIFY, prepare=shard(flipped)
    ),
    "a flipped bit, exported": two(
        "", "changed since", "try: copy", words=(*DENSE, "{folder}/d"), prepare=shard(flipped)
    ),
    "a shard that is gone": two(
        "", ": missing", "try: copy", words=VERIFY, prepare=shard(Path.unlink)
    ),
    "a newer manifest": two(
        "",
        "has format 2, this tnc reads 1",
        "at: {folder}/made/tnc.json",
        "try: compile again",
        words=VERIFY,
        prepare=manifest(format=2),
    ),
    "a manifest that is no JSON": two(
        "",
        "the manifest cannot be read",
        "at: {folder}/made/tnc.json",
        "try: copy",
        words=VERIFY,
        prepare=lambda folder: (made(folder), (folder / "made" / "tnc.json").write_text("{")),
    ),
    "a manifest with another field": two(
        "",
        "other entries than this tnc writes",
        "'colour'",
        "at: ",
        "try: copy",
        words=VERIFY,
        prepare=manifest(colour="red"),
    ),
    "a manifest with a wrong field": two(
        "",
        "other entries than this tnc writes",
        "at: ",
        "try:",
        words=VERIFY,
        prepare=manifest(tied=3),
    ),
    "a manifest with a wrong module": two(
        "",
        "does not describe module '0' rightly",
        "try:",
        words=VERIFY,
        prepare=manifest(modules=[{"path": "0", "kind": "structured"}]),
    ),
    "a manifest of an unknown source": two(
        "",
        "no model source is named 'nope'",
        "at: source of {folder}/made",
        "there are",
        "try:",
        words=VERIFY,
        prepare=manifest(source={"kind": "nope"}),
    ),
    "a file as an artifact": two(
        "", "is no artifact", "try: `tnc compile", words=("verify", "{spec}")
    ),
    "a plan of another model": two(
        text(model="wider"),
        "was made for another model",
        "try: make a new plan",
        words=GIVEN,
        prepare=made,
    ),
    "a plan whose ranks do not fit": two(
        text(),
        "the weight has shape (12, 16), the structure is (10, 12)",
        "at: structure",
        "try:",
        words=GIVEN,
        prepare=planned(lambda p: p["entries"][0].update(structure=p["entries"][1]["structure"])),
    ),
    "a plan of no structure": two(
        text(),
        "not a plan: ",
        "form of a structure",
        "at: {folder}/plan.json",
        "try:",
        words=GIVEN,
        prepare=entry(structure={"a": 1}),
    ),
    "a plan of an unknown fit": two(
        text(),
        "no fit is named 'svdd'",
        "did you mean 'svd'",
        words=GIVEN,
        prepare=entry(fit="svdd"),
    ),
    "a plan of an unknown pass": two(
        text(),
        "no pass is named 'nope'",
        "there are: ",
        words=GIVEN,
        prepare=planned(lambda plan: plan.update(passes=["nope"])),
    ),
    "a plan with a site twice": two(
        text(),
        "it decides about '0.weight' more than once",
        "at: {folder}/plan.json",
        words=GIVEN,
        prepare=planned(lambda plan: plan["entries"].append(plan["entries"][0])),
    ),
    "a plan without a fingerprint": two(
        "",
        "fingerprint is missing",
        "at: {folder}/plan.json",
        "try:",
        words=("plan", "{folder}/plan.json"),
        prepare=planned(lambda plan: plan.pop("fingerprint")),
    ),
    "a plan of a later version": two(
        "",
        "plan version 9 is not 1",
        "at: {folder}/plan",
        "try: make",
        words=REPORT,
        prepare=planned(lambda plan: plan.update(version=9)),
    ),
    "a report of a plan with a word for a number": two(
        "",
        "entries.0.params is 'many', expected a whole number",
        "at: {folder}/plan.json",
        "try:",
        words=REPORT,
        prepare=entry(params="many"),
    ),
    "a report of a plan with a word for an error": two(
        "",
        "entries.0.relative is 'small', expected a number",
        words=REPORT,
        prepare=entry(relative="small"),
    ),
    "a report of a plan without totals": two(
        "",
        "total.params is None",
        words=REPORT,
        prepare=planned(lambda plan: plan["total"].update(params=None)),
    ),
    "a report of a spec": two(text(), "not JSON", "at: {spec}", "try:", words=("report", "{spec}")),
    "a report of nothing": two("", "is not there", "try: name", words=("report", "{folder}/none")),
    "a report into a folder": two(
        "",
        "it is a folder",
        "try: name",
        words=("report", "{folder}/made", "--out", "{folder}"),
        prepare=made,
    ),
    "a plan that is not there": two(
        text(), "cannot read the plan: No such file", "at: {folder}/plan.json", "try:", words=GIVEN
    ),
    "a file in the artifact's place": two(
        text(),
        "{folder}/out is there already and is no artifact",
        "try: choose another",
        words=COMPILE,
        prepare=lambda folder: (folder / "out").write_text("x"),
    ),
    "a folder that is no artifact, with force": two(
        text(),
        "{folder}/out is there already and is no artifact",
        "try: choose",
        words=(*COMPILE, "--force"),
        prepare=full_out,
    ),
    "a place below a file": two(
        text(),
        "cannot write {spec}/out: {spec} is no folder",
        "try: choose another place",
        words=("compile", "{spec}", "--out", "{spec}/out"),
    ),
    "a folder as a plan": two(
        text(), "it is a folder", "try: name", words=(*PLAN, "--out", "{folder}")
    ),
    "an export into a folder": two(
        "",
        "cannot write {folder}: it is no file",
        "try: name a file",
        words=(*DENSE, "{folder}"),
        prepare=made,
    ),
    "an unknown form of export": two(
        "", "'zip' is not one of", "try:", words=("export", "a", "--to", "zip", "--out", "b")
    ),
    "a site that is not there": two(
        text(), "the plan has no site 'gone'", "try: `tnc plan`", words=(*PLAN, "--explain", "gone")
    ),
}
SEARCH = ("search", "run", "{spec}", "--out", "{folder}/run")
ENDS = "  limits: {evaluations: 5}\n"
RING = "search:\n  target: {ring: [3, 3, 3], ranks: [2, 2, 2]}\n" + ENDS
FILE = "search:\n  target: {file: '{folder}/a.npz'}\n" + ENDS


def search(spec: str, *told: str, words: tuple[str, ...] = SEARCH, prepare: Prepare = id) -> Row:
    return two(spec, *told, words=words, prepare=prepare)


def no_ray(folder: Path) -> None:
    if importlib.util.find_spec("ray"):
        pytest.skip("ray is installed")


SEARCHES = {
    "a search by an unknown strategy": search(
        RING + "  strategy: {tnala: {radius: 2}}\n",
        "{spec}:4:14: search.strategy.tnala: no strategy is named 'tnala'; did you mean 'tnale'?",
    ),
    "a search by a strategy with an unknown option": search(
        RING + "  strategy: {tnale: {radiuss: 2}}\n",
        "{spec}:4:22: search.strategy.tnale.radiuss: unknown key",
        "did you mean 'radius'?",
    ),
    "a search with a word for a number": search(
        RING + "  strategy: tnale{radius=wide}\n",
        "{spec}:4:13: search.strategy.radius: expected a whole number, got 'wide'",
    ),
    "a search without a target": search(
        "search:\n" + ENDS, "{spec}:1:1: search.target: missing key 'target'"
    ),
    "a search for two targets": search(
        RING.replace("ring:", "file: a, ring:"),
        "{spec}:2:11: search.target: a target is file and ring at once",
    ),
    "a search for something else": search(
        RING.replace("ring:", "wring:"), "search.target: a target needs one of the keys file, ring"
    ),
    "a ring that is no ring": search(
        RING.replace("[2, 2, 2]", "[2, 2]"), "search.target: a ring of 3 modes with 2 ranks; give"
    ),
    "a search without end": search(
        RING.replace("evaluations: 5", "target: 0.1"),
        "{spec}:3:11: search.limits: a search needs an end: give evaluations, seconds or patience",
    ),
    "a search of no evaluations": search(
        RING.replace("5}", "0}"), "{spec}:3:25: search.limits.evaluations: expected greater"
    ),
    "a search with an unknown key": search(
        RING + "  objektive: size-and-error\n", "{spec}:4:3: search.objektive: unknown key"
    ),
    "an objective without its option": search(
        RING + "  objective: error-at-size\n", "search.objective.most: missing key 'most'"
    ),
    "a graph that is none": search(
        RING + "  space: {bonds: rnig}\n",
        "{spec}:4:18: search.space.bonds: no graph is named 'rnig'; did you mean 'ring'?",
    ),
    "bonds between three": search(
        RING + "  space: {bonds: [[0, 1, 2]]}\n", "expected pairs such as [[0, 1], [1, 2]], got"
    ),
    "bonds that leave a mode out": search(
        RING + "  space: {bonds: [[0, 1]]}\n",
        "{spec}:4:10: search.space: the pairs ((0, 1),) are no graph on 3 modes; every mode in",
    ),
    "a space without room": search(
        RING + "  space: {params: 5}\n", "{spec}:4:10: search.space: the space is empty", "allow 9"
    ),
    "an engine without workers": search(
        RING + "  engine: {processes: {workers: 0}}\n",
        "{spec}:4:11: search.engine: processes: workers is 0; use 1 or more",
    ),
    "an engine that is not installed": search(
        RING + "  engine: ray\n", "the engine 'ray' needs ray", "pip install", prepare=no_ray
    ),
    "a tensor that is not there": search(FILE, "no file or folder", "try: paths in a spec"),
    "several tensors": search(
        FILE,
        "2 arrays",
        "at: {folder}/a.npz",
        "try: name one of them in 'key': x, y",
        prepare=npz(x=np.ones((2, 2)), y=np.ones((2, 2))),
    ),
    "a vector": search(FILE, "has shape (4,): a search needs two", "try:", prepare=npz(x=[1] * 4)),
    "a tensor with NaN": search(
        FILE, "x holds 1 of 4 entries that are NaN", prepare=npz(x=[[1.0, float("nan")], [0, 1]])
    ),
    "a tensor of words": search(FILE, "no tensor of real numbers", prepare=npz(x=[["a"], ["b"]])),
    "a search that is not there": search(
        "",
        "no spec file and no recipe is named 'rnig'",
        "mean 'ring'",
        words=("search", "run", "rnig"),
    ),
    "a run in a full folder": search(
        RING,
        "{folder}/out is there already and is no run",
        "try: choose another --out",
        words=(*SEARCH[:-1], "{folder}/out"),
        prepare=full_out,
    ),
    "a folder that is no run": search(
        "",
        "{folder} is no folder of a search: it has no run.json",
        "try: `tnc search run",
        words=("search", "status", "{folder}"),
    ),
    "a record that is none": search(
        RING,
        "{spec} is no record of searches: file is not a database",
        "try: name another file",
        words=(*SEARCH, "--record", "{spec}"),
    ),
}
TABLE = SPECS | MODELS | DATA | ARTIFACTS | SEARCHES


@pytest.mark.parametrize("name", TABLE)
def test_bad_input_is_told_with_place_and_remedy(name: str, tmp_path: Path, capsys) -> None:
    row, spec = TABLE[name], tmp_path / "s.yaml"

    def filled(words: str) -> str:
        return words.replace("{spec}", str(spec)).replace("{folder}", str(tmp_path))

    spec.write_text(filled(row.spec))
    row.prepare(tmp_path)
    before = contents(tmp_path)
    capsys.readouterr()
    code = main([filled(word) for word in row.words])
    told = capsys.readouterr().err
    assert code == row.code, told
    for words in row.told:
        assert filled(words) in told
    assert "Traceback" not in told and "internal error" not in told
    assert any(sign in told for sign in ("  try: ", "^\n", "there are: ")), told
    assert contents(tmp_path) == before, "something was left behind, or changed"


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder, by name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def ranks_of_dense(folder: Path) -> None:
    model = wrong.small()
    tnc.adapt_ranks(model, "dlrt", torch.optim.SGD(model.parameters(), lr=0.1))


def ranks_of_nothing(folder: Path) -> None:
    model = wrong.small()
    spec = tnc.Spec(version=1, rules=[{"match": "*", "structure": "low-rank", "keep": 0.5}])
    tnc.adapt_ranks(model, spec, torch.optim.SGD(model.parameters(), lr=0.1))


def compensated(original: nn.Module, rank: int = 2, batch: Any = wrong.INPUT[0]) -> None:
    tnc.compensate(wrong.small(), original, [batch], rank=rank)


def distilled_elsewhere(folder: Path) -> None:
    """The checkpoint of one run is given to another."""
    student, teacher = wrong.small(), wrong.small()
    for rate in (0.01, 0.02):
        tnc.distill(student, teacher, [wrong.INPUT], steps=2, rate=rate, checkpoint=folder / "c")


def distilled_after_damage(folder: Path) -> None:
    student, teacher = wrong.small(), wrong.small()
    for steps in (2, 2):
        tnc.distill(student, teacher, [wrong.INPUT], steps=steps, checkpoint=folder / "c")
        (folder / "c" / "state.json").write_text("{")


def loaded_elsewhere(folder: Path) -> None:
    made(folder)
    tnc.load(folder / "made", model=nn.Sequential(nn.Linear(3, 3)))


CALLS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "ranks of a model without structures": (
        ranks_of_dense,
        ("it has no structured layer", "try: "),
    ),
    "ranks by a spec that has no schedule": (ranks_of_nothing, ("at: train", "try: add a line")),
    "a distillation's checkpoint of another run": (
        distilled_elsewhere,
        ("the checkpoint is of another run", "at: {folder}/c", "try: give another"),
    ),
    "a distillation's checkpoint cut off": (
        distilled_after_damage,
        ("cannot read the checkpoint", "at: {folder}/c", "try: remove"),
    ),
    "compensation by the same model": (
        lambda folder: compensated(wrong.small()),
        ("no weight needs compensation", "at: match"),
    ),
    "compensation by a wider model": (
        lambda folder: compensated(wrong.wider()[0]),
        ("0.weight is 12 <- 16, in the original 14", "try:"),
    ),
    "compensation by another model": (
        lambda folder: compensated(nn.Sequential(nn.ReLU(), nn.Linear(16, 3))),
        ("the original has no weight '0.weight'", "try: give the model"),
    ),
    "compensation of no rank": (
        lambda folder: compensated(wrong.wider()[0], 0),
        ("rank is 0", "try: a branch has a rank"),
    ),
    "an artifact for another model": (
        loaded_elsewhere,
        ("the model has no module '2'", "try: give"),
    ),
    "a distillation on nothing": (
        lambda folder: tnc.distill(wrong.small(), wrong.small(), [], steps=2) and None,
        ("there is no batch to distill on", "try: give"),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_bad_input_in_python_is_told(name: str, tmp_path: Path) -> None:
    call, words = CALLS[name]
    with pytest.raises(TncError) as caught:
        call(tmp_path)
    assert caught.value.exit_code == 2
    for fragment in words:
        assert fragment.replace("{folder}", str(tmp_path)) in str(caught.value)
