"""Base of every part of the audit record."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Identifier = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=80)]
PicturePath = Annotated[str, Field(pattern=r"^images/[a-z0-9][a-z0-9.-]*\.png$", max_length=120)]
Setting = str | int | float | bool | None
OutcomeName = Literal["converged", "iteration_limit", "diverged", "not_applicable", "failed"]
LabelKnowledge = Literal["granted", "recovered"]
LossNamedBy = Literal["tape", "auditor", "nobody"]
Role = Literal["plain", "adaptive"]
PlanStatus = Literal["run", "not_applicable", "refused", "over_budget"]
VerdictName = Literal[
    "leaks",
    "leaks to an adaptive attacker",
    "leaks in part",
    "not shown to leak",
    "held against everything tried",
    "not known",
]
LineState = Literal[
    "leaks",
    "leaks to an adaptive attacker",
    "leaks in part",
    "held",
    "not shown",
    "not known",
    "bounded",
    "no guarantee",
    "refuted",
]
"""Of images and labels the first six, of guarantees the last three."""


def finite(value: float | None) -> float | None:
    """The value as a JSON number, or None where it is None, NaN or infinite.

    >>> finite(float("inf")) is None, finite(0.5)
    (True, 0.5)
    """
    return float(value) if value is not None and math.isfinite(value) else None


class Entry(BaseModel):
    """A part of the record: immutable, and no unknown field is let in."""

    model_config = ConfigDict(extra="forbid", frozen=True)
