"""Numbers within bounds, as types of fields; pydantic checks them, and tyro reads them as plain numbers."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

__all__ = ["BelowOne", "NonNegativeFloat", "NonNegativeInt", "PositiveFloat", "PositiveInt", "UpToOne"]

PositiveInt = Annotated[int, Field(ge=1)]
UpToOne = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
