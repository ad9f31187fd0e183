"""Metrics on the command line of a run that goes on: added, changed and left out, as they decide nothing released."""

from collections.abc import Sequence

_ALL = "metrics"


def leaves_out_metrics(override: str) -> bool:
    """Returns whether an override such as `~metrics.NAME`, `metrics={}` or `++metrics.NAME=null` leaves metrics out."""
    key, _, value = override.lstrip("+~").partition("=")
    if key.partition(".")[0] != _ALL:
        return False
    nothing = {_ALL: "{}"}.get(key, "null" if key.count(".") == 1 else None)
    return override.startswith("~") or value.strip("'\" ") == nothing


def with_metrics_changed(stored: Sequence[str], given: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns overrides without what the given ones leave out or replace, and these without what is done by that.

    Args:
        stored: what the run was started with.
        given: what the command line says now.
    """
    kept, left = list(stored), []
    for override in given:
        at, _, value = override.lstrip("+~").partition("=")
        if not at.startswith(_ALL):
            left.append(override)
            continue
        others = [one for one in kept if not _is_below(one, _part(at))]
        if leaves_out_metrics(override):
            left += [] if at == _ALL or len(others) < len(kept) else [override]
            kept = others
            continue
        is_another = at.endswith("._target_") and not any(one.lstrip("+") == f"{at}={value}" for one in kept)
        kept = others if is_another else kept  # with the settings of the class before
        left.append(f"++{override.lstrip('+')}")
    return kept, left


def _part(key: str) -> str:
    """What a key leaves out or replaces: a metric where it is that of its class."""
    return key.removesuffix("._target_")


def _is_below(override: str, key: str) -> bool:
    """Whether an override sets a key or something below it."""
    return f"{override.lstrip('+~').partition('=')[0]}.".startswith(f"{key}.")
