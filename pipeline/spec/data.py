"""Section `data`: which private images, and what is public about them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.sources import Source
from pipeline.spec.section import Count, FieldError, Line, Section, raise_if_any

BudgetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")]


class Holdout(Section):
    """Real images kept out of training, to test what the synthetic ones are worth.

    `public` says that they may be shown and measured against openly; otherwise every
    number made from them stays in the run's internal folder.
    """

    source: Source
    public: bool = False


class Data(Section):
    """The private set: the budget it draws on, its source, and its declared public facts.

    `records` is N. It is declared, not counted, so that planning opens no data; ingest
    refuses a source that holds another number. Size, channels and classes are chosen
    without looking at the data, too.

    `public` says that these images are public in truth, as in a demonstration: what is
    measured with them, such as the accuracy that real data would reach, may then be shown.
    It changes nothing in the training, which stays private.
    """

    name: BudgetName
    source: Source
    records: Count
    size: Annotated[int, Field(ge=4, le=512)]
    channels: Literal[1, 3]
    classes: Annotated[tuple[Line, ...], Field(min_length=1, strict=False)]
    holdout: Holdout | None = None
    public: bool = False

    @model_validator(mode="after")
    def _unique_classes(self) -> "Data":
        seen: set[str] = set()
        errors = []
        for index, name in enumerate(self.classes):
            if name in seen:
                errors.append(FieldError(("classes", index), "every class once", f"{name!r} again"))
            seen.add(name)
        raise_if_any(errors)
        return self
