"""The error that a wrong setting ends in."""


class ConfigError(ValueError):
    """A setting that cannot be used, in one sentence that names it, its value and the fix."""
