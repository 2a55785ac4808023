"""Folders that are no artifacts: what they hold instead, and what to do with that."""

from __future__ import annotations

from pathlib import Path

from tnc.errors import ArtifactError

ADAPTERS = "tnc-adapter.json"
"""The manifest of adapters that tnc wrote."""

PEFT = "adapter_config.json"
"""The configuration of adapters that PEFT wrote."""


def adapters_in(folder: Path) -> str:
    """Say of which kind the adapters in a folder are; empty where there are none."""
    if (folder / ADAPTERS).is_file():
        return "adapters"
    return "adapters in PEFT's format" if (folder / PEFT).is_file() else ""


def no_artifact(folder: Path, missing: str) -> ArtifactError:
    """Return the error for a folder without a file that artifacts have."""
    if not folder.exists():
        return ArtifactError(
            f"there is no folder {folder}",
            hint="`tnc compile SPEC --out DIR`, or tnc.save(compiled, folder), makes an artifact",
        )
    held = adapters_in(folder)
    if held:
        return ArtifactError(
            f"{folder} holds {held}, and is no artifact",
            hint=f"`tnc merge BASE {folder} --out DIR` makes an artifact of base and adapters; in "
            f"Python tnc.adapters.{'load' if held == 'adapters' else 'import_peft'}(model, folder) "
            "puts them beside a model's weights",
        )
    return ArtifactError(
        f"{folder} is no artifact: it has no {missing}",
        hint="`tnc compile SPEC --out DIR`, or tnc.save(compiled, folder), makes one",
    )
