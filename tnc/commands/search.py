"""`tnc search`: run a search, go on with it, look at it, take networks out of it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tnc.commands.terminal import (
    AsJson,
    Sets,
    print_json,
    print_note,
    print_result,
    working,
)
from tnc.errors import SearchError

if TYPE_CHECKING:
    from tnc.explore import Found, Limits
    from tnc.searching.result import Result

app = typer.Typer(no_args_is_help=True, help="Search for structures; runs survive kills.")
Name = Annotated[
    str,
    typer.Argument(
        help="A search spec, the bare name of one of tnc's, or a run's run.json: again."
    ),
]
Folder = Annotated[Path, typer.Argument(help="The folder of a run.")]
Count = Annotated[int, typer.Option(min=1, help="How many networks.")]


@app.command()
def run(
    spec: Name,
    set_: Sets = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder of the run; runs/NAME by default.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="A record that runs share, instead of the folder's own.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Search as a spec says, in a folder from which it goes on after a kill."""
    from tnc.explore import size_of
    from tnc.searching.folder import RUN, RunFolder, free_folder
    from tnc.searching.running import begin, prepare
    from tnc.searching.spec import read_search

    again = Path(spec).name == RUN and Path(spec).is_file()
    whole = Path(spec).absolute().parent
    found = (
        RunFolder.open(whole).spec(tuple(set_ or ())) if again else read_search(spec, set_ or ())
    )
    place = out or free_folder(whole.name if again else Path(spec).stem)
    with working() as progress:
        progress("prepare", 0, 1)
        prepared = prepare(found)
        print_note(f"run: {place}, {size_of(prepared.problem.space, 10_000)}")
        watch = _watch(progress, found.search.limits.limits())
        result = begin(prepared, place, record, watch, print_note)
    _show(result, place, as_json)


@app.command()
def resume(
    folder: Folder,
    set_: Sets = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="Evaluate again what hung or killed its workers.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Go on with a run; --set may change its limits and its engine."""
    from tnc.searching.folder import RunFolder
    from tnc.searching.running import ended
    from tnc.searching.running import resume as go_on

    found, overrides = RunFolder.open(folder), tuple(set_ or ())
    limits = found.spec(overrides).search.limits.limits()
    before = ended(found)
    if before and not overrides and not retry:
        print_note(f"it came to its end: {before}; with --set search.limits.KEY=VALUE it goes on")
    with working() as progress:
        result = go_on(found, overrides, _watch(progress, limits), print_note, retry)
    _show(result, folder, as_json)


@app.command()
def status(folder: Folder, as_json: AsJson = False) -> None:
    """Show how far a run is, also while it is going on; nothing is written."""
    from tnc.searching.folder import RunFolder
    from tnc.searching.running import load

    found = RunFolder.open(folder)
    live, result = found.live, load(found)
    state = "running" if live else f"ended: {result.ended}" if result.ended else "interrupted"
    if as_json:
        print_json("search-status", {"state": state, "folder": str(folder)} | result.to_json(1))
        return
    print_result(f"{folder}: {state}")
    print_result(str(result))
    print_result(_counted(result))
    if state == "interrupted":
        print_result(f"{found.resume} goes on with it")


@app.command()
def best(folder: Folder, count: Count = 10, as_json: AsJson = False) -> None:
    """Show the best networks of a run."""
    from tnc.searching.folder import RunFolder
    from tnc.searching.running import load

    result = load(RunFolder.open(folder))
    if as_json:
        print_json("search-best", {"folder": str(folder)} | result.to_json(count))
    else:
        print_result(_table(result, count))


@app.command()
def export(
    folder: Folder,
    out: Annotated[
        Path,
        typer.Option(
            help="The file: .json, .txt, .safetensors with the cores; for a model's weight also "
            ".yaml (a spec) and .plan.json (a plan for `tnc compile --plan`)."
        ),
    ],
    rank: Annotated[int, typer.Option(min=1, help="The first of them, as `best` ranks them.")] = 1,
    count: Count = 1,
    as_json: AsJson = False,
) -> None:
    """Write the best networks of a run to a file."""
    from tnc.searching.exporting import export as write
    from tnc.searching.folder import RunFolder
    from tnc.searching.running import load

    chosen = load(RunFolder.open(folder)).ranked(rank + count - 1)[rank - 1 :]
    if not chosen and rank > 1:
        raise SearchError(
            f"the run has no network of rank {rank}", hint=f"tnc search best {folder}"
        )
    target = load(RunFolder.open(folder)).spec.search.target
    if out.name.endswith((".yaml", ".plan.json")):
        _place(target, chosen, out)
    else:
        write(chosen, out)
    if as_json:
        networks = [candidate.to_json() for candidate in chosen]
        print_json("search-export", {"file": str(out), "networks": networks})
    else:
        print_note(f"written: {out}")


def _place(target: Any, chosen: list[Any], out: Path) -> None:
    """Write the spec that puts a network into the model that its weight is of, or its plan."""
    from ruamel.yaml import YAML

    from tnc.files import write_text, writing

    if len(chosen) != 1:
        raise SearchError(f"{len(chosen)} networks are no spec", hint="export one of them")
    data = target.placed(chosen[0].topology)
    if out.suffix == ".yaml":
        stream = io.StringIO()
        YAML().dump(data, stream)
        with writing(out, SearchError):
            write_text(out, stream.getvalue())
        return
    from tnc import api
    from tnc.decide.spec import Spec
    from tnc.inputs import load

    spec = Spec.model_validate(data)
    with working() as progress:
        inputs = load(spec)
        api.plan(inputs.loaded.model, spec, progress=progress, **inputs.given).save(out)


@app.command()
def report(
    folder: Folder,
    out: Annotated[
        Path | None, typer.Option(help="The page to write; report.html in the folder by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a page about a run: best so far, front, drawings, ranks, counts, how to repeat it."""
    from tnc.commands.report import write_page
    from tnc.searching.folder import RunFolder

    RunFolder.open(folder)
    write_page([str(folder)], out or folder / "report.html", as_json)


@app.command()
def schema(
    out: Annotated[Path | None, typer.Option(help="Write the schema to this file.")] = None,
) -> None:
    """Print the JSON schema of search specs, for editors."""
    import json

    from tnc.files import write_text, writing
    from tnc.searching.spec import schema as made

    text = json.dumps(made(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if out is None:
        typer.echo(text, nl=False)
    else:
        with writing(out, SearchError):
            write_text(out, text)
        print_note(f"schema written to {out}")


def _watch(progress: Any, limits: Limits) -> Callable[[Found], None]:
    from tnc.searching.progress import Progress

    tell, total = Progress(limits), limits.evaluations or 0

    def watch(found: Found) -> None:
        progress("search", found.counts.evaluations, total, tell(found))

    return watch


def _show(result: Result, folder: Path, as_json: bool) -> None:
    if as_json:
        print_json("search", {"folder": str(folder)} | result.to_json())
        return
    print_result(_table(result, 5))
    print_result(f"ended: {result.ended}")
    print_result(_counted(result))
    print_result(f"run: {folder}")


def _counted(result: Result) -> str:
    counts = result.counts
    told = [
        f"{counts.evaluations} evaluations",
        f"{counts.fitted} of them fitted by this run",
        f"{counts.hits} hits",
        f"{counts.refused} refused",
        f"{counts.interpolated} interpolated",
        f"{counts.failed} failed",
        f"{counts.starts} starts",
    ]
    return f"{', '.join(told)}; {result.found.spent:.1f} seconds"


def _table(result: Result, count: int) -> Any:
    from tnc.report.table import table_of

    found = table_of(">rank", ">score", ">params", ">ratio", ">rse", "network")
    for rank, candidate in enumerate(result.ranked(count), 1):
        topology = candidate.topology
        found.add_row(
            str(rank),
            f"{candidate.score:.5g}",
            f"{topology.parameters:,}",
            f"{topology.ratio:.4g}",
            f"{candidate.scored.rse:.3g}",
            str(topology),
        )
    return found
