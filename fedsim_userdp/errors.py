"""Every error that the library raises for its user to mend; it imports nothing, so that naming one costs nothing.

A bad argument of a function is a plain `ValueError`. The message of each is one sentence.
"""

# What the code of a model raises where it cannot do what it is asked for.
MODEL_FAILURES = (RuntimeError, ValueError, IndexError, KeyError, TypeError, AttributeError)


class ConfigError(ValueError):
    """A setting that cannot be used; the sentence names it, its value and the fix."""


class DataError(ValueError):
    """A fault of the data or its configuration; the sentence names the file and line."""


class ModelError(ValueError):
    """A model that cannot be had or used."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be continued from."""


class PrivacyFileError(ValueError):
    """A `privacy.json` that is none, with what is wrong with it."""


class PluginError(ValueError):
    """A class of the user's own that raised, or answered what is no answer; the sentence names it.

    The sentence keeps the reason, which may hold text of users: it is for the terminal, not for files.
    """


class RecordChoiceError(Exception):
    """A choice of records that breaks its rules: to be mended; no user counts as zero for it."""


class ClippingError(Exception):
    """A clipping of the user's own that breaks its bound: to be mended; no user counts as zero for it."""


class RoundError(RuntimeError):
    """A round that cannot be finished; nothing of it was released."""


class NodeRefusal(Exception):
    """What a node will not do: a setting to be mended, by which no user may count as zero."""


class AccountingError(ValueError):
    """A pair of description and accountant that has no valid answer; the message says why."""


class LedgerError(RuntimeError):
    """A ledger that cannot be trusted, or a release that contradicts what it already holds."""


class BudgetExceeded(LedgerError):
    """The next release would spend more than the budget, so it must not be made."""


class ReleasedOtherwise(LedgerError):
    """A round that was released before, with the same noise on another sum: it must not be released again."""
