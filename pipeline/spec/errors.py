"""SpecError: everything that is wrong with a spec, said once and for its writer."""

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.spec.section import FieldPath, format_path
from privacy.errors import InvalidRequest


@dataclass(frozen=True)
class Problem:
    """One thing wrong: where it stands, what was expected there and what was found."""

    file: str
    line: int | None
    path: FieldPath
    expected: str
    found: str
    hint: str = ""

    @property
    def field(self) -> str:
        """The field as a reader writes it: `data.classes[2]`."""
        return format_path(self.path)

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        hint = f" ({self.hint})" if self.hint else ""
        field = f"{self.field}: " if self.path else ""
        return f"{place}: {field}expected {self.expected}, found {self.found}{hint}"


class SpecError(InvalidRequest):
    """A spec that cannot be run; `problems` are in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line or 0))
        super().__init__("\n".join(map(str, self.problems)))
