"""What a delta means, the one that is used where none is given, and how many users a small one wants.

(epsilon, delta)-DP for users allows a mechanism that publishes all data of each user with probability delta and is
perfectly private otherwise: delta * N users are published on average. Hence N^-1.1, below 1/N, and hence words where it
is large all the same.
"""

import math

from fedsim_userdp.privacy.figures import rounded_up
from fedsim_userdp.privacy.validation import check_count, check_delta

LARGE_DELTA = 1e-3
SMALL_DELTA = 1e-5
_EXPONENT = 1.1


def default_delta(num_users: int) -> float:
    """Returns N^-1.1 for N = `num_users` in [2, 1e9]."""
    return float(check_count("num_users", num_users, 2) ** -_EXPONENT)


def users_needed(delta: float) -> int:
    """Returns the least number of users whose `default_delta` is at most `delta`, in (0, 1)."""
    number = math.ceil(check_delta("delta", delta) ** (-1.0 / _EXPONENT))
    while number**-_EXPONENT > delta:  # the root was rounded down
        number += 1
    return number


def is_large(delta: float) -> bool:
    """Returns whether a delta wants a word of warning: above 1e-3."""
    return delta > LARGE_DELTA


def large_delta_in_words(delta: float) -> str | None:
    """Returns what a large delta allows, and how many users a small one wants, as a sentence; None where it is small.

    Args:
        delta: In (0, 1).
    """
    if not is_large(delta):
        return None
    return (
        f"A delta of {rounded_up(delta, 3)} is large: one user in {math.floor(1 / delta)} could be published whole and "
        f"the claim would still hold. N^-{_EXPONENT:g} is at most {SMALL_DELTA:g} from {users_needed(SMALL_DELTA):,} "
        "users on."
    )
