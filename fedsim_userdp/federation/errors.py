"""Errors of the federation; imports nothing, so that a command line can name them at no cost."""


class RoundError(RuntimeError):
    """A round that cannot be finished, in one sentence; nothing of it was released."""
