"""`tnc spec`: check a spec, print the schema, write a starter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tnc.commands.terminal import AsJson, Sets, SpecName, print_json, print_note, print_result
from tnc.errors import SpecError

app = typer.Typer(no_args_is_help=True, help="Check specs, print their schema, write a starter.")

STARTER = """\
# A spec for tnc: which weights become what, within which budget.
# `tnc spec check FILE` checks it, `tnc plan FILE` shows what would be done.
version: 1

# Where the model comes from: hf (a folder), callable (a function), safetensors (function + file).
model:
  kind: hf
  path: "path/to/model"          # or "package:some_package/folder"

# Inputs to measure errors on: topics, text, npz, random, callable.
calibration:
  kind: topics                   # sentences that come with Python; better: your own text
  samples: 512
  held_out: 512

# How outputs are compared with the original's: embedding, logits, output.
evaluation: output

# What everything in scope may cost together: params, flops, bytes (0.5 is half, 1000000 absolute),
# latency (a fraction); or a bound on the error, under which cost is minimised.
budget:
  scope: "*"
  params: 0.5

# The first rule that matches a weight's path decides; '*' spans dots. A rule without a match is an
# error. Candidates compete: low-rank, tucker{factors=2}, tensor-train, cp, kronecker, dense ...
rules:
  - match: "*"
    op: linear
    structure: low-rank

# quality: {max_error: 0.05}     # stop with exit code 4 above this error on held-out data
# export: [onnx]                 # also: torch-export, dense
"""


@app.command()
def check(spec: SpecName, set_: Sets = None, as_json: AsJson = False) -> None:
    """Check a spec; every error with its file, line and column."""
    from tnc.decide.spec import read_spec

    resolved = read_spec(spec, set_ or ())
    if as_json:
        print_json("spec", {"digest": resolved.digest, "spec": resolved.spec.to_data()})
    else:
        count = len(resolved.spec.rules)
        rules = f"{count} rule{'s' if count > 1 else ''}"
        print_result(f"{spec}: ok, {rules}, digest {resolved.digest[:12]}")


@app.command()
def schema(
    out: Annotated[Path | None, typer.Option(help="Write the schema to this file.")] = None,
) -> None:
    """Print the JSON schema of specs, for editors."""
    from tnc.decide.spec_schema import schema_text
    from tnc.files import write_text, writing

    if out is None:
        typer.echo(schema_text(), nl=False)
    else:
        with writing(out, SpecError):
            write_text(out, schema_text())
        print_note(f"schema written to {out}")


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="The file to write.")] = Path("spec.yaml"),
    force: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented spec to begin with."""
    from tnc.files import write_text, writing

    if file.exists() and not force:
        raise SpecError(f"{file} is there already", hint="choose another name, or add --force")
    with writing(file, SpecError):
        write_text(file, STARTER)
    print_note(f"written: {file}; edit it, then run `tnc spec check {file}`")
