"""Group privacy: an (epsilon, delta) of one record carried over to a user with at most k records, and back.

Source: Vadhan, "The Complexity of Differential Privacy" (2017), Lemma 2.2; Chua et al., arXiv 2406.14322, section 3.
If changing one record is (epsilon_r, delta_r)-indistinguishable, changing k records is
(k * epsilon_r, delta_r * (e^(k epsilon_r) - 1) / (e^epsilon_r - 1))-indistinguishable.
"""

import math

from fedsim_userdp.privacy.validation import MAX_RECORDS_PER_USER, check_count, check_delta, check_epsilon


def to_user_level(epsilon_record: float, delta_record: float, records_per_user: int) -> tuple[float, float]:
    """Returns the user-level (epsilon, delta) that follows from a record-level one.

    Args:
        epsilon_record: Record-level epsilon, in (0, inf).
        delta_record: Record-level delta, in (0, 1).
        records_per_user: Largest number of records of one user, in [1, 1000].

    Returns:
        (epsilon_user, delta_user). A delta_user of 1 or more protects nobody; it is *vacuous*, `is_vacuous` says so,
        and then epsilon_user is `math.inf`, so that the pair cannot be mistaken for a guarantee. delta_user is the
        value of the formula, or `math.inf` where a float cannot hold it.

    Raises:
        ValueError: An argument is out of range.
    """
    epsilon = check_epsilon("epsilon_record", epsilon_record)
    delta = check_delta("delta_record", delta_record)
    count = check_count("records_per_user", records_per_user, 1, MAX_RECORDS_PER_USER)
    delta_user = _scale(delta, log_delta_factor(epsilon, count))
    return (math.inf if is_vacuous(delta_user) else count * epsilon), delta_user


def to_record_level(epsilon_user: float, delta_user: float, records_per_user: int) -> tuple[float, float]:
    """Returns the record-level (epsilon, delta) that a user-level target demands; the inverse of `to_user_level`.

    Args:
        epsilon_user: User-level epsilon, in (0, inf).
        delta_user: User-level delta, in (0, 1).
        records_per_user: Largest number of records of one user, in [1, 1000].

    Returns:
        (epsilon_record, delta_record). delta_record is 0.0 where the demanded value is below the smallest float;
        then no mechanism with Gaussian noise meets the target by this conversion.

    Raises:
        ValueError: An argument is out of range.
    """
    epsilon = check_epsilon("epsilon_user", epsilon_user)
    delta = check_delta("delta_user", delta_user)
    count = check_count("records_per_user", records_per_user, 1, MAX_RECORDS_PER_USER)
    epsilon_record = epsilon / count
    return epsilon_record, _scale(delta, -log_delta_factor(epsilon_record, count))


def is_vacuous(delta: float) -> bool:
    """Returns whether a delta is 1 or more (or not a number), that is, whether the pair guarantees nothing."""
    return not delta < 1.0


def log_delta_factor(epsilon_record: float, records_per_user: int) -> float:
    """Returns log((e^(k eps) - 1) / (e^eps - 1)), without overflow for any k and eps > 0."""
    if epsilon_record < 1e-300:  # the limit at 0; below, k * eps loses its digits to denormal numbers
        return math.log(records_per_user)
    return _log_expm1(records_per_user * epsilon_record) - _log_expm1(epsilon_record)


def _log_expm1(x: float) -> float:
    """log(e^x - 1) for x > 0."""
    return x + math.log(-math.expm1(-x))


def _scale(delta: float, log_factor: float) -> float:
    """delta * e^log_factor, infinite where it overflows."""
    if abs(log_factor) < 700.0:
        return delta * math.exp(log_factor)
    exponent = math.log(delta) + log_factor
    return math.inf if exponent > 709.0 else math.exp(exponent)
