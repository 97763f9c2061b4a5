"""The newest head that an installation saw, in a file outside the database."""

import os
from dataclasses import dataclass
from pathlib import Path

from privacy.durable import write_file
from privacy.errors import IntegrityBroken, InvalidRequest, LedgerUnavailable, UmbraError
from privacy.ledger.rows import Head


@dataclass(frozen=True)
class Witness:
    """One line, `LEDGER_ID SEQ:HASH`: an older copy put in the ledger's place does not fit it.

    It is written after the commit, so it never names a row that the ledger does not hold. It may
    well name an older one: after a crash between commit and writing, or where two writers end in
    the other order than they committed. An older head is still an ancestor of every later one, so
    that is never a false alarm; a rollback is then seen unless it goes back no further than there.
    """

    path: Path  # the file; made with the first head

    def head(self, ledger_id: str) -> Head | None:
        """Return the head that the ledger must still hold; None where nothing was seen yet.

        Raises IntegrityBroken where the file is damaged, or another ledger was seen, and
        LedgerUnavailable where it cannot be read.
        """
        try:
            line = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error) from error
        try:
            seen, head = line.decode("ascii").removesuffix("\n").split(" ")
            parsed = Head.parse(head)
        except (ValueError, InvalidRequest) as error:
            raise IntegrityBroken(
                f"{self.path} must hold the ledger's id and newest head. Run `umbra audit`; "
                "if it finds nothing broken and the ledger is not an older copy, delete the file."
            ) from error
        if seen != ledger_id:
            raise IntegrityBroken(
                f"This installation used the ledger {seen} ({self.path}), found {ledger_id}: every "
                "budget would be whole again. Put the ledger back or move that file away."
            )
        return parsed

    def exists(self) -> bool:
        """Return whether a ledger was seen here before, readable or not."""
        return os.path.lexists(self.path)

    def record(self, ledger_id: str, head: Head) -> None:
        """Write the newest head, replacing the older one at once.

        It is not synced: a power cut may bring back an older head, which is an ancestor as said
        above, and a charge must not wait for the disk twice. Raises LedgerUnavailable where it
        cannot be written. The rows are in the ledger already.
        """
        try:
            write_file(self.path, f"{ledger_id} {head}\n".encode("ascii"), sync=False)
        except (OSError, UmbraError) as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> LedgerUnavailable:
        return LedgerUnavailable(
            f"{self.path}, which keeps the ledger's newest head, cannot be read or written: "
            f"{getattr(error, 'strerror', None) or error}. Without it an older copy of the ledger "
            "would not be noticed. Make it readable and writable, then repeat the command."
        )
