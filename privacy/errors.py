"""Errors that are written for a user: what was expected, what was found, what to do."""


class UmbraError(Exception):
    """Base of every error meant for a user; `exit_code` is what the command line returns."""

    exit_code = 1


class InvalidRequest(UmbraError):
    """A request that makes no sense; nothing was changed or spent."""

    exit_code = 2


class DataError(UmbraError):
    """The input data are missing, damaged or not what the spec says; nothing was spent."""

    exit_code = 2


class BudgetRefused(UmbraError):
    """The data set's budget does not admit the request."""

    exit_code = 3


class IntegrityBroken(UmbraError):
    """A hash, a chain, a signature or a file does not match what was recorded."""

    exit_code = 4


class LedgerUnavailable(UmbraError):
    """The ledger cannot be reached or written: without it nothing private may run."""


class NoLedger(LedgerUnavailable):
    """There is no ledger at that place; one that is there and cannot be reached is not this."""
