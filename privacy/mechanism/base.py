"""What every mechanism can do, whatever its parameters."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self


@dataclass(frozen=True)
class Repeatable:
    """A mechanism that is run `steps` times with equal parameters.

    Attributes:
        record_type: its name in the ledger, kept for ever.
    """

    record_type: ClassVar[str]

    def with_steps(self, steps: int) -> Self:
        """Returns the same mechanism run for `steps` steps; raises InvalidRequest below 1."""
        return dataclasses.replace(self, steps=steps)  # type: ignore[call-arg]  # all have steps

    def to_record(self) -> dict[str, str | float | int]:
        """Returns the type's name and the raw parameters, ready for canonical JSON."""
        return {"type": self.record_type, **dataclasses.asdict(self)}
