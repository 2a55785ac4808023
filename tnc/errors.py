"""Every error that a user can cause: what is wrong, where, and what to do."""

from __future__ import annotations


class TncError(Exception):
    """Say what is wrong (`message`), where (`where`), and what to do (`hint`).

    >>> print(PlanError("rank 0 is not positive", where="site 'fc1'", hint="give at least 1"))
    rank 0 is not positive
      at: site 'fc1'
      try: give at least 1
    """

    exit_code = 1

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message, self.where, self.hint = message, where, hint

    def __str__(self) -> str:
        lines = [self.message]
        if self.where:
            lines.append(f"  at: {self.where}")
        if self.hint:
            lines.append(f"  try: {self.hint}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.where, self.hint))


def _rebuild(kind: type[TncError], message: str, where: str, hint: str) -> TncError:
    return kind(message, where=where, hint=hint)


class SpecError(TncError):
    """A spec that cannot be read or understood."""

    exit_code = 2


class EquationError(TncError):
    """An equation that is not well formed, or sizes that do not fit it."""

    exit_code = 2


class UnknownName(TncError):
    """A name that no registered thing has."""

    exit_code = 2


class DuplicateName(TncError):
    """Two things registered under one name."""


class MissingExtra(TncError):
    """An optional dependency that is not installed."""

    exit_code = 2


class SourceError(TncError):
    """A model or data source that cannot be loaded."""

    exit_code = 2


class CaptureError(TncError):
    """A model that cannot be captured, or a forward pass that fails."""

    exit_code = 2


class PlanError(TncError):
    """A plan that cannot be made, or does not fit the model it is applied to."""

    exit_code = 2


class InfeasibleBudget(TncError):
    """A budget that no plan can meet."""

    exit_code = 3


class QualityGate(TncError):
    """A measured quality outside of what the spec demands."""

    exit_code = 4


class FitError(TncError):
    """A fit that does not apply, or does not converge."""

    exit_code = 2


class PassError(TncError):
    """A pass that broke its contract, or cannot run."""


class KernelError(TncError):
    """A layer program that cannot be built."""


class BindError(TncError):
    """Optimizer state that cannot be bound."""


class ArtifactError(TncError):
    """An artifact that is missing, corrupt or of another version."""

    exit_code = 2


class Interrupted(TncError):
    """Work that a signal ended, and that can be resumed."""

    exit_code = 5


class SearchError(TncError):
    """A search that cannot begin or go on."""

    exit_code = 2
