"""The same few questions to the accountants in every run."""

from tests.simulations.conftest import quick_accounting  # noqa: F401
