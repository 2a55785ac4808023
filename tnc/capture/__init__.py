"""Capture: sites, links and graphs of a model; measuring what flows through them."""

from tnc.capture.capturing import capture
from tnc.capture.fingerprint import fingerprint
from tnc.capture.kinds import layer_kind
from tnc.capture.measure import measure
from tnc.capture.measured import Measured, Measurements
from tnc.capture.shares import Share, shares
from tnc.capture.trace import Link, Trace, Traced

__all__ = [
    "Link",
    "Measured",
    "Measurements",
    "Share",
    "Trace",
    "Traced",
    "capture",
    "fingerprint",
    "layer_kind",
    "measure",
    "shares",
]
