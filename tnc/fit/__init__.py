"""Fits: the cores of a structure that come closest to a weight, in a metric.

One file a fit; to add one, add a file. `als` serves every equation, the others are faster or exact
where their pattern of cores and bonds applies.
"""

from tnc.fit.als import polish
from tnc.fit.fitting import choose, fit_structure
from tnc.fit.folding import reconstruct
from tnc.fit.kept import kept
from tnc.fit.method import DirectFit, Fit, Fitted, Outcome, fits
from tnc.fit.metric import Metric, Moment, relative_error, widest
from tnc.fit.spectra import spectrum, tails

__all__ = [
    "DirectFit",
    "Fit",
    "Fitted",
    "Metric",
    "Moment",
    "Outcome",
    "choose",
    "fit_structure",
    "fits",
    "kept",
    "polish",
    "reconstruct",
    "relative_error",
    "spectrum",
    "tails",
    "widest",
]
