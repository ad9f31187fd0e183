"""What a selector states of a whole run, evaluated before the first round: it is what the accountant is told.

Users with the same probabilities and weights in every round are a group.  The promise is that of the costliest group.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fedsim_userdp.errors import PluginError
from fedsim_userdp.plugins import calling
from fedsim_userdp.population import Past, Population
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.selection import Stating, foreign_name, stated

Floats = NDArray[np.float64]
MOST_GROUPS = 4096
_MOST_FACTS = 3  # that are said of a group


@dataclass(frozen=True)
class Round:
    """What holds in one round.

    Attributes:
        probabilities: with which each user takes part, shape [num_users] or []; where they follow the past, the most.
        weights: what each user's clipped update is multiplied by, shape [num_users] or [].
        denominator: what the sum is divided by, public, above 0.
    """

    probabilities: Floats
    weights: Floats
    denominator: float

    def states_as(self, other: "Round") -> bool:
        """Returns whether probabilities and weights are those of another round."""
        alike = np.array_equal(self.probabilities, other.probabilities)
        return alike and np.array_equal(self.weights, other.weights)


@dataclass(frozen=True)
class SamplingPlan:
    """Probabilities, weights and denominators of every round of a run.

    Attributes:
        group_of: the group of each user, shape [num_users].
        probabilities: of each group in each round, shape [groups, rounds].
        weights: likewise.
        denominators: of each round, shape [rounds].
        follows_past: whether the probabilities are the most that the selector may state, and its choice follows from
            what was released.
        follows_population: whether they may follow from who else there is: then the population is public, and a user
            who is emptied keeps their place in it.
    """

    group_of: NDArray[np.int64]
    probabilities: Floats
    weights: Floats
    denominators: Floats
    follows_past: bool
    follows_population: bool

    @classmethod
    def of(cls, selector: Stating, population: Population, rounds: int) -> "SamplingPlan":
        """Returns the plan of a selector that states probabilities; one of this package's is asked once a population.

        Args:
            selector: states them.
            population: the users.
            rounds: of the run, at least 1.

        Raises:
            PluginError: what it states is no probability, weight or denominator, nobody can take part in a round, or
                there are more than 4,096 groups.
        """
        if foreign_name(selector) is not None:
            return cls._evaluated(selector, population, rounds)
        question = (type(selector), repr(selector), rounds)
        if question not in population.computed:
            population.computed[question] = cls._evaluated(selector, population, rounds)
        return cast(SamplingPlan, population.computed[question])

    @classmethod
    def _evaluated(cls, selector: Stating, population: Population, rounds: int) -> "SamplingPlan":
        """The plan, every round of it being asked for."""
        group_of = np.zeros(len(population), dtype=np.int64)
        members = _members(group_of)
        # Probabilities and weights of each round: one number for everybody, or one for each group.
        of_groups: list[tuple[Floats, Floats]] = []
        denominators: list[float] = []
        last: Round | None = None
        for number in range(1, rounds + 1):
            one = round_of(selector, population, number, Past(number - 1), is_planned=True)
            denominators.append(one.denominator)
            if last is not None and one.states_as(last):
                of_groups.append(of_groups[-1])
                continue
            last = one
            for values in (one.probabilities, one.weights):
                if values.ndim == 0 or np.array_equal(values, values[members][group_of]):
                    continue  # all of a group are alike
                group_of, parents = _split(group_of, values)
                members = _members(group_of)
                of_groups = [(_at(probs, parents), _at(weights, parents)) for probs, weights in of_groups]
            of_groups.append((_at(one.probabilities, members), _at(one.weights, members)))
            if len(members) > MOST_GROUPS:
                raise PluginError(
                    f"selection={type(selector).__name__} states more than {MOST_GROUPS} different courses of "
                    f"probabilities and weights up to round {number}: round them up to fewer values"
                )
        probabilities, weights = (
            np.column_stack([np.broadcast_to(pair[which], len(members)) for pair in of_groups]) for which in (0, 1)
        )
        return cls(
            group_of,
            probabilities,
            weights,
            np.array(denominators),
            follows_past(selector),
            follows_population(selector),
        )

    def digest(self, population: Population) -> str:
        """Returns a digest of who is drawn how in which round, and of the denominators."""
        found = hashlib.sha256()
        parts = (population.id_hashes, self.group_of, self.probabilities, self.weights, self.denominators)
        for part in parts:
            found.update(np.ascontiguousarray(part).tobytes())
        return found.hexdigest()

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of users of each group."""
        return np.bincount(self.group_of, minlength=len(self.probabilities))

    @property
    def expected_cohorts(self) -> Floats:
        """Expected number of users in each round, at most."""
        return self.sizes @ self.probabilities

    def in_words(self, population: Population) -> tuple[str, ...]:
        """Returns who is in each group: how many users, and what is public that they have in common."""
        columns = {name: values for name, values in population.columns.items() if values.ndim == 1}
        order = np.argsort(self.group_of, kind="stable")
        ends = np.cumsum(self.sizes)
        return tuple(_people(order[end - size : end], columns) for end, size in zip(ends, self.sizes, strict=True))

    def release(self, noise_multiplier: float) -> acc.PoissonUsers | acc.PoissonGroups:
        """Returns what a run releases whose noise has this multiplier of the clip norm."""
        rounds = self.probabilities.shape[1]
        prob = float(self.probabilities.flat[0])
        is_plain = bool((self.probabilities == prob).all() and (self.weights == 1.0).all())
        if is_plain and not self.follows_population:
            return acc.PoissonUsers(noise_multiplier, prob, rounds)
        relation = acc.Adjacency.ZERO_OUT_USER if self.follows_population else acc.Adjacency.ADD_OR_REMOVE_USER
        courses = tuple(map(_run_lengths, self.probabilities.tolist(), self.weights.tolist()))
        return acc.PoissonGroups(noise_multiplier, courses, relation)

    def round(self, number: int) -> Round:
        """Returns what holds in a round, from 1."""
        at = number - 1
        return Round(
            self.probabilities[self.group_of, at], self.weights[self.group_of, at], float(self.denominators[at])
        )


def round_of(selector: Stating, population: Population, number: int, past: Past, *, is_planned: bool = False) -> Round:
    """Returns what a selector states of a round.

    Args:
        selector: states it.
        population: the users.
        number: of the round, from 1.
        past: what was released before.
        is_planned: whether the most is asked for, where the probabilities follow the past.

    Raises:
        PluginError: it is no probability, weight or denominator, or nobody can take part.
    """
    ask: Callable[..., object] = selector.probabilities
    what = "probabilities"
    with calling("selection", selector, "probabilities()", f"in round {number}"):
        if is_planned and follows_past(selector):
            what, answer = "most", selector.most(number, population)  # type: ignore[attr-defined]
        else:
            answer = ask(number, population, past)
    probabilities = stated(answer, f"selection={type(selector).__name__}: {what}() in round {number}", len(population))
    weights = np.asarray(1.0)
    if hasattr(selector, "weights"):
        with calling("selection", selector, "weights()", f"in round {number}"):
            given = selector.weights(number, population)
        where = f"selection={type(selector).__name__}: weights() in round {number}"
        weights = stated(given, where, len(population), most=math.inf)
    return Round(probabilities, weights, _denominator(selector, population, number, probabilities, weights))


def _denominator(
    selector: Stating, population: Population, number: int, probabilities: Floats, weights: Floats
) -> float:
    """What the round's sum is divided by: as the selector says, else the expected sum of weights."""
    where = f"selection={type(selector).__name__}"
    if not hasattr(selector, "denominator"):
        found = total(probabilities * weights, len(population))
        if found <= 0:
            raise PluginError(f"{where} states that nobody takes part in round {number}: leave such rounds out")
        return found
    with calling("selection", selector, "denominator()", f"in round {number}"):
        given = selector.denominator(number, population)
    found = float(stated(given, f"{where}: denominator() in round {number}", 1, most=math.inf).flat[0])
    if found <= 0:
        raise PluginError(f"{where}: denominator() in round {number} must be above 0, got {found:g}")
    return found


def total(values: Floats, num_users: int) -> float:
    """Returns the sum over all users of one number for each, or of one for everybody."""
    return float(values) * num_users if values.ndim == 0 else float(values.sum())


def follows_past(selector: Stating) -> bool:
    """Returns whether a selector declares the most that it may state, since it follows what was released."""
    return hasattr(selector, "most")


def follows_population(selector: Stating) -> bool:
    """Returns whether what a selector states may follow from who else there is.

    A class of this package says so where it does not, by `follows_population = False`.
    """
    return foreign_name(selector) is not None or bool(getattr(selector, "follows_population", True))


def _members(group_of: NDArray[np.int64]) -> NDArray[np.int64]:
    """A user of each group."""
    return np.unique(group_of, return_index=True)[1]


def _split(group_of: NDArray[np.int64], values: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Groups split by values: the new group of each user, and the earlier group of each new one."""
    found, which = np.unique(values, return_inverse=True)
    pairs, split = np.unique(group_of * len(found) + which, return_inverse=True)
    return split.astype(np.int64), (pairs // len(found)).astype(np.int64)


def _at(values: Floats, places: NDArray[np.int64]) -> Floats:
    """The values at some places; one number stays what it is."""
    return values if values.ndim == 0 else values[places]


def _people(users: NDArray[np.int64], columns: Mapping[str, NDArray[Any]]) -> str:
    """How many users there are, and what is public that they have in common and nobody else has."""
    shared = [
        f"{name} {values[users[0]]}"
        for name, values in columns.items()
        if (values[users] == values[users[0]]).all() and (values == values[users[0]]).sum() == len(users)
    ]
    what = f" of {', '.join(shared[:_MOST_FACTS])}" if shared else ""
    return f"{len(users)} user{'s' if len(users) > 1 else ''}{what}"


def _run_lengths(probabilities: list[float], weights: list[float]) -> tuple[tuple[float, float, int], ...]:
    """A group's probabilities and weights, equal rounds that follow each other counted."""
    found: list[tuple[float, float, int]] = []
    for prob, weight in zip(probabilities, weights, strict=True):
        if found and found[-1][:2] == (prob, weight):
            found[-1] = (prob, weight, found[-1][2] + 1)
        else:
            found.append((prob, weight, 1))
    return tuple(found)
