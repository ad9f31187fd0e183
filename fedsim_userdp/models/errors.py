"""The error of a model that cannot be had or used, and what a model's own code raises."""

# What the code of a model raises where it cannot do what it is asked for.
FAILURES = (RuntimeError, ValueError, IndexError, KeyError, TypeError, AttributeError)


class ModelError(ValueError):
    """A model that cannot be had or used, in one sentence."""
