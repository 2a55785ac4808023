"""Verify an artifact: every file, the manifest, and the outputs on the stored probe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from tnc.artifact.kernels import kernel_checks
from tnc.artifact.loading import load
from tnc.artifact.manifest import PROBE, Manifest, file_state
from tnc.artifact.probing import probe_inputs, same_outputs
from tnc.errors import ArtifactError
from tnc.rewrite.contract import outputs_of


@dataclass(frozen=True)
class Verified:
    """The checks that were made, each with 'ok' or what is wrong."""

    checks: tuple[tuple[str, str], ...]

    @property
    def ok(self) -> bool:
        """Whether all checks passed."""
        return all(result == "ok" for _, result in self.checks)

    def require(self, folder: Path) -> None:
        """Raise ArtifactError with the first check that failed."""
        for name, result in self.checks:
            if result != "ok":
                raise ArtifactError(
                    f"{name}: {result}", where=str(folder), hint="copy or compile it again"
                )


def verify(folder: str | Path, model: nn.Module | None = None, rtol: float = 1e-4) -> Verified:
    """Check the digest of the manifest, the SHA-256 of each file, and the outputs on the probe.

    Sources of kernels are compared with what their programs generate; a machine that would choose
    other programs says so, which is no error.

    `model` is needed where the artifact does not say how to build its model. Raises ArtifactError
    where the folder holds no readable artifact.
    """
    path = Path(folder)
    manifest = Manifest.read(path)
    checks = [("manifest", "ok")]
    for name, wanted in sorted(manifest.files.items()):
        checks.append((name, file_state(path / name, wanted)))
    if any(result != "ok" for name, result in checks if name.endswith(".safetensors")):
        return Verified(tuple(checks))
    checks += kernel_checks(path, manifest)
    loaded = load(path, model)
    stored = load_file(path / PROBE)
    if not any(name.startswith("outputs.") for name in stored):
        return Verified((*checks, ("no outputs on the probe were stored", "ok")))
    outputs = outputs_of(loaded, probe_inputs(manifest.probe, stored))
    checks.append(("outputs on the probe", same_outputs(outputs, stored, rtol) or "ok"))
    return Verified(tuple(checks))
