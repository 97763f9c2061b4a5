"""Section `evaluate`: what the synthetic images are measured by."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.spec.section import (
    Count,
    FieldError,
    Positive,
    Section,
    Seed,
    raise_if_any,
    registered,
)


def _classifiers() -> Iterable[str]:
    from eval.classifiers import CLASSIFIERS

    return CLASSIFIERS


ClassifierName = Annotated[str, registered(_classifiers)]


class Evaluate(Section):
    """Classifiers trained on synthetic images and tested on real ones; feature statistics.

    `features` is "builtin" (the small extractor that comes with Umbra) or the path of a
    TorchScript file, such as the 2015 Inception. `neighbours` is k of precision, recall,
    density and coverage.
    """

    classifiers: Annotated[tuple[ClassifierName, ...], Field(min_length=1, strict=False)] = (
        "logreg",
        "mlp",
        "cnn",
    )
    epochs: Count = 50
    learning_rate: Positive = 3e-4
    features: Literal["builtin"] | Annotated[Path, Field(strict=False)] = Field(
        "builtin", union_mode="left_to_right"
    )
    neighbours: Count = 5
    seed: Seed = 0

    @model_validator(mode="after")
    def _unique_classifiers(self) -> "Evaluate":
        raise_if_any(
            FieldError(("classifiers", index), "every classifier once", f"{name!r} again")
            for index, name in enumerate(self.classifiers)
            if name in self.classifiers[:index]
        )
        return self
