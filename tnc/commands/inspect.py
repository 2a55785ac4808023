"""`tnc inspect`: what an artifact, a plan or a spec holds."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tnc.commands.terminal import AsJson, Sets, print_json, print_note, print_result
from tnc.errors import ArtifactError, PlanError, SpecError

if TYPE_CHECKING:
    from tnc.decide.plan import Plan

ROWS, IMAGES = "1,16,128", "1,16"


class Tune(StrEnum):
    """How kernels are chosen."""

    model = "model"
    measure = "measure"


class Device(StrEnum):
    """What kernels are chosen for."""

    cpu = "cpu"
    cuda = "cuda"


def inspect(
    what: Annotated[str, typer.Argument(help="An artifact's folder, a plan (.json), or a spec.")],
    set_: Sets = None,
    draw: Annotated[str | None, typer.Option(help="Draw the structure of this site.")] = None,
    svg: Annotated[Path | None, typer.Option(help="With --draw: write the drawing here.")] = None,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Show an artifact's kernels, and why these.")
    ] = False,
    rows: Annotated[str, typer.Option(help="With --kernels: inputs of a layer.")] = ROWS,
    images: Annotated[
        str, typer.Option(help="With --kernels: images that a convolution meets.")
    ] = IMAGES,
    train: Annotated[
        bool, typer.Option("--train", help="With --kernels: forward and backward together.")
    ] = False,
    keep: Annotated[
        float, typer.Option(help="With --train: what may be kept, in bytes of the input.", min=0)
    ] = 0.0,
    tune: Annotated[
        Tune, typer.Option(help="With --kernels: choose by predicted time, or by timing.")
    ] = Tune.model,
    layer: Annotated[
        str | None, typer.Option(help="With --kernels: this layer, or a pattern.")
    ] = None,
    device: Annotated[
        Device, typer.Option(help="With --kernels: what the layers run on.")
    ] = Device.cpu,
    as_json: AsJson = False,
) -> None:
    """Show an artifact's plan or kernels, a plan, or a spec with all that it extends; draw a site.

    With --kernels every distinct kind of layer is shown once: its equation, for each number of rows
    or images the program that runs here, its source and times, and what the others would have cost.
    """
    if kernels:
        if not Path(what).is_dir():
            raise ArtifactError(
                f"{what} is no artifact, and kernels are chosen for one",
                hint="`tnc compile SPEC --out DIR` makes one; for a model in memory, tnc.tune",
            )
        if keep and not train:
            raise SpecError("--keep is about training", hint="add --train")
        from tnc.commands.kernels import show_kernels

        show_kernels(what, rows, images, train, keep, tune.value, layer, device.value, as_json)
        return
    asked = (rows, images) != (ROWS, IMAGES) or train or keep or layer
    if asked or tune is not Tune.model or device is not Device.cpu:
        raise SpecError(
            "--rows, --images, --train, --keep, --tune, --layer and --device are about kernels",
            hint="add --kernels",
        )
    if svg and not draw:
        raise SpecError("--svg needs a site to draw", hint="add --draw SITE")
    found = _plan_at(what)
    if found is None:
        _show_spec(what, set_ or [], draw, as_json)
    elif draw:
        _draw(found, draw, svg)
    elif as_json:
        print_json("plan", {"digest": found.digest, "plan": found.to_json()})
    else:
        from tnc.report.table import plan_tables

        print_result(plan_tables(found))


def _plan_at(what: str) -> Plan | None:
    from tnc.decide.plan import Plan

    path = Path(what)
    if path.is_dir():
        if not (path / "plan.json").is_file():
            from tnc.artifact.foreign import no_artifact

            raise no_artifact(path, "plan.json")
        return Plan.read(path / "plan.json")
    return Plan.read(path) if path.suffix == ".json" else None


def _show_spec(name: str, overrides: list[str], draw: str | None, as_json: bool) -> None:
    from tnc.decide.spec import read_spec

    resolved = read_spec(name, overrides)
    if draw:
        raise PlanError("a spec has no structures to draw yet", hint="draw from a plan or artifact")
    if as_json:
        print_json("spec", {"digest": resolved.digest, "spec": resolved.spec.to_data()})
    else:
        print_result(resolved.text.rstrip())


def _draw(plan: Plan, site: str, svg: Path | None) -> None:
    from tnc.derive.draw import draw_svg, draw_text
    from tnc.files import write_text, writing

    structure = plan.entry(site).structure
    if structure is None:
        raise PlanError(f"{site} stays dense, so there is nothing to draw")
    if svg is None:
        print_result("\n\n".join(draw_text(term) for term in structure.terms))
        return
    for number, term in enumerate(structure.terms):
        file = svg if number == 0 else svg.with_stem(f"{svg.stem}-{number + 1}")
        with writing(file, PlanError):
            write_text(file, draw_svg(term))
        print_note(f"drawn in {file}")
