"""Selectors that follow public facts or limits, one short file each; the basic ones are in `selection`."""

from fedsim_userdp.selectors.availability import AvailabilitySelector
from fedsim_userdp.selectors.fixed_strata import FixedStrataSelector
from fedsim_userdp.selectors.growing import GrowingSelector
from fedsim_userdp.selectors.importance import ImportanceSelector
from fedsim_userdp.selectors.longest_ago import LongestAgoSelector
from fedsim_userdp.selectors.power_of_choice import PowerOfChoiceSelector
from fedsim_userdp.selectors.round_robin import RoundRobinSelector
from fedsim_userdp.selectors.separated import SeparatedSelector
from fedsim_userdp.selectors.stratified import StratifiedSelector
from fedsim_userdp.selectors.truncated_poisson import TruncatedPoissonSelector

__all__ = [
    "AvailabilitySelector",
    "FixedStrataSelector",
    "GrowingSelector",
    "ImportanceSelector",
    "LongestAgoSelector",
    "PowerOfChoiceSelector",
    "RoundRobinSelector",
    "SeparatedSelector",
    "StratifiedSelector",
    "TruncatedPoissonSelector",
]
