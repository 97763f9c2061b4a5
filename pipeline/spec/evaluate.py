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

    Figures against a private holdout stay inside, unless they are paid for: `release: dp` releases
    every classifier's accuracy, and with `release_class_counts` the holdout's images of each
    class, by the discrete Laplace mechanism. All of it together costs `release_epsilon` (δ = 0),
    charged to the holdout's part of the data set's budget.
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
    release: Literal["dp"] | None = None
    release_epsilon: Positive = 1.0
    release_class_counts: bool = False

    @property
    def releases(self) -> int:
        """How many queries are released by a charged mechanism; each costs an equal share."""
        if self.release is None:
            return 0
        return len(self.classifiers) + self.release_class_counts

    @model_validator(mode="after")
    def _nothing_idle(self) -> "Evaluate":
        idle = {"release_epsilon", "release_class_counts"} & self.model_fields_set
        if self.release is None:
            # A person who writes these believes that something is released.
            raise_if_any(
                FieldError((name,), "release: dp beside it", "no release")
                for name in sorted(idle)
                if getattr(self, name) != type(self).model_fields[name].default
            )
        return self

    @model_validator(mode="after")
    def _unique_classifiers(self) -> "Evaluate":
        raise_if_any(
            FieldError(("classifiers", index), "every classifier once", f"{name!r} again")
            for index, name in enumerate(self.classifiers)
            if name in self.classifiers[:index]
        )
        return self
