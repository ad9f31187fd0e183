"""Errors of the privacy part. Bad arguments are plain `ValueError`s, these are everything else."""


class AccountingError(ValueError):
    """A pair of description and accountant that has no valid answer; the message says why."""


class LedgerError(RuntimeError):
    """A ledger that cannot be trusted, or a release that contradicts what it already holds."""


class BudgetExceeded(LedgerError):
    """The next release would spend more than the budget, so it must not be made."""


class ReleasedOtherwise(LedgerError):
    """A round that was released before, with the same noise on another sum: it must not be released again."""
