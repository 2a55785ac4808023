"""What capture finds out about a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch.fx import GraphModule

from tnc.decide.site import Site
from tnc.errors import CaptureError


@dataclass(frozen=True)
class Link:
    """Two layers with nothing between them: every reader of `first`'s output is linked to it.

    `kind` is the two roles, such as linear-linear, conv-batchnorm, layernorm-linear or
    scale-linear (a product with a one-dimensional parameter: RMS norms). `first` and `second` are
    module paths, each called once. A norm may have several links, then its output is read by
    those linear layers and by nothing else; every other first layer has one.
    """

    kind: str
    first: str
    second: str


@dataclass(frozen=True)
class Traced:
    """One module and how its graph was made.

    `how` is 'export', 'symbolic' (torch.fx, of this module alone), or 'recorded' where neither
    works: then `graph` is None and `reason` tells why; its sites and links are known all the same.
    """

    path: str
    how: str
    graph: GraphModule | None
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Trace:
    """The sites of a model with the facts that passes need. No weights, but graphs refer to them.

    `sites` are sorted by name. `untraced` names every other parameter of two or more dimensions
    with the reason why it is left alone. `links` are neighbours without anything between.
    `shared_inputs` are groups of sites that read one tensor in one module (q, k, v). `calls`
    counts the calls of every module, in the order of execution. `dead` are parameters that no
    output depends on.
    `fingerprint` is of names, shapes, dtypes, ties and classes, not of values.
    """

    sites: tuple[Site, ...]
    untraced: tuple[tuple[str, str], ...]
    links: tuple[Link, ...]
    shared_inputs: tuple[tuple[str, ...], ...]
    calls: Mapping[str, int]
    dead: tuple[str, ...]
    fingerprint: str
    graphs: tuple[Traced, ...] = ()

    @cached_property
    def _by_name(self) -> dict[str, Site]:
        return {alias: site for site in self.sites for alias in site.aliases}

    def site(self, name: str) -> Site:
        """Return a site by any of its parameter's names. Raises CaptureError with the reason."""
        if name in self._by_name:
            return self._by_name[name]
        reason = dict(self.untraced).get(name, "the model has no such parameter")
        raise CaptureError(
            f"{name!r} is no site: {reason}", hint="`Trace.sites` and `.untraced` list all names"
        )

    @property
    def graph(self) -> GraphModule | None:
        """The graph of the whole model, where there is one."""
        return next((traced.graph for traced in self.graphs if not traced.path), None)

    @property
    def how(self) -> str:
        """How the whole model was traced: export, symbolic or recorded."""
        return next((traced.how for traced in self.graphs if not traced.path), "recorded")
