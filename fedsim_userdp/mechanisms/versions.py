"""Versions of the code that decides a run's numbers."""

from importlib.metadata import version

from fedsim_userdp import __version__

_DECIDING = ("torch", "numpy", "transformers", "peft", "opacus")


def code_versions() -> dict[str, str]:
    """Returns the version of this package and of those whose change could change a result, by name."""
    return {"fedsim_userdp": __version__, **{name: version(name) for name in _DECIDING}}
