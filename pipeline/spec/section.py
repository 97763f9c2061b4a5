"""What every section of a spec has in common: frozen, strict, no unknown keys, no NaN."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticKnownError

FieldPath = tuple[str | int, ...]


class Section(BaseModel):
    """A frozen part of a spec. A value of the wrong type is refused, never converted."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )


@dataclass(frozen=True)
class FieldError:
    """One finding about one field: `path` is relative to the section that reports it."""

    path: FieldPath
    expected: str
    found: str


class InvalidFieldsError(ValueError):
    """Several findings at once; validators raise it and the loader adds file and line."""

    def __init__(self, errors: Iterable[FieldError]) -> None:
        self.errors = tuple(errors)
        super().__init__(
            "; ".join(
                f"{format_path(e.path)}: expected {e.expected}, found {e.found}"
                for e in self.errors
            )
        )


def raise_if_any(errors: Iterable[FieldError]) -> None:
    """Raises InvalidFieldsError when there is something to report."""
    found = tuple(errors)
    if found:
        raise InvalidFieldsError(found)


def format_path(path: FieldPath) -> str:
    """`("data", "classes", 2)` becomes `data.classes[2]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "(the whole spec)"


def _normal(value: float) -> float:
    # A subnormal number is never meant, and arithmetic on it loses the digits ε rests on.
    if 0 < abs(value) < sys.float_info.min:
        raise ValueError(f"a number of at least {sys.float_info.min:.3g}")
    return value


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("one line of printable text")
    return text


Line = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_printable)]
Positive = Annotated[float, Field(gt=0), AfterValidator(_normal)]
NotNegative = Annotated[float, Field(ge=0), AfterValidator(_normal)]
Fraction = Annotated[float, Field(ge=0, lt=1), AfterValidator(_normal)]
Count = Annotated[int, Field(ge=1, lt=2**63)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def registered(names: Callable[[], Iterable[str]]) -> AfterValidator:
    """Refuses a text that is none of `names()`.

    A function, because the registries come with torch: they are imported when a spec is
    read, not when the command line starts.
    """

    def check(value: str) -> str:
        known = list(names())
        if value not in known:
            expected = ", ".join(f"'{name}'" for name in known)
            raise PydanticKnownError("literal_error", {"expected": f"one of {expected}"})
        return value

    return AfterValidator(check)
