"""Section `privacy`: the guarantee that is asked for."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.spec.section import Count, Line, Positive, Section, Seed


class Privacy(Section):
    """(ε, δ) for a record, the clip norm C, and how the noise multiplier σ is found.

    `calibration` names the accountant that finds σ. The ledger always admits by RDP, so a
    plan calibrated under PRV needs a budget as large as its RDP ε, which `umbra plan` states.

    `unit` names what one record stands for, and `records_per_unit` how many records one
    unit (a person, say) may have: the ledger then reports the converted guarantee too.

    A `seed` makes masks and noise reproducible and the run VOID of privacy.
    """

    epsilon: Positive
    delta: Annotated[Positive, Field(lt=1)]
    clip_norm: Positive = 1.0
    calibration: Literal["rdp", "prv"] = "rdp"
    unit: Line = "image"
    records_per_unit: Count = 1
    seed: Seed | None = None
