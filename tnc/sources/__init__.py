"""Where models, data and quality figures come from; one file each.

Sources are frozen dataclasses whose fields are their options in a spec. Reading them needs no
torch; using them imports it inside of their functions.
"""

from tnc.sources.source import (
    Batch,
    DataSource,
    Evaluation,
    Labelled,
    Loaded,
    ModelSource,
    Streamed,
    datas,
    evaluations,
    models,
)

__all__ = [
    "Batch",
    "DataSource",
    "Evaluation",
    "Labelled",
    "Loaded",
    "ModelSource",
    "Streamed",
    "datas",
    "evaluations",
    "models",
]
