"""The JSON schema of specs, for editors: generated from the models, plug-ins included."""

from __future__ import annotations

import json
from typing import Any

from tnc.decide.spec import Spec

DIALECT = "http://json-schema.org/draft-07/schema#"
"""Editors' YAML servers document support up to draft 7; `$defs` is reached by reference there."""


def spec_schema() -> dict[str, Any]:
    """Return the schema of a spec file; one that extends another may leave out its rules."""
    schema = Spec.model_json_schema()
    one_of = [{"required": [name]} for name in ("rules", "adapters", "extends")]
    needs = {"required": ["version"], "anyOf": one_of}
    return {"$schema": DIALECT, **schema, **needs, "title": "tnc spec"}


def schema_text() -> str:
    """Return the schema as it is committed in `specs/tnc.schema.json`."""
    return json.dumps(spec_schema(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
