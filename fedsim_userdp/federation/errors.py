"""Errors of the federation; imports nothing, so that a command line can name them at no cost."""


class RoundError(RuntimeError):
    """A round that cannot be finished, in one sentence; nothing of it was released."""


class NodeRefusal(Exception):
    """What a node will not do, in one sentence: a setting to be mended, by which no user may count as zero."""
