"""What every part of a spec is."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from tnc.decide.spec_fields import OneOrMore, not_empty
from tnc.decide.spec_problems import tell

Patterns = Annotated[tuple[str, ...], AfterValidator(not_empty), OneOrMore()]


class Part(BaseModel):
    """A piece of a spec: frozen, no unknown keys, errors in words."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="wrap")
    @classmethod
    def _told(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            raise tell(error, list(cls.model_fields)) from None
