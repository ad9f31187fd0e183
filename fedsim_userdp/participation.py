"""A run's cohorts, and what its selector declared held against what it draws (docs/design.md, rules 6 and 11)."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fedsim_userdp.errors import PluginError
from fedsim_userdp.plugins import calling
from fedsim_userdp.population import Past, Population, Reported
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.sampling_plan import Round, SamplingPlan, follows_past, round_of, total
from fedsim_userdp.selection import (
    Choosing,
    ClientSelector,
    Stating,
    chosen_cohort,
    drawn_cohort,
    expected_cohort_size,
    foreign_name,
    is_plain_poisson,
    is_schedule,
    refuse_two_ways,
)
from fedsim_userdp.signals import LOSS, check_followed
from fedsim_userdp.wagers import Wager

# Probability, over a whole run, that a selector which draws as it declares is stopped all the same.
FALSE_ALARM = 1e-9
_PART = FALSE_ALARM / 8  # five parts for counts of users and rounds, two for the wager, one for two unrelated keys
_MOST_TRIED = 100  # rounds drawn before a run
UserLevel = (
    acc.PoissonUsers
    | acc.PoissonGroups
    | acc.TruncatedPoisson
    | acc.FixedSize
    | acc.FixedSizeStrata
    | acc.NoAmplification
)
_OF_OWN = acc.TruncatedPoisson | acc.FixedSizeStrata  # which nothing that is drawn is held against
_DECLARED = acc.PoissonUsers | acc.FixedSize | acc.NoAmplification


def declared_release(
    selector: ClientSelector, noise_multiplier: float, population: Population, rounds: int
) -> UserLevel:
    """Returns what a run of user-level releases is: by the probabilities that a selector states, or as it declares.

    What it declares is checked to be of this run.

    Raises:
        AccountingError: a ValueError, when it declares something else than a user-level run, or a run of another
            population, number of rounds or noise.
        PluginError: a ValueError, when it states what cannot be a probability, weight or denominator.
    """
    name, num_users = type(selector).__name__, len(population)
    refuse_two_ways(selector)
    if isinstance(selector, Stating):
        if is_plain_poisson(selector):
            return acc.PoissonUsers(noise_multiplier, selector.sampling_prob, rounds)
        check_followed(selector, follows_past=follows_past(selector))
        return SamplingPlan.of(selector, population, rounds).release(noise_multiplier)
    with calling("selection", selector, "release()"):
        told_users = population if is_schedule(selector) else num_users
        release = selector.release(noise_multiplier, told_users, rounds)  # type: ignore[arg-type]
    if isinstance(release, _OF_OWN) and foreign_name(selector) is not None:
        raise acc.AccountingError(
            f"{name}.release() declared acc.{type(release).__name__}, which only selectors of this package may: "
            "selection=truncated_poisson and selection=fixed_strata draw by it"
        )
    if not isinstance(release, _DECLARED | _OF_OWN):
        raise acc.AccountingError(
            f"{name}.release() returned {release!r}: a selector of users declares acc.PoissonUsers, acc.FixedSize or "
            "acc.Unamplified; one whose probabilities differ between users or rounds states them by probabilities()"
        )
    told = {"noise_multiplier": noise_multiplier, "rounds": rounds, "num_users": num_users}
    for what, actual in told.items():
        declared = getattr(release, what, actual)
        if declared != actual:
            raise acc.AccountingError(f"{name}.release() declared {what}={declared} for a run with {actual}")
    # A schedule is told the past where its cap holds whatever that says; see `Scheduling`.
    is_told = not isinstance(selector, Choosing) and isinstance(release, acc.NoAmplification)
    check_followed(selector, follows_past=is_told)
    return release


def draw_cohort(selector: ClientSelector, population: Population, round: int, key: RunKey) -> NDArray[np.int64]:
    """Returns a round's cohort, of which nothing was declared: distinct users of the population, ascending.

    Raises:
        ValueError: when what is stated is no probability, or what is chosen no set of users.
    """
    if isinstance(selector, Stating):
        stated = round_of(selector, population, round, Past(round - 1))
        return drawn_cohort(stated.probabilities, population.id_hashes, round, key)
    return chosen_cohort(selector, population, round, key)


def expected_share(selector: ClientSelector, population: Population, rounds: int) -> float:
    """Returns the expected share of the users in a round, the mean over a run's rounds.

    Raises:
        ValueError: see `declared_release`.
    """
    if is_plain_poisson(selector):
        return selector.sampling_prob
    if isinstance(selector, Stating):
        return float(SamplingPlan.of(selector, population, rounds).expected_cohorts.mean()) / len(population)
    return expected_cohort_size(selector, population) / len(population)


@dataclass(frozen=True)
class Participation:
    """What the selection did in a run; not private.

    Attributes:
        rounds: number of rounds that each user took part in, shape [num_users].
        planned: expected number of users of each round.
        drawn: number of users of each round.
        facts: what is public about the users, by name.
    """

    rounds: NDArray[np.int64]
    planned: tuple[float, ...]
    drawn: tuple[int, ...]
    facts: Mapping[str, NDArray[Any]]

    @property
    def coverage(self) -> float:
        """Share of the users who took part at all."""
        return float((self.rounds > 0).mean())

    @property
    def gini(self) -> float:
        """Gini coefficient of the users' rounds: 0 where all have as many, near 1 where few have all; 0 without any."""
        ordered, number = np.sort(self.rounds), len(self.rounds)
        if not ordered.sum():
            return 0.0
        return float((2 * np.arange(1, number + 1) - number - 1) @ ordered / (number * ordered.sum()))


class Cohorts:
    """Draws a run's cohorts and holds the selector to what it declared.

    Guarantee: every cohort is a set of users of the population; no user is in more of them than declared; cohorts of a
    declared size have it.  What is stated of the whole run is evaluated at once, is what was accounted for, and is kept
    to, whatever the class would say later.  A class that chooses by itself may declare a sampling
    probability q: then the size of each cohort, their sum over the run, and the rounds of each user are held
    against Binomial laws.  `Wager` bets that users are not drawn independently of each other and of earlier rounds,
    here and in cohorts of a declared size.  A class that draws as it declares is stopped with a probability of at most
    1e-9.  A resumed run draws the earlier rounds too where the count, or a memory of the selector's own, needs them: it
    is then where a run that was never stopped would be.

    Args:
        selector: chooses the users.
        population: the users.
        key: the run's.
        declared: what the selector declared; None where the run makes no claim.

    Raises:
        ValueError: when the declaration contradicts itself.
    """

    def __init__(
        self, selector: ClientSelector, population: Population, key: RunKey, declared: UserLevel | None
    ) -> None:
        self._selector, self._population, self._key, self._declared = selector, population, key, declared
        self._counts = np.zeros(len(population), dtype=np.int64)
        self._last_round_of = np.zeros(len(population), dtype=np.int64)  # 0 for nobody's
        self._separation = _separation_of(selector)
        self._num_drawn = self._last = 0
        self._history = hashlib.sha256()
        self._name = type(selector).__name__
        is_foreign = foreign_name(selector) is not None
        self._states = isinstance(selector, Stating)  # which cannot change later: then nothing would be tested
        self._has_memory = not self._states and is_foreign
        self.norms: dict[int, float] = {}  # of what each round released, where the selector follows it
        self.signals: dict[int, Reported] = {}  # likewise
        self._plan = self._plan_of(declared)
        self._current: tuple[int, Round] | None = None
        self._sizes: dict[int, int] = {}  # of the cohorts that are in the counts
        self._planned: dict[int, float] = {}  # expected sizes of these
        self._wager = (
            Wager(declared, len(population))
            if self._has_memory and isinstance(declared, acc.PoissonUsers | acc.FixedSize)
            else None
        )
        if self._has_memory and isinstance(declared, acc.PoissonUsers | acc.FixedSize):
            self._check_expected_size(declared)

    def draw(self, round: int) -> list[int]:
        """Returns the cohort of a round, from 1.

        Raises:
            ValueError: when the selector does not keep to what it declared; nothing of the round was released.
        """
        self.catch_up(round - 1)
        self._last = round
        return [int(user) for user in self._drawn(round)]

    def participation(self, last: int) -> Participation:
        """Returns who took part up to the round `last`; rounds before a resume are drawn again.

        Raises:
            ValueError: see `draw`.
        """
        counts, sizes = self._counts.copy(), dict(self._sizes)
        for round in range(1, last + 1):
            if round not in sizes:  # before a resume
                cohort = self._cohort(round)
                counts[cohort] += 1
                sizes[round] = len(cohort)
        rounds = range(1, last + 1)
        return Participation(
            counts,
            planned=tuple(self._planned.get(round) or self.expected_size(round) for round in rounds),
            drawn=tuple(sizes[round] for round in rounds),
            facts=self._population.columns,
        )

    def denominator(self, round: int) -> float:
        """Returns what the sum of a round is divided by: public, whoever takes part."""
        return self._stated(round).denominator

    def expected_size(self, round: int) -> float:
        """Returns the expected number of users in a round."""
        if isinstance(self._selector, Stating):
            return total(self._stated(round).probabilities, len(self._population))
        return self.denominator(round)

    def weights(self, users: Sequence[int], round: int) -> list[float] | None:
        """Returns what each user's clipped update is multiplied by in a round; None where that is 1 for everybody."""
        weights = np.broadcast_to(self._stated(round).weights, len(self._population))
        return None if bool((weights == 1.0).all()) else [float(weights[user]) for user in users]

    @property
    def name(self) -> str:
        """Name of the selector's class."""
        return self._name

    @property
    def is_planned(self) -> bool:
        """Whether `history` is the same in every round: what the whole run is drawn by."""
        return self._plan is not None

    @property
    def groups(self) -> tuple[str, ...]:
        """Who is in each group that was accounted for, as noun phrases; empty where everybody is alike."""
        return () if self._plan is None else self._plan.in_words(self._population)

    @property
    def follows_past(self) -> bool:
        """Whether the selector follows what was released."""
        if isinstance(self._selector, Stating):
            return follows_past(self._selector)
        return is_schedule(self._selector) and isinstance(self._declared, acc.NoAmplification)

    def note_released(self, round: int, norm: float, signal: Reported | None = None) -> None:
        """Keeps what a round released, for selectors that follow it.

        Args:
            round: the round.
            norm: L2 norm of the mean update that was released, noise included.
            signal: what was released of the signal that is paid for, noise included; None without one.
        """
        self.norms[round] = norm
        if signal is not None:
            self.signals[round] = signal

    def _plan_of(self, declared: UserLevel | None) -> SamplingPlan | None:
        """What is stated of the whole run, where that was accounted for; None for Poisson sampling as such.

        Raises:
            ValueError: when it is not what was accounted for.
        """
        selector = self._selector
        if declared is None or is_plain_poisson(selector) or not isinstance(selector, Stating):
            return None
        plan = SamplingPlan.of(selector, self._population, declared.num_releases)
        if plan.release(declared.noise_multiplier) != declared:
            raise ValueError(f"{self._name} states other probabilities or weights than the noise was made for")
        return plan

    def _stated(self, round: int) -> Round:
        """What holds in a round."""
        if self._current is None or self._current[0] != round:
            self._current = round, self._stated_now(round)
        return self._current[1]

    def _stated_now(self, round: int) -> Round:
        """See `_stated`; a plan is kept to, whatever a selector would say by now.

        Raises:
            ValueError: when a selector that follows the past states more than it declared.
        """
        selector = self._selector
        if not isinstance(selector, Stating):
            size = expected_cohort_size(selector, self._population)
            return Round(np.asarray(size / len(self._population)), np.asarray(1.0), size)
        planned = None if self._plan is None else self._plan.round(round)
        if planned is not None and self._plan is not None and not self._plan.follows_past:
            return planned
        now = round_of(selector, self._population, round, self._past(round))
        most = planned.probabilities if planned is not None else self._most()
        if (now.probabilities > most).any():
            raise ValueError(f"{self._name} states a higher probability in round {round} than it declared before")
        return now if planned is None else replace(now, weights=planned.weights)

    def _past(self, round: int) -> Past:
        """What was released before a round."""
        norms = {earlier: norm for earlier, norm in self.norms.items() if earlier < round}
        signals = {earlier: one for earlier, one in self.signals.items() if earlier < round}
        return Past(round - 1, norms, {LOSS: signals} if signals else {})

    def _most(self) -> float:
        """The highest probability that Poisson sampling declared."""
        return self._declared.sampling_prob if isinstance(self._declared, acc.PoissonUsers) else 1.0

    @property
    def counts_earlier(self) -> bool:
        """Whether what a round may draw depends on the rounds before: a declared cap, or a memory of the selector's."""
        return self._has_memory or isinstance(self._declared, acc.NoAmplification)

    @property
    def history(self) -> str:
        """Digest of the users of every round so far, where these count, or of what a whole run is drawn by; else empty.

        It is not to be published: it confirms a guess of the cohorts.
        """
        if self._plan is not None:
            return self._plan.digest(self._population)
        return self._history.hexdigest() if self.counts_earlier else ""

    def catch_up(self, round: int) -> None:
        """Draws the rounds up to `round` that were not drawn yet, where they count.

        Raises:
            ValueError: see `draw`.
        """
        for earlier in range(self._last + 1, round + 1) if self.counts_earlier else ():
            self._last = earlier
            self._drawn(earlier)

    def _drawn(self, round: int) -> NDArray[np.int64]:
        """The cohort, counted and checked."""
        cohort = self._cohort(round)
        self._counts[cohort] += 1
        self._sizes[round], self._planned[round] = len(cohort), self.expected_size(round)
        self._num_drawn += len(cohort)
        self._history.update(repr((round, self._population.id_hashes[cohort].tolist())).encode())
        match self._declared:
            case acc.NoAmplification(max_participations=most):
                self._check_cap(most, cohort, round)
                self._check_separation(cohort, round)
            case acc.FixedSize(cohort_size=size) | acc.FixedSizeStrata(cohort_size=size):
                if len(cohort) != size:
                    raise ValueError(
                        f"{self._name} declared cohorts of {size} users and chose {len(cohort)} in round {round}"
                    )
                self._check_rate(size / len(self._population), [], round)
            case acc.TruncatedPoisson(most_users=most):
                if len(cohort) > most:
                    raise ValueError(
                        f"{self._name} declared cohorts of at most {most} users and chose {len(cohort)} in round "
                        f"{round}"
                    )
            case acc.PoissonUsers(sampling_prob=prob):
                drawn = (len(cohort), len(self._population)), (self._num_drawn, len(self._population) * round)
                self._check_rate(prob, list(drawn), round)
        self._check_chance(cohort, round)
        return cohort

    def _cohort(self, round: int) -> NDArray[np.int64]:
        """The cohort, whatever was declared."""
        if not self._states:
            past = self._past(round) if isinstance(self._declared, acc.NoAmplification) else None
            return chosen_cohort(cast(Choosing, self._selector), self._population, round, self._key, past)
        return drawn_cohort(self._stated(round).probabilities, self._population.id_hashes, round, self._key)

    def _check_expected_size(self, declared: acc.PoissonUsers | acc.FixedSize) -> None:
        """Raises unless the denominator is the size that the declaration implies."""
        num_users = len(self._population)
        implied = declared.sampling_prob * num_users if isinstance(declared, acc.PoissonUsers) else declared.cohort_size
        stated = self.denominator(1)
        if not math.isclose(stated, implied, rel_tol=1e-6):
            raise ValueError(
                f"{self._name} expects cohorts of {stated:g} users and declared a release of cohorts of {implied:g}"
            )

    def _check_cap(self, most: int, cohort: NDArray[np.int64], round: int) -> None:
        """Raises where a user takes part in more rounds than declared."""
        if len(cohort) and self._counts[cohort].max() > most:
            raise ValueError(
                f"{self._name} declared at most {most} rounds for each user and chose one once more in round "
                f"{round}: what it declared would not hold"
            )

    def _check_separation(self, cohort: NDArray[np.int64], round: int) -> None:
        """Raises where a user takes part again too early, and keeps who took part."""
        before = self._last_round_of[cohort]
        if ((before > 0) & (round - before < self._separation)).any():
            raise ValueError(
                f"{self._name} has min_separation={self._separation} and chose a user of round {int(before.max())} "
                f"again in round {round}"
            )
        self._last_round_of[cohort] = round

    def _check_rate(self, prob: float, drawn: list[tuple[int, int]], round: int) -> None:
        """Raises where a class that chooses by itself draws what is too unlikely under its declaration.

        Args:
            prob: probability with which a user takes part in a round.
            drawn: participations and the number of chances for them, each a Binomial(chances, prob).
            round: the last round drawn; those before were drawn as well.
        """
        if not self._has_memory:
            return
        num_users, most = len(self._population), int(self._counts.max())
        alarm = _PART / (round * (round + 1))  # over all rounds `_PART`, for each of at most 5 such tests a round
        found = [
            f"{successes} of {chances} times in {round} round{'s' * (round > 1)}"
            for successes, chances in drawn
            if is_unlikely(successes, chances, prob, alarm)
        ]
        if is_unlikely(most, round, prob, alarm / num_users, below=False):
            found.append(f"one user in {most} of {round} rounds")
        if found:
            raise ValueError(
                f"{self._name} declared that each user takes part with probability {prob:g} and chose users "
                f"{found[0]}: who draws as declared does so with a probability below {alarm:.0e}"
            )

    def _check_chance(self, cohort: NDArray[np.int64], round: int) -> None:
        """Raises where a class that chooses by itself draws cohorts that are no draws by chance as it declared."""
        if self._wager is None:
            return
        self._wager.see(cohort)
        if self._wager.log_wealth >= -math.log(2 * _PART):
            raise ValueError(
                f"{self._name} declared that each user is drawn by chance, whoever else is, and chose cohorts whose "
                f"{self._wager.leading}, in {round} rounds, come of another rule: who draws as declared gives such "
                f"ones with a probability below {2 * _PART:.1e}"
            )


def _separation_of(selector: ClientSelector) -> int:
    """Least number of rounds from one in which a user takes part to the next; 1 where the selector says none."""
    found = getattr(selector, "min_separation", 1)
    if isinstance(found, bool) or not isinstance(found, int | np.integer) or found < 1:
        raise PluginError(f"selection={type(selector).__name__}: min_separation={found!r} must be a number from 1 on")
    return int(found)


def rounds_to_differ(declared: UserLevel | None, num_users: int) -> int | None:
    """Returns how many first rounds are all equal too rarely under two unrelated keys; None where none of the run are.

    Args:
        declared: what a selector declared; only what it claims by chance differs.
        num_users: size of the population.
    """
    match declared:
        case acc.PoissonUsers(sampling_prob=prob):
            log_equal = num_users * math.log(prob**2 + (1 - prob) ** 2)
        case acc.FixedSize(cohort_size=size):
            log_equal = math.lgamma(size + 1) + math.lgamma(num_users - size + 1) - math.lgamma(num_users + 1)
        case _:
            return None
    if log_equal * min(declared.rounds, _MOST_TRIED) > math.log(_PART):
        return None
    return math.ceil(math.log(_PART) / log_equal)


def is_unlikely(successes: int, chances: int, prob: float, alarm: float, *, below: bool = True) -> bool:
    """Returns whether Binomial(chances, prob) gives at least (with `below` also at most) `successes` too rarely.

    Args:
        successes: what was seen.
        chances: independent trials, at least 1.
        prob: of each, in [0, 1].
        alarm: probability of each side under which it is too rare.
        below: whether too few count as well.
    """
    from scipy.stats import binom

    return bool(
        binom.sf(successes - 1, chances, prob) < alarm or (below and binom.cdf(successes, chances, prob) < alarm)
    )
