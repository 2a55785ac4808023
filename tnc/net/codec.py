"""The JSON form of a structure and its digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from tnc.errors import EquationError
from tnc.net.equation import Core, Equation
from tnc.net.network import Network, Signature, Structure


def to_json(structure: Structure) -> dict[str, Any]:
    """Write a structure as plain data; `from_json` reads it back."""
    return {
        "outputs": list(structure.signature.outputs),
        "inputs": list(structure.signature.inputs),
        "terms": [_term_to_json(term) for term in structure.terms],
    }


def from_json(data: Mapping[str, Any]) -> Structure:
    """Read what `to_json` wrote. Raises EquationError."""
    try:
        signature = Signature(tuple(data["outputs"]), tuple(data["inputs"]))
        terms = tuple(_term_from_json(term) for term in data["terms"])
    except (KeyError, TypeError) as error:
        raise EquationError(f"not the JSON form of a structure: {error!r}") from error
    return Structure(signature, terms)


def canonical(data: Any) -> str:
    """Write JSON with sorted keys and no spaces: the text that digests are taken of."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(data: Any) -> str:
    """Return the SHA-256 of the canonical JSON of `data` (a structure or plain data), in hex."""
    plain = to_json(data) if isinstance(data, Structure) else data
    return hashlib.sha256(canonical(plain).encode()).hexdigest()


def _term_to_json(term: Network) -> dict[str, Any]:
    return {
        "cores": [
            {"name": core.name, "indices": list(core.indices), "kind": core.kind}
            | ({"stored": core.stored} if core.stored else {})
            for core in term.equation.cores
        ],
        "inputs": [list(axis) for axis in term.equation.inputs],
        "outputs": [list(axis) for axis in term.equation.outputs],
        "sizes": dict(term.sizes),
    }


def _term_from_json(data: Mapping[str, Any]) -> Network:
    cores = tuple(
        Core(core["name"], tuple(core["indices"]), core["kind"], core.get("stored", ""))
        for core in data["cores"]
    )
    equation = Equation(
        cores,
        tuple(tuple(axis) for axis in data["inputs"]),
        tuple(tuple(axis) for axis in data["outputs"]),
    )
    return Network.of(equation, data["sizes"])
