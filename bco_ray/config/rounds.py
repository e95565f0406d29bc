"""How a round mixes its votes: older ones, age, answers of other versions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from bco_ray.config.section import Positive, Section


class RoundsSpec(Section):
    """`older`: the share of a round's votes that are older ones of the server's log, where `data.feedback` says
    `feedback:`; as many as there are at most.

    `half_life_days`: a vote so many days older than the newest counts half. `off_policy_weight`: what a vote counts
    that is not known to be on an answer of the version that training starts from.
    """

    older: float = Field(default=0.0, ge=0, lt=1)
    half_life_days: Positive | None = None
    off_policy_weight: Annotated[float, Field(gt=0, le=1)] = 1.0
