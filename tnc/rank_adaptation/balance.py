"""The balanced gauge: bonds in the basis of singular vectors, both sides of equal norms."""

from __future__ import annotations

from tnc.rank_adaptation.adapted import Adapted
from tnc.rank_adaptation.tree import truncation


def balance_(work: Adapted) -> None:
    """Bring every bond into the balanced gauge, largest singular value first.

    The weight stays; bonds beyond full rank shrink to it. The optimizer's state of the cores is
    dropped, since second moments do not survive a general change of coordinates. A weight of zero,
    such as a fresh delta's, has no singular vectors: its cores stay as they are.
    """
    work.forget_()
    for bond, rank in work.ranks.items():
        found = truncation(work.network, work.values, bond, rank)
        if found.empty:
            return
        work.insert_(bond, found.into, found.out)
