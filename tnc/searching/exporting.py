"""Networks that a search found, as files; the form goes by the file's name."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tnc.errors import SearchError
from tnc.files import write_bytes, write_text, writing
from tnc.net import print_network, to_json
from tnc.searching.result import Candidate

Write = Callable[[Sequence[Candidate], Path], None]


def export(candidates: Sequence[Candidate], path: Path) -> None:
    """Write candidates in the form that the end of the file's name tells. Raises SearchError."""
    form = next((form for form in FORMS if path.name.endswith(form)), None)
    if form is None:
        raise SearchError(
            f"no form of networks goes by the name {path.name}",
            hint=f"end it with one of {', '.join(FORMS)}",
        )
    if not candidates:
        raise SearchError("there is no network to export", hint="nothing was fitted yet")
    with writing(path, SearchError):
        FORMS[form](candidates, path)


def _json(candidates: Sequence[Candidate], path: Path) -> None:
    """Write structures with scores and metrics; `tnc.net.from_json` reads a structure back."""
    content = [each.to_json() | {"structure": to_json(each.structure)} for each in candidates]
    document = {"version": 1, "kind": "networks", "networks": content}
    write_text(path, json.dumps(document, indent=1) + "\n")


def _text(candidates: Sequence[Candidate], path: Path) -> None:
    """Write one network a line; `tnc.net.parse_network` reads it back."""
    write_text(path, "".join(f"{print_network(each.network)}\n" for each in candidates))


def _safetensors(candidates: Sequence[Candidate], path: Path) -> None:
    """Write the cores of one network by their names, and its structure in the metadata."""
    import numpy as np
    from safetensors.numpy import save

    if len(candidates) > 1:
        raise SearchError(f"{len(candidates)} networks are too many for {path.name}: it holds one")
    (candidate,) = candidates
    if candidate.cores is None:
        raise SearchError("the cores of this network are not on record")
    names = [core.name for core in candidate.network.equation.cores]
    cores = {name: np.ascontiguousarray(core) for name, core in zip(names, candidate.cores)}
    about: dict[str, Any] = {
        "format": "tnc-network",
        "structure": json.dumps(to_json(candidate.structure)),
        "score": repr(candidate.score),
        "metrics": json.dumps(dict(candidate.metrics)),
    }
    write_bytes(path, save(cores, about))


FORMS: dict[str, Write] = {".json": _json, ".txt": _text, ".safetensors": _safetensors}
"""Forms by the end of a file's name; the first that fits is taken."""
