"""Alternating least squares from the adjoints: every equation, every sum, every metric."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tnc.derive import core_std
from tnc.fit.descent import Descent, Settings
from tnc.fit.kept import kept
from tnc.fit.method import DirectFit, Fit, Outcome, fits
from tnc.fit.metric import Metric
from tnc.net import Network, Structure


class ALS(Fit):
    """`min_core ||sqrt(G) (W - J_core(core)) sqrt(C)||` for one core after another.

    Starts from the first special fit that takes a term (fitted to what the terms before it leave),
    else from a seeded random start at the scale of the weight.
    """

    name = "als"
    takes_complex = True
    aware = "both"
    order = 9

    def accepts(self, structure: Structure) -> str:
        constant = [name for name, kind in structure.kinds.items() if kind == "constant"]
        return f"core {constant[0]} is constant and its value is not given" if constant else ""

    def outcome(self, weight: Tensor, structure: Structure, metric: Metric, seed: int) -> Outcome:
        cores = start(weight, structure, metric, seed)
        return descend(weight, structure, cores, metric, Settings())


def start(
    weight: Tensor,
    structure: Structure,
    metric: Metric,
    seed: int,
    held: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return start values of all cores, `held` ones as given.

    Terms without held cores are fitted one after another to what is left of the weight.
    """
    from tnc.fit.folding import reconstruct

    held = held or {}
    scale = float(weight.square().mean().sqrt()) or 1.0
    noise = core_std(structure, scale)
    found: dict[str, Tensor] = {}
    rest = weight
    # Terms with given cores first: they are known best.
    given = {id(term): any(c.name in held for c in term.equation.cores) for term in structure.terms}
    for place, term in sorted(enumerate(structure.terms), key=lambda p: not given[id(p[1])]):
        alone = Structure(structure.signature, (term,))
        special = None if given[id(term)] else special_fit(alone)
        if special is None:
            found |= _random(term, noise, held, seed + place, weight)
        else:
            found |= special(rest, alone, metric, seed + place)
        rest = rest - reconstruct(alone, found)
    return found


def special_fit(structure: Structure, complex_weight: bool = False) -> DirectFit | None:
    """Return the first fit in the order of preference that takes the structure whole."""
    for fit in sorted(fits.all().values(), key=lambda f: f.order):
        able = isinstance(fit, DirectFit) and (fit.takes_complex or not complex_weight)
        if able and isinstance(fit, DirectFit) and not fit.accepts(structure):
            return fit
    return None


def descend(
    weight: Tensor,
    structure: Structure,
    cores: Mapping[str, Tensor],
    metric: Metric,
    settings: Settings,
    held: frozenset[str] = frozenset(),
) -> Outcome:
    """Run alternating least squares from given cores; `held` cores stay as they are."""
    return Descent(weight, structure, cores, metric, settings, held).run()


def polish(
    weight: Tensor,
    structure: Structure,
    cores: Mapping[str, Tensor],
    metric: Metric,
    sweeps: int = 8,
    held: frozenset[str] = frozenset(),
) -> Outcome:
    """Improve cores in a metric by a few sweeps; the error never rises."""
    settings = Settings(sweeps=sweeps, tolerance=1e-3)
    return descend(weight, structure, cores, metric, settings, held)


def _random(
    term: Network, std: Mapping[str, float], held: Mapping[str, Tensor], seed: int, like: Tensor
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for core in term.equation.cores:
        if core.name in held:
            found[core.name] = held[core.name]
            continue
        drawn = torch.randn(term.shape(core), generator=generator, dtype=torch.float64)
        if core.stored:
            drawn = kept(drawn, term.stored(core))
        found[core.name] = drawn.to(like.device) * std.get(core.name, 1.0)
    return found


fits.register(ALS.name)(ALS())
