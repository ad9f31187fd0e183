"""Who takes part in a round, and what that is worth to the accountant (docs/design.md, rule 6).

A selector states probabilities, and this package draws the coins (`Stating`); or it chooses by itself and declares by
which law (`Choosing`, or `Scheduling` where it needs public facts or plans over all rounds): then the run checks that
it keeps to it (`Cohorts`).  It sees what is public and what was released; never text, losses or norms.
"""

import math
import numbers
from dataclasses import dataclass
from typing import Protocol, TypeGuard, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedsim_userdp.errors import ConfigError, PluginError
from fedsim_userdp.plugins import calling, class_name
from fedsim_userdp.population import Past, Population
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.streams import RunKey


@runtime_checkable
class Choosing(Protocol):
    """A selector that chooses by itself, and declares by which law: what it declares is held against what it does."""

    def select(self, num_users: int, round: int, generator: np.random.Generator) -> np.ndarray:
        """Returns the users of this round: distinct integers in [0, num_users), shape [cohort]; may be empty.

        Args:
            num_users: size of the training population, public.
            round: the round, from 1.
            generator: this round's own generator, the same for the same run and round.
        """
        ...

    def expected_cohort_size(self, num_users: int) -> float:
        """Returns the denominator of the mean update: the expected number of users in a round, above 0."""
        ...

    def release(self, noise_multiplier: float, num_users: int, rounds: int) -> acc.Description:
        """Returns the description of a whole run, from which epsilon is computed; raises when none is honest."""
        ...


@runtime_checkable
class Scheduling(Protocol):
    """A selector that chooses by itself, of whom public facts, the past or the whole run say.

    It declares by which law, as `Choosing` does, which is the short form of it.
    """

    def cohort(
        self,
        round: int,
        population: Population,
        past: Past,
        rng_round: np.random.Generator,
        rng_run: np.random.Generator,
    ) -> np.ndarray:
        """Returns the users of this round: distinct integers in [0, num_users), shape [cohort]; may be empty.

        Args:
            round: the round, from 1.
            population: the users, and what is public about them.
            past: what was released before where `acc.Unamplified` is declared, whose cap holds whatever it says; else
                empty.
            rng_round: this round's own generator, the same for the same run and round.
            rng_run: a generator that is the same whenever this is called in a run: what is drawn from it first, such as
                an order of all users, is the same in every round.
        """
        ...

    def expected_cohort_size(self, population: Population) -> float:
        """Returns the denominator of the mean update: the expected number of users in a round, above 0."""
        ...

    def release(self, noise_multiplier: float, population: Population, rounds: int) -> acc.Description:
        """Returns the description of a whole run, from which epsilon is computed; raises when none is honest."""
        ...


@runtime_checkable
class Stating(Protocol):
    """A selector that states probabilities; this package draws the coins, one for each user's id.

    It declares nothing: the run's plan is evaluated before the first round, and the costliest user is accounted for.
    Besides, it may have

    - `weights(round, population)`: what each user's clipped update is multiplied by, at least 0; 1 without.
    - `denominator(round, population)`: what the sum is divided by, above 0; the expected sum of weights without.
    - `most(round, population)`: the highest probabilities that it may state, where those follow from `past`.  These
      are accounted for.
    """

    def probabilities(self, round: int, population: Population, past: Past) -> float | np.ndarray:
        """Returns the probability with which each user takes part in the round, independently.

        Args:
            round: the round, from 1.
            population: the users, and what is public about them.
            past: what was released before; empty unless the selector has `most`.

        Returns:
            A number in [0, 1] for everybody, or one for each user, shape [num_users].
        """
        ...


ClientSelector = Choosing | Scheduling | Stating


@dataclass(frozen=True)
class PoissonSelector:
    """Every user takes part in each round independently with probability `sampling_prob`.

    Guarantee: the Poisson-subsampled Gaussian over users, add-or-remove of one user (`acc.PoissonUsers`).
    """

    sampling_prob: float

    follows_population = False  # what is stated: see `SamplingPlan`

    def __post_init__(self) -> None:
        if not 0 < self.sampling_prob <= 1:
            raise ValueError(f"sampling_prob={self.sampling_prob} must lie in (0, 1]")

    def probabilities(self, round: int, population: Population, past: Past) -> float:
        """Returns `sampling_prob`."""
        return self.sampling_prob


@dataclass(frozen=True)
class _CohortOfOneSize:
    """What selectors of `cohort_size` users a round share."""

    cohort_size: int

    def __post_init__(self) -> None:
        if self.cohort_size < 1:
            raise ValueError(f"cohort_size={self.cohort_size} must be at least 1")

    def expected_cohort_size(self, num_users: int) -> float:
        """Returns `cohort_size`.

        Raises:
            ValueError: when there are fewer users.
        """
        if self.cohort_size > num_users:
            raise ValueError(f"cohort_size={self.cohort_size} must be at most the {num_users} users")
        return float(self.cohort_size)


@dataclass(frozen=True)
class FixedSizeSelector(_CohortOfOneSize):
    """Exactly `cohort_size` users a round, uniformly without replacement.

    Guarantee: replace-one of a user, sensitivity 2 * clip_norm (`acc.FixedSize`); no Poisson claim.
    """

    def select(self, num_users: int, round: int, generator: np.random.Generator) -> np.ndarray:
        """Returns a uniform subset of `cohort_size` users."""
        size = int(self.expected_cohort_size(num_users))
        return np.sort(generator.choice(num_users, size=size, replace=False, shuffle=False))

    def release(self, noise_multiplier: float, num_users: int, rounds: int) -> acc.Description:
        """Returns `acc.FixedSize`."""
        return acc.FixedSize(
            noise_multiplier=noise_multiplier, num_users=num_users, cohort_size=self.cohort_size, rounds=rounds
        )


@dataclass(frozen=True)
class CyclicSelector(_CohortOfOneSize):
    """Users in a fixed order, `cohort_size` of them a round, starting over at the end.

    Guarantee: no amplification by sampling; each user is assumed in every round that the cycle gives it
    (`acc.Unamplified`), whose neighbours empty one user's records: adding or removing a user would shift the cycle.
    """

    def select(self, num_users: int, round: int, generator: np.random.Generator) -> np.ndarray:
        """Returns the next `cohort_size` users of the cycle."""
        size = int(self.expected_cohort_size(num_users))
        return np.sort(np.arange((round - 1) * size, round * size) % num_users)

    def release(self, noise_multiplier: float, num_users: int, rounds: int) -> acc.Description:
        """Returns `acc.Unamplified` with ceil(rounds * cohort_size / num_users) participations."""
        most = -(-rounds * self.cohort_size // num_users)
        return acc.Unamplified(noise_multiplier=noise_multiplier, max_participations=most)


_WHOLE_RUN = 0  # stands for the round of what is drawn once in a run
_MOST_BITS = 128  # of a whole number that is shown
_NO_USER = 2**62  # stands for every number that is larger
_OWN_MODULES = ("fedsim_userdp.selectors.", "fedsim_userdp.simulations.measurements.")
OWN = (PoissonSelector, FixedSizeSelector, CyclicSelector)


def foreign_name(selector: ClientSelector) -> str | None:
    """Returns the name of the class where it is not one of this package's; None where it is.

    A subclass is foreign: whichever of its methods it overrides, what it declares may no longer fit what it does.  So
    is an object of this package's classes that has methods of its own.
    """
    kind = type(selector)
    is_as_made = not any(callable(value) for value in getattr(selector, "__dict__", {}).values())
    is_own_class = kind in OWN or kind.__module__.startswith(_OWN_MODULES)
    return None if is_own_class and is_as_made else f"{kind.__module__}.{kind.__qualname__}"


def is_plain_poisson(selector: ClientSelector) -> TypeGuard[PoissonSelector]:
    """Returns whether every user has one probability in all rounds: no plan is needed to know."""
    return isinstance(selector, PoissonSelector) and foreign_name(selector) is None


def expected_cohort_size(selector: Choosing | Scheduling, population: Population) -> float:
    """Returns the expected number of users in a round, by which sums are divided, after checking that it can be one.

    Raises:
        ValueError: when it is no number above 0 and at most the number of users.
    """
    with calling("selection", selector, "expected_cohort_size()"):
        given = selector.expected_cohort_size(population if is_schedule(selector) else len(population))  # type: ignore[arg-type]
    if not _is_number(given) or not 0 < given <= len(population) * (1 + 1e-9):
        raise PluginError(
            f"selection={type(selector).__name__} expects cohorts of {_shown(given)} users: sums are divided by that, "
            f"so it must be a number above 0 and at most the {len(population)} users"
        )
    return float(given)


def is_schedule(selector: ClientSelector) -> TypeGuard[Scheduling]:
    """Returns whether a selector that chooses has `cohort`, and is given the population."""
    return hasattr(selector, "cohort")


def chosen_cohort(
    selector: Choosing | Scheduling, population: Population, round: int, key: RunKey, past: Past | None = None
) -> NDArray[np.int64]:
    """Returns a round's cohort, of a selector that chooses: distinct users of the population, ascending.

    Args:
        selector: chooses.
        population: the users.
        round: the round, from 1.
        key: the run's key.
        past: what was released before and may be followed; None for nothing.

    Raises:
        ValueError: when a user appears twice (its clip bound would count twice) or does not exist.
    """
    rng_round = key.generator("selection", round=round)
    if is_schedule(selector):
        rng_run = key.generator("selection", round=_WHOLE_RUN)
        with calling("selection", selector, "cohort()", f"in round {round}"):
            chosen = selector.cohort(round, population, past or Past(round - 1), rng_round, rng_run)
    else:
        with calling("selection", selector, "select()", f"in round {round}"):
            chosen = selector.select(len(population), round, rng_round)  # type: ignore[union-attr]
    return _checked(chosen, type(selector).__name__, len(population), round)


def refuse_two_ways(selector: ClientSelector) -> None:
    """Raises ConfigError where a selector has two ways to say who takes part."""
    ways = [way for way in ("probabilities", "cohort", "select") if hasattr(selector, way)]
    if len(ways) > 1:
        raise ConfigError(
            f"selection={class_name(selector)} has both `{ways[0]}` and `{ways[1]}`: state probabilities, or choose "
            "in one way and declare a `release`"
        )


def drawn_cohort(
    probabilities: NDArray[np.float64], id_hashes: NDArray[np.uint64], round: int, key: RunKey
) -> NDArray[np.int64]:
    """Returns a round's cohort: the users whose coin, addressed by their id, fell below their probability.

    Args:
        probabilities: of each user, shape [num_users] or [].
        id_hashes: hashes of the users' ids, shape [num_users].
        round: the round, from 1.
        key: the run's key.
    """
    return np.flatnonzero(key.coins("selection", id_hashes, round=round) < probabilities)


def stated(answer: object, where: str, num_users: int, most: float = 1.0) -> NDArray[np.float64]:
    """Returns what a selector stated of each user, shape [num_users] or [], after checking that it can be that.

    Args:
        answer: what it returned: a number, or one for each user.
        where: names class, method and round, for the message.
        num_users: size of the population.
        most: the highest number that it can be.

    Raises:
        PluginError: it is none, or lies outside of [0, most].
    """
    if _is_number(answer):
        found = np.asarray(float(answer))  # type: ignore[arg-type]
    elif isinstance(answer, np.ndarray) and not isinstance(answer, np.ma.MaskedArray) and answer.dtype.kind in "fiu":
        found = answer.astype(np.float64)
    elif isinstance(answer, list | tuple) and all(map(_is_number, answer)):
        found = np.array(answer, dtype=np.float64)
    else:
        raise PluginError(f"{where} returned {_shown(answer)}: return a number, or an array of one for each user")
    if found.ndim and found.shape != (num_users,):
        raise PluginError(f"{where} returned an array of shape {found.shape}: there are {num_users} users")
    is_wrong = ~(np.isfinite(found) & (found >= 0) & (found <= most))
    if is_wrong.any():
        wrong = float(found[is_wrong][0]) if found.ndim else float(found)
        within = f"in [0, {most:g}]" if math.isfinite(most) else "finite and at least 0"
        raise PluginError(f"{where} returned {wrong:g}: it must be {within}")
    return found


def _checked(answer: object, name: str, num_users: int, round: int) -> NDArray[np.int64]:
    """What a selector chose, as ascending numbers, or PluginError where it is no set of users."""
    chosen = _as_array(answer)
    if chosen is None:
        raise PluginError(
            f"{name} chose no list of user numbers in round {round}, but {_shown(answer)}: return an array of integers "
            f"in [0, {num_users})"
        )
    if len(chosen) and (chosen.min() < 0 or chosen.max() >= num_users):
        raise PluginError(f"{name} chose a user outside [0, {num_users}) in round {round}")
    cohort = np.sort(chosen.astype(np.int64))
    if len(np.unique(cohort)) != len(cohort):
        raise PluginError(f"{name} chose a user twice in round {round}: a cohort is a set of users")
    return cohort


def _as_array(answer: object) -> NDArray[np.integer] | None:
    """An answer as whole numbers, shape [n]; None where it is not that.  True and False are no numbers of users.

    Nor is what a mask hides: whether it is chosen is not said.
    """
    if isinstance(answer, list | tuple | range):
        if not all(map(_is_whole, answer)):
            return None
        answer = np.array([min(max(int(one), -1), _NO_USER) for one in answer], np.int64)
    if not isinstance(answer, np.ndarray) or isinstance(answer, np.ma.MaskedArray):
        return None
    answer = np.asarray(answer)
    if answer.ndim != 1 or (len(answer) and answer.dtype.kind not in "iu"):
        return None
    return answer if len(answer) else np.empty(0, np.int64)


def _is_whole(value: object) -> bool:
    """Whether a value is a whole number; True and False are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    """Whether a value is a real, finite number; True and False are none."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool | np.bool_):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond double precision
        return False


def _shown(value: object) -> str:
    """A value in a sentence: numbers as they are, of others the kind."""
    if isinstance(value, np.ma.MaskedArray):
        return "an array with a mask"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} of shape {value.shape}"
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return f"a number of {value.bit_length()} bits"  # which Python does not always write out
    if isinstance(value, list | tuple) and (strange := [one for one in value if not _is_whole(one)]):
        return f"a {type(value).__name__} with {_shown(strange[0])} in it"
    is_plain = value is None or isinstance(value, numbers.Number)
    return str(value)[:80] if is_plain else f"a {type(value).__name__}"
