"""What a planted bug is: a wrong part, and who notices it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Findings = set[str]


@dataclass(frozen=True)
class Bug:
    """One way to be wrong.

    Attributes:
        name: of the bug.
        planted: runs the system with the bug, in an empty folder, and returns what is found.
        shipped: does the same with what ships, where nothing may be found.
        caught_by: what has to be among the findings, all of it.
    """

    name: str
    planted: Callable[[Path], Findings]
    shipped: Callable[[Path], Findings]
    caught_by: tuple[str, ...]
