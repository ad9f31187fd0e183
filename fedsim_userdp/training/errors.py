"""The errors of the training part."""

from fedsim_userdp.naming import naming as naming


class CheckpointError(ValueError):
    """A checkpoint that cannot be continued from, in one sentence."""
