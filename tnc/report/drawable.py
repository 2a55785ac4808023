"""Whatever holds networks, as panels of a drawing: a text, a family, a file, a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tnc.decide.options import build
from tnc.derive.draw import Panel
from tnc.errors import ArtifactError, PlanError, SpecError, TncError
from tnc.explore import Topology
from tnc.net import Network, Signature, Structure, from_json, parse_network
from tnc.registry import normalise
from tnc.structures import families

_KINDS = (
    "an equation with sizes ('B[o r] A[r i] : i -> o | i=8 o=4 r=2'), a topology ('3x3x3 0-1:2 "
    "1-2:2'), a structure family with --shape, an artifact or a plan with a site, the folder of a "
    "search, or a file of networks (.json, .txt, .safetensors)"
)
_NAME = re.compile(r"[A-Za-z][\w-]*(\{.*\})?")


def panels_of(
    what: str,
    site: str = "",
    shape: str = "",
    options: Sequence[str] = (),
    rank: int | None = None,
    count: int = 1,
) -> list[Panel]:
    """Return what is to be drawn. Raises TncError that says what can be.

    `shape`, `options` and `rank` are for a family, `site` for an artifact or plan, `count` (the
    best so many) for a search.
    """
    path = Path(what)
    family = _NAME.fullmatch(what) and normalise(what.partition("{")[0]) in families.all()
    if not family and (shape or options or rank is not None):
        raise SpecError(
            f"--shape, --set and --rank are for a structure family, {what!r} is none",
            hint=f"one of {', '.join(families.all())}",
        )
    with_sites = path.is_dir() or path.suffix == ".json"
    if site and not with_sites:
        raise SpecError(f"a site is of an artifact or a plan, {what!r} is neither")
    if family:
        return [_of_family(what, shape, options, rank)]
    if path.is_dir():
        return _of_folder(path, site, count)
    if path.suffix in (".json", ".txt", ".safetensors") and not what.startswith("{"):
        return _of_file(path, site)
    return [Panel(_of_text(what))]


def _of_text(text: str) -> tuple[Network, ...]:
    """Read a network, the terms of a sum, a topology, or the JSON of either."""
    if text.lstrip().startswith("{"):
        return _of_data(_loaded(text, "the text"), "the text")[0].networks
    if "[" in text:
        return tuple(parse_network(term) for term in text.split(" + "))
    if re.match(r"\s*\d+x\d", text):
        return (Topology.parse(text).network(),)
    raise SpecError(f"{text!r} is nothing that can be drawn", hint=f"name {_KINDS}")


def _of_family(name: str, shape: str, options: Sequence[str], rank: int | None) -> Panel:
    """Return a member of a family for a weight, every rank at most `rank`, or its largest."""
    if not shape:
        raise SpecError(
            f"the family {name!r} needs the shape of a weight", hint="add --shape OUTxIN: 768x3072"
        )
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", shape):
        raise SpecError(
            f"--shape {shape} is no shape", hint="OUTxIN, or OUTxINxHEIGHTxWIDTH: 64x32x3x3"
        )
    sizes = tuple(map(int, shape.split("x")))
    signature = Signature(sizes[:1], sizes[1:])
    made = build(families, _with_options(name, options))
    why = made.refuses(signature)
    if why:
        raise PlanError(f"{name} refuses a weight {signature}: {why}")
    template = made.template(signature)
    most = template.bound
    ranks = most if rank is None else {key: min(rank, top) for key, top in most.items()}
    return Panel(template.at(ranks).terms)


def _with_options(name: str, options: Sequence[str]) -> Any:
    if not options:
        return name
    from tnc.decide.specfile import override
    from tnc.decide.spectree import parse_tree

    if "{" in name:
        raise SpecError(f"{name} has options already", hint="write all of them by --set, or none")
    tree = parse_tree(f"kind: {name}", "--set")
    for assignment in options:
        tree = override(tree, assignment)
    return tree.plain


def _of_folder(path: Path, site: str, count: int) -> list[Panel]:
    from tnc.searching.folder import RUN

    if (path / RUN).is_file():
        if site:
            raise SpecError(f"{path} is a search, which has no site {site!r}")
        return _of_search(path, count)
    if (path / "plan.json").is_file():
        return [_of_plan(path / "plan.json", site)]
    raise ArtifactError(
        f"{path} is neither an artifact nor a search: it has no plan.json and no {RUN}",
        hint="`tnc compile SPEC --out DIR` makes one, `tnc search run SPEC --out DIR` the other",
    )


def _of_search(path: Path, count: int) -> list[Panel]:
    from tnc.errors import SearchError
    from tnc.searching.folder import RunFolder
    from tnc.searching.running import load

    best = load(RunFolder.open(path)).ranked(count)
    if not best:
        raise SearchError(f"the search {path} has found nothing to draw yet")
    return [
        Panel(
            (each.network,),
            f"{place}: score {each.score:.4g}, {each.topology.parameters:,} parameters, "
            f"error {each.scored.rse:.2g}",
        )
        for place, each in enumerate(best, 1)
    ]


def _of_plan(path: Path, site: str) -> Panel:
    from tnc.decide.plan import Plan

    plan = Plan.read(path)
    if not site:
        drawn = [entry.site for entry in plan.entries if entry.structure]
        more = f" and {len(drawn) - 5} more" if len(drawn) > 5 else ""
        raise PlanError(
            f"{path} holds {len(plan.entries)} sites, one has to be named",
            hint=f"tnc draw WHAT SITE: {', '.join(drawn[:5])}{more}",
        )
    structure = plan.entry(site).structure
    if structure is None:
        raise PlanError(f"{site} stays dense, so there is nothing to draw", where=str(path))
    return Panel(structure.terms)


def _of_file(path: Path, site: str) -> list[Panel]:
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(str(path), "np") as file:
                text = (file.metadata() or {}).get("structure", "")
        else:
            text = path.read_text(encoding="utf-8")
    except Exception as error:
        raise ArtifactError(f"cannot read {path}: {error}", hint=f"name {_KINDS}") from error
    if path.suffix == ".txt":
        return [Panel(_of_text(line)) for line in text.splitlines() if line.strip()]
    if not text:
        raise ArtifactError(f"{path} holds tensors, but no structure of `tnc search export`")
    data = _loaded(text, str(path))
    if not isinstance(data, Mapping):
        raise ArtifactError(f"{path} holds no network", hint=f"name {_KINDS}")
    if "entries" in data or site:
        return [_of_plan(path, site)]
    return _of_data(data, str(path))


def _of_data(data: Any, where: str) -> list[Panel]:
    """Read the JSON of networks that were exported, of a structure, of a topology."""
    try:
        if "networks" in data:
            return [_told(each, place) for place, each in enumerate(data["networks"], 1)]
        if "terms" in data:
            return [Panel(from_json(data).terms)]
        if "bonds" in data:
            return [Panel((Topology.from_json(data).network(),))]
    except TncError:
        raise
    except Exception as error:
        raise ArtifactError(f"{where} holds no network: {error!r}") from error
    raise ArtifactError(
        f"{where} holds no network",
        hint="it needs the keys of a plan, of a structure (outputs, inputs, terms), of a topology "
        "(modes, bonds), or what `tnc search export` writes",
    )


def _told(each: Mapping[str, Any], place: int) -> Panel:
    structure: Structure = from_json(each["structure"])
    return Panel(structure.terms, f"{place}: score {each['score']:.4g}")


def _loaded(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ArtifactError(f"{where} is no JSON: {error}") from error
