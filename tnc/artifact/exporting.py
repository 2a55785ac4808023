"""Exports: torch.export, ONNX, a dense state dict. For other runtimes, not for reloading."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tnc.artifact.loading import load
from tnc.artifact.manifest import PROBE, Manifest
from tnc.artifact.probing import probe_inputs
from tnc.errors import ArtifactError, MissingExtra
from tnc.files import check_place, writing
from tnc.rewrite.contract import outputs_of

ONNX_RTOL = 1e-3


def export(folder: str | Path, to: str, out: str | Path, model: nn.Module | None = None) -> Path:
    """Export an artifact `to` 'torch-export' (.pt2), 'onnx' or 'dense' (a safetensors state dict).

    The first dimension of every input is dynamic where the model allows it. ONNX files are run with
    onnxruntime and compared with the model. Raises ArtifactError, MissingExtra.
    """
    formats: dict[str, Callable[..., None]] = {
        "torch-export": _torch_export,
        "onnx": _onnx,
        "dense": _dense,
    }
    if to not in formats:
        raise ArtifactError(f"unknown format {to!r}", hint=f"formats are {', '.join(formats)}")
    path = Path(out)
    check_place(path, ArtifactError)
    if path.exists() and not path.is_file():
        raise ArtifactError(f"cannot write {path}: it is no file", hint="name a file to write")
    path = path.resolve()
    loaded = load(folder, model, check=True).eval()
    form = Manifest.read(Path(folder)).probe
    probe = probe_inputs(form, load_file(Path(folder) / PROBE))
    part = path.with_name(f".part-{path.name}")
    with writing(path, ArtifactError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            formats[to](loaded, probe, part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return Path(out)


def exported(model: nn.Module, probe: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    """Return the ExportedProgram of a model, the first dimension of its inputs dynamic."""
    args, kwargs = probe
    shapes = (
        tuple(_first_dynamic(value) for value in args),
        {name: _first_dynamic(value) for name, value in kwargs.items()},
    )
    with torch.no_grad():
        if not args:
            return torch.export.export(model, (), kwargs, dynamic_shapes=shapes[1], strict=False)
        return torch.export.export(
            model, args, kwargs, dynamic_shapes=(*shapes[0], *shapes[1].values()), strict=False
        )


def _first_dynamic(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dim():
        return {0: torch.export.Dim.AUTO}
    return None


def _torch_export(model: nn.Module, probe: Any, path: Path) -> None:
    program = exported(model, probe)
    program._example_inputs = None  # probe data stay out of the archive
    torch.export.save(program, path)


def _onnx(model: nn.Module, probe: Any, path: Path) -> None:
    missing = [n for n in ("onnx", "onnxscript", "onnxruntime") if find_spec(n) is None]
    if missing:
        raise MissingExtra(
            f"the ONNX export needs {', '.join(missing)}", hint="pip install 'tnc[onnx]'"
        )
    args, kwargs = probe
    program = torch.onnx.export(
        exported(model, probe), args, kwargs=kwargs, dynamo=True, verbose=False
    )
    assert program is not None
    program.save(str(path))
    _check_onnx(model, probe, path)


def _check_onnx(model: nn.Module, probe: Any, path: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    args, kwargs = probe
    values = [*args, *kwargs.values()]
    feed = {node.name: value.numpy() for node, value in zip(session.get_inputs(), values)}
    found = session.run(None, feed)
    for number, (want, got) in enumerate(zip(outputs_of(model, probe), found)):
        gap = float((want.double() - torch.from_numpy(got).double()).norm())
        scale = float(want.double().norm()) or 1.0
        if not gap <= ONNX_RTOL * scale:
            raise ArtifactError(
                f"onnxruntime's output {number} differs by {gap / scale:.3g} (relative norm)",
                hint="export with 'torch-export' or 'dense' instead, and report this model",
            )


def _dense(model: nn.Module, probe: Any, path: Path) -> None:
    from tnc.passes.densify import densify_

    densify_(model)
    state = {
        name: value.detach().clone().contiguous() for name, value in model.state_dict().items()
    }
    save_file(state, path)
