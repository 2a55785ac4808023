"""Plans of adapters: which weight gets which delta, of what size, and why others get none."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from tnc.decide.plan import Skip
from tnc.net import digest

VERSION = 1


@dataclass(frozen=True)
class AdapterEntry:
    """One delta: of which adapter, beside which weight, by which method and structure.

    `trained` are its trained parameters, `weight_params` those of the weight itself; `reason` says
    what chose the size, `rule` where the rule was written.
    """

    adapter: str
    weight: str
    method: str
    structure: str
    trained: int
    weight_params: int
    reason: str
    rule: str


@dataclass(frozen=True)
class AdapterPlan:
    """What adapting a model would do: entries, and per adapter the weights that are left alone.

    `model_params` counts the base model, `beside` are parameters that are trained as they are, with
    their number of entries.
    """

    fingerprint: str
    seed: int
    entries: tuple[AdapterEntry, ...]
    skips: tuple[tuple[str, Skip], ...]
    model_params: int
    beside: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters by name."""
        return tuple(dict.fromkeys(entry.adapter for entry in self.entries))

    def trained(self, *adapters: str) -> int:
        """Count the trained parameters of some adapters (of all), without those beside them."""
        return sum(e.trained for e in self.entries if not adapters or e.adapter in adapters)

    def share(self, *adapters: str) -> float:
        """Return trained parameters as a share of the base model's."""
        return self.trained(*adapters) / max(1, self.model_params)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what was decided: not of explanations."""
        data = self.to_json()
        for told in ("notes", "digest"):
            data.pop(told, None)
        for entry in (*data["entries"], *data["skips"]):
            entry.pop("reason")
            entry.pop("rule", None)
        return digest(data)

    def to_json(self) -> dict[str, Any]:
        """Write the plan as plain data, with sums per adapter."""
        return {
            "version": VERSION,
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "model_params": self.model_params,
            "adapters": [
                {"name": name, "trained": self.trained(name), "share": self.share(name)}
                for name in self.names
            ],
            "trained": self.trained(),
            "share": self.share(),
            "entries": [asdict(entry) for entry in self.entries],
            "skips": [{"adapter": name, **asdict(skip)} for name, skip in self.skips],
            "beside": [list(pair) for pair in self.beside],
            "notes": list(self.notes),
        }
