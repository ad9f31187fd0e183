"""Simulation of fine-tuning language models under user-level differential privacy.

    from fedsim_userdp import Budget, RecordLevelDP, Study, UserWise, compare

    study = Study.of(records, budget=Budget(epsilon=8.0), heldout_users=20)
    result = compare(study, [UserWise(clip_norm=0.3), RecordLevelDP(clip_norm=0.5)], folder="my-run")

Names are loaded when they are asked for first, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedsim_userdp.data.in_memory import InMemoryCorpus as InMemoryCorpus
    from fedsim_userdp.data.table import TableCorpus as TableCorpus
    from fedsim_userdp.mechanisms.compare import compare as compare
    from fedsim_userdp.mechanisms.compare import run as run
    from fedsim_userdp.mechanisms.plain import NonPrivate as NonPrivate
    from fedsim_userdp.mechanisms.plain import ZeroShot as ZeroShot
    from fedsim_userdp.mechanisms.record_level import RecordLevelDP as RecordLevelDP
    from fedsim_userdp.mechanisms.result import Result as Result
    from fedsim_userdp.mechanisms.study import Study as Study
    from fedsim_userdp.mechanisms.user_wise import UserWise as UserWise
    from fedsim_userdp.mechanisms.user_wise_adaptive import UserWiseAdaptive as UserWiseAdaptive
    from fedsim_userdp.models.loading import ModelSource as ModelSource
    from fedsim_userdp.population import Past as Past
    from fedsim_userdp.population import Population as Population
    from fedsim_userdp.privacy import accounting as acc  # noqa: F401
    from fedsim_userdp.selection import CyclicSelector as CyclicSelector
    from fedsim_userdp.selection import FixedSizeSelector as FixedSizeSelector
    from fedsim_userdp.selection import PoissonSelector as PoissonSelector
    from fedsim_userdp.selectors import AvailabilitySelector as AvailabilitySelector
    from fedsim_userdp.selectors import FixedStrataSelector as FixedStrataSelector
    from fedsim_userdp.selectors import GrowingSelector as GrowingSelector
    from fedsim_userdp.selectors import ImportanceSelector as ImportanceSelector
    from fedsim_userdp.selectors import RoundRobinSelector as RoundRobinSelector
    from fedsim_userdp.selectors import SeparatedSelector as SeparatedSelector
    from fedsim_userdp.selectors import StratifiedSelector as StratifiedSelector
    from fedsim_userdp.selectors import TruncatedPoissonSelector as TruncatedPoissonSelector
    from fedsim_userdp.settings import Budget as Budget
    from fedsim_userdp.settings import LoraSettings as LoraSettings

__version__ = "0.1.0"

_PLACES = {
    "fedsim_userdp.data.in_memory": ("InMemoryCorpus",),
    "fedsim_userdp.data.table": ("TableCorpus",),
    "fedsim_userdp.mechanisms.compare": ("compare", "run"),
    "fedsim_userdp.mechanisms.plain": ("NonPrivate", "ZeroShot"),
    "fedsim_userdp.mechanisms.record_level": ("RecordLevelDP",),
    "fedsim_userdp.mechanisms.result": ("Result",),
    "fedsim_userdp.mechanisms.study": ("Study",),
    "fedsim_userdp.mechanisms.user_wise": ("UserWise",),
    "fedsim_userdp.mechanisms.user_wise_adaptive": ("UserWiseAdaptive",),
    "fedsim_userdp.models.loading": ("ModelSource",),
    "fedsim_userdp.population": ("Past", "Population"),
    "fedsim_userdp.selection": ("CyclicSelector", "FixedSizeSelector", "PoissonSelector"),
    "fedsim_userdp.selectors": (
        *("AvailabilitySelector", "FixedStrataSelector", "GrowingSelector", "ImportanceSelector", "RoundRobinSelector"),
        *("SeparatedSelector", "StratifiedSelector", "TruncatedPoissonSelector"),
    ),
    "fedsim_userdp.settings": ("Budget", "LoraSettings"),
}
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names}
__all__ = sorted(["acc", *_PLACE_OF])


def __getattr__(name: str) -> object:
    """Loads a name when it is asked for first; usage reports of what it needs are switched off."""
    if name == "acc":
        return import_module("fedsim_userdp.privacy.accounting")
    if name not in _PLACE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_module("fedsim_userdp.surroundings").send_no_reports()
    return getattr(import_module(_PLACE_OF[name]), name)


def __dir__() -> list[str]:
    """Returns the names, loaded or not."""
    return sorted([*globals(), *__all__])
