"""The error of a model that cannot be had or used."""


class ModelError(ValueError):
    """A model that cannot be had or used, in one sentence."""
