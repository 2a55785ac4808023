"""Core shapes of one tensor: the packing problem, every solver of it, short lists."""

from tnc.decide.packing.baselines import bang_for_buck, greedy
from tnc.decide.packing.energy import core_spectra, energy_table, pack_by_energy
from tnc.decide.packing.exact import pack_exact
from tnc.decide.packing.listing import rescore, shortlist
from tnc.decide.packing.problem import CoreShape, Packing
from tnc.decide.packing.program import pack_program

__all__ = (
    "CoreShape",
    "Packing",
    "bang_for_buck",
    "core_spectra",
    "energy_table",
    "greedy",
    "pack_by_energy",
    "pack_exact",
    "pack_program",
    "rescore",
    "shortlist",
)
