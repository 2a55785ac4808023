"""The manifest `tnc.json`: what an artifact holds and how the model is put together again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tnc.artifact.foreign import no_artifact
from tnc.errors import ArtifactError
from tnc.files import recover_folder
from tnc.net import digest

FORMAT = 1
NAME = "tnc.json"
PROBE = "probe.safetensors"


_AGAIN = "copy the artifact again, or compile again"


@dataclass(frozen=True)
class Manifest:
    """Everything about an artifact but its tensors.

    `modules` lists replaced modules in the order in which they are put back; `tensors` says in
    which file every state-dict entry lies; `tied` groups names that are one tensor; `files` holds
    the SHA-256 of every file. `modes` are the modules that are not in the model's own mode
    (`training`); `probe` is the form of the example input, whose tensors lie in a file.
    """

    plan: Mapping[str, Any]
    modules: tuple[Mapping[str, Any], ...]
    tensors: Mapping[str, str]
    tied: tuple[tuple[str, ...], ...]
    frozen: tuple[str, ...]
    files: Mapping[str, str]
    source: Mapping[str, Any] | None = None
    spec: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    training: bool = False
    modes: tuple[str, ...] = ()
    probe: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def text(self) -> str:
        """Write the manifest with its digest."""
        data = json.loads(json.dumps(asdict(self)))
        return json.dumps(data | {"digest": digest(data)}, indent=1)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read a folder's manifest. Raises ArtifactError for anything that is not one."""
        path = folder / NAME
        recover_folder(folder.resolve())
        if not path.is_file():
            raise no_artifact(folder, NAME)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            stated = data.pop("digest")
            known = data["format"]
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ArtifactError(
                f"the manifest cannot be read: {error!r}", where=str(path), hint=_AGAIN
            ) from error
        if known != FORMAT:
            raise ArtifactError(
                f"the artifact has format {known!r}, this tnc reads {FORMAT}",
                where=str(path),
                hint="compile again, or use the version of tnc that wrote it "
                f"({data.get('versions', {}).get('tnc', 'unknown')})",
            )
        if digest(data) != stated:
            raise ArtifactError(
                "the manifest does not match its digest: it was edited or damaged",
                where=str(path),
                hint=_AGAIN,
            )
        try:
            for name in ("modules", "frozen", "modes"):
                data[name] = tuple(data[name])
            data["tied"] = tuple(tuple(group) for group in data["tied"])
            return cls(**data)
        except (KeyError, TypeError) as error:
            raise ArtifactError(
                f"the manifest has other entries than this tnc writes: {error}",
                where=str(path),
                hint=_AGAIN,
            ) from error


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            found.update(block)
    return found.hexdigest()


def file_state(path: Path, wanted: str) -> str:
    """Say what is wrong with a file whose SHA-256 is known; 'ok' when nothing is."""
    if not path.is_file():
        return "missing"
    return "ok" if checksum(path) == wanted else "changed since it was saved"


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raise ArtifactError naming the first file with tensors that is not as it was saved."""
    for name, wanted in sorted(manifest.files.items()):
        state = file_state(folder / name, wanted) if name.endswith(".safetensors") else "ok"
        if state != "ok":
            raise ArtifactError(
                f"{name}: {state}", where=str(folder), hint="copy the artifact again"
            )


def read_tensors(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Read every tensor of an artifact. Raises ArtifactError naming the file that is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for name in sorted(set(manifest.tensors.values())):
        path = folder / name
        if not path.is_file():
            raise ArtifactError(
                f"{name} is missing", where=str(folder), hint="copy the artifact again"
            )
        try:
            found.update(load_file(path))
        except (SafetensorError, OSError) as error:
            raise ArtifactError(
                f"{name} cannot be read: {error}", where=str(path), hint="copy the artifact again"
            ) from error
    missing = sorted(set(manifest.tensors) - set(found))
    if missing:
        raise ArtifactError(f"tensor {missing[0]!r} is in no file", where=str(folder))
    return found
