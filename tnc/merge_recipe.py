"""Merge adapters into their base and write the model that they are together, as an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tnc.adapt_recipe import load_base
from tnc.decide.options import as_mapping, build
from tnc.decide.plan import Plan, Total
from tnc.errors import ArtifactError
from tnc.recipe import Clock, Progress
from tnc.report.adapt_report import MergeReport
from tnc.sources import models

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tnc.artifact.manifest import Manifest
    from tnc.rewrite import Compiled

Probe = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class PeftRead:
    """How a checkpoint of PEFT is read: see `tnc.adapters.import_peft`."""

    initial: Path | None = None
    out_proj_times: int | None = None

    def check_unused(self, folder: Path) -> None:
        """Raise ArtifactError where this says something of a folder that is none of PEFT."""
        if self != PeftRead():
            raise ArtifactError(
                f"--initial and --out-proj-times are for checkpoints of PEFT, and {folder} is none",
                hint="leave them out",
            )


def merge(
    base: str,
    folder: Path,
    out: Path | None = None,
    use: Mapping[str, float] | None = None,
    progress: Progress | None = None,
    *,
    force: bool = False,
    peft: PeftRead | None = None,
) -> MergeReport:
    """Add the adapters of a folder to a base, and write an artifact.

    Those in use are added, or those that `use` names, each times its share. The folder is one of
    `tnc adapt`, or a checkpoint of PEFT, read as `peft` says.

    Weights are added up in float32 or wider, and rounded once to the base's dtype. The report says
    how far that moves the outputs on the probe that was kept with the adapters. Raises
    ArtifactError where base and adapters do not fit, or nothing says how to call the model.
    """
    from tnc.adapters import import_peft, storing
    from tnc.adapters.folding import changed_by
    from tnc.adapters.peft.checkpoint import is_checkpoint
    from tnc.artifact.modules import classes_of

    clock = Clock(progress)
    clock("load", 0, 1)
    loaded = load_base(base)
    manifest, classes, source, files = _origin(base, loaded)
    theirs, how = is_checkpoint(folder), peft or PeftRead()
    if theirs:
        adapters = import_peft(
            loaded.model, folder, initial=how.initial, out_proj_times=how.out_proj_times
        )
    else:
        how.check_unused(folder)
        adapters = storing.load(loaded.model, folder)
    adapters.model.eval()
    if use:
        adapters.use(**use)
    kept = None if theirs else storing.read_probe(folder)
    probe = kept or _probe(base, manifest) or loaded.example()
    if probe is None:
        raise ArtifactError(
            "there is no input to check the merge on",
            where=str(folder),
            hint="adapters that `tnc adapt` wrote have one; or call Adapters.unload() in Python",
        )
    clock("merge", 0, 1)
    used = tuple(adapters.active)
    if not used:
        raise ArtifactError(
            "none of the adapters is in use",
            where=str(folder),
            hint=f"name one: --use {adapters.names[0]}",
        )
    count = len({path for name in used for path in adapters.deltas(name)})
    changed = changed_by(adapters)
    before = _outputs(adapters.model, probe)
    drifts = sorted(adapters.merge(), key=lambda drift: -drift.largest)
    merged = adapters.unload()
    merged.requires_grad_(True)
    after = _outputs(merged, probe)
    report = MergeReport(
        adapters=used,
        weights=count,
        difference=max(float((a - b).abs().max()) for a, b in zip(after, before)),
        scale=max(float(b.abs().max()) for b in before),
        drift=drifts[0].largest,
        drifted=drifts[0].weight if drifts[0].largest else "",
        params=sum(parameter.numel() for parameter in merged.parameters()),
    )
    if out is None:
        return report
    from tnc.artifact.saving import Contents, write

    clock("save", 0, 1)
    reason = f"merged with {', '.join(used)}"
    plan = _plan(merged, manifest, changed, reason, probe)
    report = replace(report, folder=str(out))
    made = _compiled(merged, plan, probe, classes or classes_of(loaded.model))
    contents = Contents(source, tuple(files), report=report.as_json())
    write(made, out, contents, force=force)
    return report


def _origin(
    base: str, loaded: Any
) -> tuple[Manifest | None, dict[str, str], dict[str, Any] | None, tuple[Path, ...]]:
    """Return an artifact's manifest, the classes of its source's modules, its source and files."""
    from tnc.artifact.manifest import NAME, Manifest
    from tnc.artifact.modules import classes_of

    folder = Path(base)
    if not (folder / NAME).is_file():
        kind = {"kind": "hf", "path": base} if folder.is_dir() else base
        return None, {}, as_mapping(models, build(models, kind)), loaded.files
    manifest = Manifest.read(folder)
    if manifest.source is None:
        raise ArtifactError(
            "the artifact does not say how to build its model",
            where=base,
            hint="merge in Python: tnc.adapters.load(model, folder).unload()",
        )
    skeleton = build(models, dict(manifest.source)).skeleton(folder)
    own = ("README.md", "plan.json", "spec.yaml", "report.html")
    files = tuple(
        folder / name
        for name in manifest.files
        if "/" not in name and name not in own and not name.endswith(".safetensors")
    )
    return manifest, classes_of(skeleton), dict(manifest.source), files


def _probe(base: str, manifest: Manifest | None) -> Probe | None:
    if manifest is None:
        return None
    from safetensors.torch import load_file

    from tnc.artifact.manifest import PROBE
    from tnc.artifact.probing import probe_inputs

    return probe_inputs(manifest.probe, load_file(Path(base) / PROBE))


def _outputs(model: nn.Module, probe: Probe) -> tuple[Tensor, ...]:
    from tnc.rewrite.contract import outputs_of

    return tuple(each.double() for each in outputs_of(model, probe) if each.is_floating_point())


def _plan(
    model: nn.Module, manifest: Manifest | None, weights: set[str], reason: str, probe: Probe
) -> Plan:
    """Return the base's plan with what the merge made of it: structures as they are now."""
    from tnc.adapters.folding import folded_plan
    from tnc.capture import capture

    if manifest is not None:
        return folded_plan(Plan.from_json({**manifest.plan, "digest": ""}), model, weights, reason)
    count = sum(parameter.numel() for parameter in model.parameters())
    trace = capture(model, *probe, graph=False)
    flops = sum(site.cost.flops for site in trace.sites)
    total = Total(count, count, flops, flops)
    return Plan(trace.fingerprint, 0, (), (), (), (), "sum", total, total, (reason,))


def _compiled(model: nn.Module, plan: Plan, probe: Probe, classes: dict[str, str]) -> Compiled:
    from tnc.capture import capture
    from tnc.rewrite import Compiled

    return Compiled(model, plan, capture(model, *probe, graph=False), (), (), probe, classes)
