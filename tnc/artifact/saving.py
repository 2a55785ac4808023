"""Save a compiled model: all of it, or nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import tnc
from tnc.artifact.claims import check_savings, sizes
from tnc.artifact.hugging import describe_for_transformers
from tnc.artifact.kernels import write_kernels
from tnc.artifact.manifest import NAME, PROBE, Manifest, checksum
from tnc.artifact.modules import describe_modules
from tnc.artifact.probing import probe_data
from tnc.decide.spec_parts import Kernels
from tnc.errors import ArtifactError
from tnc.files import check_no_home, replaced_folder, writing
from tnc.nn.adapted import has_deltas
from tnc.rewrite.compiled import Compiled
from tnc.rewrite.contract import outputs_of

SHARD_BYTES = 2 << 30


@dataclass(frozen=True, eq=False)
class Contents:
    """What an artifact holds beside tensors and plan; see `save`."""

    source: Mapping[str, Any] | None = None
    files: tuple[Path, ...] = ()
    spec: str = ""
    report: Mapping[str, Any] | None = None
    kernels: Kernels | None = None


def save(
    compiled: Compiled,
    out: str | Path,
    *,
    source: Mapping[str, Any] | None = None,
    files: Iterable[Path] = (),
    spec: str = "",
    report: Mapping[str, Any] | None = None,
    kernels: Kernels | None = None,
    force: bool = False,
    shard_bytes: int = SHARD_BYTES,
    optimizer: torch.optim.Optimizer | None = None,
) -> Path:
    """Write an artifact folder; an interruption leaves the old folder or none.

    `source` says how the model is built again (see `tnc.sources`); without it `load` must be given
    a model. `files` are copied beside the tensors (configuration, tokenizer). With `kernels` the
    sources of the kernels that are chosen are written too, to be read. With `optimizer`, one of the
    compiled model's parameters, its state is written too: see `tnc.load_optimizer`. Raises
    ArtifactError where the folder exists and is no artifact, or `force` is not set, and PlanError
    where the model does not hold what its plan promises.
    """
    _check_compiled(compiled)
    check_plain(compiled.model)
    check_savings(compiled)
    contents = Contents(source, tuple(files), spec, report, kernels)
    return write(compiled, out, contents, force=force, shard_bytes=shard_bytes, optimizer=optimizer)


def _check_compiled(given: object) -> None:
    """Raise ArtifactError for what is no `Compiled`."""
    if not isinstance(given, Compiled):
        raise ArtifactError(
            f"a {type(given).__name__} is not what tnc.compile returned",
            where="compiled",
            hint="give that, not its model; tnc.adapters.folded makes one of it and adapters, "
            "tnc.adapters.save writes adapters alone",
        )


def write(
    compiled: Compiled,
    out: str | Path,
    contents: Contents,
    *,
    force: bool = False,
    shard_bytes: int = SHARD_BYTES,
    optimizer: torch.optim.Optimizer | None = None,
) -> Path:
    """Write an artifact folder as `save` does, of a model whose plan promises no savings."""
    path = Path(out)
    check_free(path, force)
    state, tied = distinct_state(compiled.model)
    with writing(path, ArtifactError), replaced_folder(path) as folder:
        tensors = _write_shards(folder, state, shard_bytes)
        if optimizer is not None:
            from tnc.artifact.optimizer import write_optimizer

            write_optimizer(folder, compiled.model, optimizer)
        outputs = outputs_of(compiled.model, compiled.probe)
        complete(folder, compiled, tensors, tied, outputs, contents)
    return path


def complete(
    folder: Path,
    compiled: Compiled,
    tensors: Mapping[str, str],
    tied: tuple[tuple[str, ...], ...],
    outputs: tuple[Tensor, ...],
    contents: Contents,
) -> None:
    """Write everything but the tensors into a folder that holds them; the manifest comes last.

    `tensors` says in which file each lies, `outputs` are those on the probe; without any only the
    probe's inputs are stored. The model's own tensors are not read: they may lie on meta.
    """
    form, held = probe_data(compiled.probe, outputs)
    save_file(held, folder / PROBE)
    for file in contents.files:
        shutil.copy(file, folder / Path(file).name)
    modules = describe_modules(compiled.model, compiled.classes)
    describe_for_transformers(folder, modules, tensors, tied)
    (folder / "README.md").write_text(_card(compiled, contents), encoding="utf-8")
    compiled.plan.save(folder / "plan.json")
    if contents.spec:
        (folder / "spec.yaml").write_text(contents.spec, encoding="utf-8")
    found = (p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    names = sorted(p.name for p in found)
    names += write_kernels(folder, compiled.model, contents.kernels)
    manifest = Manifest(
        plan=compiled.plan.to_json(),
        modules=modules,
        tensors=tensors,
        tied=tied,
        frozen=tuple(n for n, p in compiled.model.named_parameters() if not p.requires_grad),
        files={name: checksum(folder / name) for name in names},
        source=contents.source,
        spec=contents.spec,
        metrics=dict(contents.report or {}),
        versions={"tnc": tnc.__version__, "torch": version("torch")},
        training=compiled.model.training,
        modes=_modes(compiled.model),
        probe=form,
    )
    (folder / NAME).write_text(manifest.text(), encoding="utf-8")


def check_plain(model: nn.Module) -> None:
    """Raise ArtifactError for a model with adapters, which are saved apart or merged."""
    for path, module in model.named_modules():
        if has_deltas(module):
            raise ArtifactError(
                "the model has adapters, which an artifact does not hold",
                where=path or type(module).__name__,
                hint="tnc.adapters.save(tnc.adapters.of(model), folder) saves them apart; "
                "tnc.save(tnc.adapters.folded(made, tnc.adapters.of(model)), folder) merges them",
            )


def check_free(path: Path, force: bool) -> None:
    """Raise ArtifactError where a folder is in the way of an artifact."""
    check_no_home(path, ArtifactError)
    if path.is_file() or (path.exists() and not (path / NAME).is_file() and any(path.iterdir())):
        raise ArtifactError(
            f"{path} exists and is no artifact, so it is not replaced", hint="choose another folder"
        )
    if (path / NAME).is_file() and not force:
        raise ArtifactError(
            f"{path} already holds an artifact",
            hint="replace it with --force, or force=True; or choose another folder",
        )


def distinct_state(model: nn.Module) -> tuple[dict[str, Tensor], tuple[tuple[str, ...], ...]]:
    """Return one entry for each distinct tensor, and the groups of names that are tied."""
    groups: dict[int, list[str]] = {}
    tensors: dict[int, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise ArtifactError(
                f"the state dict holds {name!r}, a {type(tensor).__name__} and no tensor",
                hint="only tensors can be saved without pickle",
            )
        if tensor.dtype == torch.complex128:
            raise ArtifactError(
                f"{name!r} is complex128, which safetensors files cannot hold",
                hint="turn its complex parameters into complex64 before compiling",
            )
        groups.setdefault(id(tensor), []).append(name)
        tensors[id(tensor)] = tensor
    state = {names[0]: tensors[key].detach() for key, names in groups.items()}
    return state, tuple(tuple(names) for names in groups.values() if len(names) > 1)


def _write_shards(folder: Path, state: dict[str, Tensor], limit: int) -> dict[str, str]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name in sorted(state):
        tensor = state[name].contiguous().cpu()
        nbytes = tensor.numel() * tensor.element_size()
        if shards[-1] and size + nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.clone() if tensor.storage_offset() else tensor
        size += nbytes
    tensors = {}
    for number, shard in enumerate(shards):
        file = f"tnc-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file)
        tensors.update(dict.fromkeys(shard, file))
    return tensors


def _modes(model: nn.Module) -> tuple[str, ...]:
    """Return the paths of modules that are not in the model's own mode."""
    return tuple(
        path
        for path, module in model.named_modules(remove_duplicate=False)
        if module.training != model.training
    )


def _card(compiled: Compiled, contents: Contents) -> str:
    source = contents.source
    total, (before, after) = compiled.plan.total, sizes(compiled)
    call = 'tnc.load("path/to/this/folder"'
    verify = "`tnc verify DIR`" if source else "`tnc.verify(DIR, model=YourModel())`"
    call += ")" if source else ", model=YourModel())  # any weights; a copy is filled in"
    rows = "\n".join(
        f"| {key} | {value} |"
        for key, value in sorted((contents.report or {}).items())
        if isinstance(value, (int, float, str))
    )
    return (
        "# A model compiled by tnc\n\n"
        f"{before:,} parameters became {after:,}, "
        f"{total.dense_flops:,} FLOPs (of the weights, on the example input) {total.flops:,}.\n\n"
        f"Source: {dict(source) if source else 'a model given in Python'}.\n\n"
        f"```python\nimport tnc\n\nmodel = {call}\n```\n\n"
        f"{verify} checks every file and the outputs on a stored probe; `tnc inspect DIR` "
        "shows the plan. The tensors are named `tnc-*.safetensors`, so that a loader that does not "
        "know tnc stops instead of filling in random weights.\n"
        + (f"\n| figure | value |\n|---|---|\n{rows}\n" if rows else "")
    )
