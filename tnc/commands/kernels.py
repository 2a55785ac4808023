"""`tnc inspect ARTIFACT --kernels`: what runs, and why."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from tnc.commands.terminal import print_json, print_result, working
from tnc.errors import ArtifactError, SpecError

if TYPE_CHECKING:
    from tnc.nn.kinds import Kind


def show_kernels(
    what: str,
    rows: str,
    images: str,
    training: bool,
    keep: float,
    how: str,
    layer: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Choose the kernels of an artifact here and print them. Raises ArtifactError, SpecError."""
    counts = _counts("--rows", rows), _counts("--images", images)
    with working() as progress:
        progress("kernels", 0, 1)
        from tnc.artifact.kernels import artifact_kinds
        from tnc.artifact.manifest import Manifest
        from tnc.nn.given import Given
        from tnc.report.kernels import kernels_json, kernels_text

        found = artifact_kinds(Path(what), Manifest.read(Path(what)), device)
        wanted = _of_layer(found, layer) if layer else found
        chosen = []
        for number, kind in enumerate(wanted):
            progress("kernels", number, len(wanted))
            chosen.append((kind, kind.outcomes(Given(*counts, training, keep), how)))
    if as_json:
        print_json("kernels", {"training": training, "tune": how, "layers": kernels_json(chosen)})
    else:
        print_result(kernels_text(chosen, training, how))


def _counts(option: str, text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() and int(word) for word in words):
        raise SpecError(
            f"{option} {text!r} is no list of positive whole numbers",
            hint=f"such as {option} 1,16,128",
        )
    return tuple(map(int, words))


def _of_layer(found: tuple[Kind, ...], layer: str) -> tuple[Kind, ...]:
    kept = tuple(k for k in found if any(fnmatchcase(path, layer) for path in k.paths))
    if kept:
        return kept
    paths = [path for kind in found for path in kind.paths]
    raise ArtifactError(
        f"no structured layer {layer!r}",
        where="--layer",
        hint="one of " + ", ".join(paths[:5]) + (", .." if len(paths) > 5 else "")
        if paths
        else "the artifact has no structured layers",
    )
