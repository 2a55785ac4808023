"""Kernels of an artifact: its layers' kinds, and the folder of sources that were chosen.

The sources are there to be read. Nothing is ever run from them: what runs is generated from the
equations in the manifest, and `kernel_checks` compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

import tnc
from tnc.artifact.manifest import Manifest
from tnc.decide.spec_parts import Kernels
from tnc.kernels.check import wrong
from tnc.kernels.choose import Choice, Task, choose
from tnc.kernels.codec import choice_from, choice_to
from tnc.kernels.compiled import Kernel
from tnc.kernels.device import CPU
from tnc.kernels.machine import current, state
from tnc.kernels.outcome import Outcome, libraries, tiling, where
from tnc.net import Network, from_json
from tnc.nn import view_from_json
from tnc.nn.kinds import Kind, Use, kinds, kinds_of

FOLDER, INDEX = "kernels", "kernels/index.json"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
           "C64": torch.complex64}  # fmt: skip


def artifact_kinds(folder: Path, manifest: Manifest, device: str = CPU) -> tuple[Kind, ...]:
    """Return the kinds of an artifact's layers on a torch device type; of its tensors only the
    headers are read."""
    stored = _dtypes(folder, manifest)
    return kinds(_uses(manifest, stored, device))


def _uses(
    manifest: Manifest, stored: Mapping[str, torch.dtype], device: str = CPU
) -> Iterator[Use]:
    for entry in manifest.modules:
        if entry["kind"] not in ("structured", "rebuilt"):
            continue
        structure, path = from_json(entry["structure"]), entry["path"]
        read = entry["kind"] == "rebuilt"
        owner = f"{path}.{entry['name']}_structure".lstrip(".") if read else path
        dtype = stored[f"{owner}.cores.{next(iter(structure.shapes))}"]
        shown = f"{path}.{entry['name']}".lstrip(".") if read else path
        view = view_from_json(entry["view"])
        yield Use(shown, structure, view, dtype, bool(entry["bias"]), read, device)


def _dtypes(folder: Path, manifest: Manifest) -> dict[str, torch.dtype]:
    found: dict[str, torch.dtype] = {}
    for name in sorted(set(manifest.tensors.values())):
        with safe_open(folder / name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                found[key] = _DTYPES.get(file.get_slice(key).get_dtype(), torch.int64)
    for group in manifest.tied:
        found |= {name: found[group[0]] for name in group if group[0] in found}
    return found


def write_kernels(folder: Path, model: nn.Module, wanted: Kernels | None) -> list[str]:
    """Choose the kernels of a model's layers, write their sources, and return the files' names.

    One file for each distinct network and bucket of rows, and an index with the choices as data.
    """
    if wanted is None or wanted.tune == "off":
        return []
    entries: list[dict[str, Any]] = []
    (folder / FOLDER).mkdir(exist_ok=True)
    for kind in kinds_of(model):
        for found, bias in kind.outcomes(wanted.rows, wanted.training, wanted.tune, wanted.keep):
            file = _write(folder, kind, found, bias)
            entries.append(_entry(file, kind, found, bias))
    index = {"tnc": tnc.__version__, "tune": wanted.tune, "kernels": entries}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return sorted({INDEX, *(entry["file"] for entry in entries)})


def _write(folder: Path, kind: Kind, found: Outcome, bias: bool) -> str:
    """Write one source; its name tells the rows and is unique to network, dtype and bias."""
    told = f"{found.task}, {bias}"
    digest = sha256(told.encode()).hexdigest()[:10]
    name = f"{FOLDER}/{digest}-{'training' if found.task.training else 'rows'}-{found.task.rows}.py"
    text = f"{_header(kind, found, bias)}\n\n{found.source(bias)}\n"
    (folder / name).write_text(text, encoding="utf-8")
    return name


def _header(kind: Kind, found: Outcome, bias: bool) -> str:
    task, choice = found.task, found.choice
    more = f" and {len(kind.paths) - 3} more" if len(kind.paths) > 3 else ""
    measured = f"; measured {1e6 * choice.measured:.1f} us" if choice.measured else ""
    rows = f"{found.fewest} to {task.rows}" if task.rows > 1 else "1"
    used = ", ".join(libraries(choice, task.device))
    lines = [
        "A kernel that tnc chose, to be read: it is never run from here, but generated again.",
        f"equation   {task.network}",
        f"layers     {', '.join(kind.paths[:3])}{more}",
        f"rows       {rows}, {'training' if task.training else 'inference'}",
        f"dtype      {task.dtype}, {where(task)}",
        f"machine    {state(task.dtype, task.threads, task.device)}",
        f"predicted  {1e6 * choice.seconds:.1f} us{measured}; "
        f"a dense layer: predicted {1e6 * found.dense:.1f} us",
        f"libraries  {used}; {tiling(choice.way)}",
        *([f"keeps      {', '.join(choice.way.back.kept)}"] if choice.way.back.kept else []),
        f"FLOPs      {found.flops:,} in the forward",
        *(f"step       {line.text}" for line in found.lines),
        f"sha256     {sha256(found.source(bias).encode()).hexdigest()} of the source below",
    ]
    return "\n".join(f"# {line}" for line in lines)


def _entry(file: str, kind: Kind, found: Outcome, bias: bool) -> dict[str, Any]:
    task = found.task
    return {
        "file": file,
        "layers": list(kind.paths),
        "network": str(task.network),
        "rows": task.rows,
        "dtype": task.dtype,
        "threads": task.threads,
        "device": task.device,
        "training": task.training,
        "library": task.backend,
        "keep": task.keep,
        "bias": bias,
        "machine": current(task.dtype, task.threads, task.device).key,
        "choice": choice_to(found.choice),
        "sha256": sha256(found.source(bias).encode()).hexdigest(),
    }


def kernel_checks(folder: Path, manifest: Manifest) -> list[tuple[str, str]]:
    """Compare sources with what their programs generate, and choices with those made here.

    Returns checks as `verify` has them: what a machine would choose otherwise is no error.
    """
    if INDEX not in manifest.files:
        return []
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        same = index["tnc"] == tnc.__version__
        given = [(entry, choice_from(entry["choice"])) for entry in index["kernels"]]
        uses = _uses(manifest, _dtypes(folder, manifest))
        networks = {str(n): n for kind in kinds(uses) for n, _ in kind.parts}
        checks, otherwise = [], 0
        for entry, choice in given:
            result = _entry_state(folder, entry, choice, networks, same)
            checks.append((f"{entry['file']} generated again", result))
            if result == "ok" and index["tune"] == "model":
                here = _chosen_here(entry, networks[entry["network"]])
                otherwise += (here.program, here.way) != (choice.program, choice.way)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        return [(INDEX, f"cannot be read: {error!r}")]
    if otherwise:
        note = f"{otherwise} of {len(given)} kernels would be chosen otherwise on this machine"
        checks.append((f"{note} ({state(given[0][0]['dtype'])}), which is no error", "ok"))
    return checks


def _entry_state(
    folder: Path,
    entry: Mapping[str, Any],
    choice: Choice,
    networks: Mapping[str, Network],
    same: bool,
) -> str:
    """Say what is wrong with one source; 'ok' when nothing is. `same`: written by this version."""
    if entry["network"] not in networks:
        return f"no layer of the artifact has the equation {entry['network']}"
    network = networks[entry["network"]]
    if choice.program.sizes != network.sizes or wrong(network, choice.program):
        return "its program does not compute the equation of its layers"
    names = [step.right.value for step in choice.program.products]
    needs = ("input", *names) if entry["training"] else ()
    made = Kernel(choice).source(bias=entry["bias"], needs=needs)
    path = folder / entry["file"]
    if not path.is_file():
        return "missing"
    lines = path.read_text(encoding="utf-8").splitlines()
    head = next((k for k, line in enumerate(lines) if not line.startswith("#")), len(lines)) + 1
    for number, (own, wanted) in enumerate(
        zip_longest(lines[head:], made.splitlines()), start=head + 1
    ):
        if own != wanted and same:
            return f"line {number} is {own!r}, its program generates {wanted!r}"
    return "ok"


def _chosen_here(entry: Mapping[str, Any], network: Network) -> Choice:
    return choose(
        Task(network, entry["rows"], entry["dtype"], entry["threads"], entry["training"],
             entry["library"], entry.get("device", CPU), entry.get("keep", 0.0))
    )[0]  # fmt: skip
