"""Whether there is still room on the disks that a run writes to."""

import tempfile
from pathlib import Path

from privacy.errors import UmbraError

_PAGE = bytes(4096)


def no_room(folder: Path) -> UmbraError | None:
    """Return in words why nothing can be written, if so: the disk is full, or out of reach.

    Args:
        folder: of the run, on this machine; where Ray keeps its files is looked at, too.
    """
    where = folder
    try:
        _write(where)
        where = Path(tempfile.gettempdir())  # which fails itself where no such folder can be used
        _write(where)
    except OSError as error:
        return UmbraError(
            f"nothing can be written in {where} ({error.strerror}): free or repair the disk, "
            "then `umbra resume` goes on from what is durable"
        )
    return None


def _write(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(_PAGE)
