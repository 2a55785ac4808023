"""Core shapes of one tensor: the packing problem, every solver of it, short lists."""

from tnc.decide.packing.baselines import bang_for_buck, greedy
from tnc.decide.packing.energy import core_spectra, energy_table, pack_by_energy
from tnc.decide.packing.exact import pack_exact
from tnc.decide.packing.listing import rescore, shortlist
from tnc.decide.packing.orthogonal_iteration import choose_by_iteration, iterated_error
from tnc.decide.packing.problem import CoreShape, Packing
from tnc.decide.packing.program import pack_program

__all__ = (
    "CoreShape",
    "Packing",
    "bang_for_buck",
    "choose_by_iteration",
    "core_spectra",
    "energy_table",
    "greedy",
    "iterated_error",
    "pack_by_energy",
    "pack_exact",
    "pack_program",
    "rescore",
    "shortlist",
)
