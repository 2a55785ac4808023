"""A tensor in a file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from tnc.errors import SourceError
from tnc.explore.evaluator import Array
from tnc.searching.target import Target, checked, targets
from tnc.sources.reference import find_path


@targets.register("file")
@dataclass(frozen=True)
class TensorFile(Target):
    """The array `key` of a .npz or .safetensors file, or a .npy file; without a key the only one.

    `file` is a path, or `package:NAME/inside`.
    """

    file: str
    key: str = ""

    def load(self) -> Array:
        path = find_path(self.file)
        try:
            held = _arrays(path)
        except Exception as error:
            raise SourceError(
                f"cannot read a tensor: {error}",
                where=str(path),
                hint="a .npz, .npy or .safetensors file is needed",
            ) from error
        names = sorted(held)
        if self.key not in held and (self.key or len(names) != 1):
            told = f"no array {self.key!r} in the file" if self.key else f"{len(names)} arrays"
            raise SourceError(
                told, where=str(path), hint=f"name one of them in 'key': {', '.join(names)}"
            )
        return checked(held[self.key or names[0]], self.key or names[0])

    def resolved(self) -> Self:
        return replace(self, file=str(find_path(self.file).resolve()))


def _arrays(path: Path) -> dict[str, Any]:
    """Return the arrays of a file by name; a .npy file holds one named `array`."""
    import numpy as np

    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(path)
    found = np.load(path, allow_pickle=False)
    if isinstance(found, np.ndarray):
        return {"array": found}
    with found as archive:
        return {name: archive[name] for name in archive.files}
