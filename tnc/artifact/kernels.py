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
from tnc.errors import KernelError
from tnc.kernels.device import CPU
from tnc.kernels.machine import state
from tnc.kernels.shown import Explained, Shown, counted, us
from tnc.net import from_json
from tnc.nn import view_from_json
from tnc.nn.given import Given
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
    given = Given(wanted.rows, wanted.images, wanted.training, wanted.keep, wanted.compile)
    for kind in kinds_of(model):
        for found in kind.outcomes(given, wanted.tune):
            shown = found.shown()
            name = _write(folder, kind, shown)
            layers = {"file": name, "layers": list(kind.paths), "kind": kind.view.name}
            digest = sha256(shown.source.encode()).hexdigest()
            entries.append({**layers, **found.entry(), "sha256": digest})
    index = {"tnc": tnc.__version__, "tune": wanted.tune, "kernels": entries}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return sorted({INDEX, *(entry["file"] for entry in entries)})


def _write(folder: Path, kind: Kind, shown: Shown) -> str:
    """Write one source; its name tells what it meets and is unique to network, dtype and bias."""
    told = f"{shown.equation}, {kind.view}, {shown.met}, {shown.manner}, {shown.dtype}, "
    told += f"{shown.threads}, {shown.device}, {shown.training}, {kind.bias}"
    name = f"{FOLDER}/{sha256(told.encode()).hexdigest()[:10]}-{shown.name}.py"
    (folder / name).write_text(f"{_header(kind, shown)}\n\n{shown.source}\n", encoding="utf-8")
    return name


def _header(kind: Kind, shown: Shown) -> str:
    more = f" and {len(kind.paths) - 3} more" if len(kind.paths) > 3 else ""
    measured = f"; measured {us(shown.measured)}" if shown.measured else ""
    lines = [
        "A kernel that tnc chose, to be read: it is never run from here, but generated again.",
        f"equation   {shown.equation}",
        f"layers     {', '.join(kind.paths[:3])}{more}",
        f"meets      {shown.met}, {'training' if shown.training else 'inference'}",
        f"manner     {shown.manner}",
        f"dtype      {shown.dtype}, {counted(shown.threads, 'thread')} on {shown.device}",
        f"prices     {shown.prices}",
        f"predicted  {us(shown.predicted)}{measured}; a dense layer: predicted {us(shown.dense)}",
        f"libraries  {', '.join(shown.libraries)}",
        *([f"keeps      {', '.join(shown.kept)}"] if shown.kept else []),
        f"FLOPs      {shown.flops:,} in the forward",
        *(f"step       {text}" for text, _ in shown.steps),
        f"sha256     {sha256(shown.source.encode()).hexdigest()} of the source below",
    ]
    return "\n".join(f"# {line}" for line in lines)


def kernel_checks(folder: Path, manifest: Manifest) -> list[tuple[str, str]]:
    """Compare sources with what their programs generate, and choices with those made here.

    Returns checks as `verify` has them: what a machine would choose otherwise is no error.
    """
    if INDEX not in manifest.files:
        return []
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        same = index["tnc"] == tnc.__version__
        uses = {use.path: use for use in _uses(manifest, _dtypes(folder, manifest))}
        checks, otherwise = [], 0
        for entry in index["kernels"]:
            found = _recorded(entry, uses)
            result = found if isinstance(found, str) else _state(folder, entry, found, same)
            checks.append((f"{entry['file']} generated again", result))
            if result == "ok" and index["tune"] == "model" and isinstance(found, Explained):
                otherwise += not found.again()
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        return [(INDEX, f"cannot be read: {error!r}")]
    if otherwise:
        note = f"{otherwise} of {len(checks)} kernels would be chosen otherwise on this machine"
        dtype = index["kernels"][0]["dtype"]
        checks.append((f"{note} ({state(dtype)}), which is no error", "ok"))
    return checks


def _recorded(entry: Mapping[str, Any], uses: Mapping[str, Use]) -> Explained | str:
    """Return what was chosen for a layer, or what is wrong with it."""
    path = entry["layers"][0]
    if path not in uses:
        return f"no layer of the artifact is called {path}"
    try:
        return uses[path].view.recorded(uses[path].structure, entry)
    except KernelError as error:
        return error.message


def _state(folder: Path, entry: Mapping[str, Any], found: Explained, same: bool) -> str:
    """Say what is wrong with one source; 'ok' when nothing is. `same`: written by this version."""
    path = folder / entry["file"]
    if not path.is_file():
        return "missing"
    lines = path.read_text(encoding="utf-8").splitlines()
    head = next((k for k, line in enumerate(lines) if not line.startswith("#")), len(lines)) + 1
    for number, (own, wanted) in enumerate(
        zip_longest(lines[head:], found.shown().source.splitlines()), start=head + 1
    ):
        if own != wanted and same:
            return f"line {number} is {own!r}, its program generates {wanted!r}"
    return "ok"
