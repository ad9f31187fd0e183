"""Sampling probabilities and weights of groups of users, round by round: what `PoissonGroups` is made of.

A trajectory is run-length coded: (sampling_prob, weight, rounds), in the order of rounds. A group is dominated by
another one whose probability and weight are at least its own in every round. It costs no more: adding noise to an
output, and replacing it at random by one without the user, turns the other group's pair of outputs into its own.
"""

import itertools
import math
from collections.abc import Sequence
from typing import cast

import numpy as np

from fedsim_userdp.privacy.pld.mixture import Floats
from fedsim_userdp.privacy.validation import check_count, check_real

Trajectory = tuple[tuple[float, float, int], ...]
Counts = dict[tuple[float, float], int]

_MOST_COMPARISONS = 3 * 10**8  # of single numbers, less than a second


def check_groups(groups: object) -> None:
    """Raises ValueError unless `groups` are trajectories, at least one, of the same number of rounds."""
    if not isinstance(groups, tuple) or not groups:
        raise ValueError(f"groups must be a tuple of at least one trajectory, got {groups!r}")
    for number, trajectory in enumerate(groups):
        _check_trajectory(f"groups[{number}]", trajectory)
    if len({num_rounds(trajectory) for trajectory in groups}) > 1:
        raise ValueError("groups must all have the same number of rounds, got different ones")
    check_count("rounds of groups", num_rounds(groups[0]))


def num_rounds(trajectory: Trajectory) -> int:
    """Returns the number of rounds."""
    return sum(rounds for _, _, rounds in trajectory)


def cut(trajectory: Trajectory, first: int, last: int) -> Trajectory:
    """Returns the rounds from `first` to `last`, counted from 1, of a trajectory that has them."""
    found, start = [], 0
    for prob, weight, rounds in trajectory:
        kept = min(start + rounds, last) - max(start, first - 1)
        if kept > 0:
            found.append((prob, weight, kept))
        start += rounds
    return tuple(found)


def counted(trajectory: Trajectory) -> Counts:
    """Returns how many rounds there are of each probability and weight, of those that release anything of a user."""
    counts: Counts = {}
    for prob, weight, rounds in trajectory:
        if prob > 0.0 and weight > 0.0:
            counts[prob, weight] = counts.get((prob, weight), 0) + rounds
    return counts


def rounds_counted(groups: Sequence[Trajectory]) -> dict[tuple[Trajectory, ...], int]:
    """Returns how often each round occurs: the groups of one round, and the number of rounds equal to it."""
    lengths, probs, weights = aligned(groups)
    counts: dict[tuple[Trajectory, ...], int] = {}
    for length, prob, weight in zip(lengths, probs.T.tolist(), weights.T.tolist(), strict=True):
        single = tuple(((q, w, 1),) for q, w in zip(prob, weight, strict=True))
        counts[single] = counts.get(single, 0) + length
    return counts


def aligned(groups: Sequence[Trajectory]) -> tuple[list[int], Floats, Floats]:
    """Returns stretches in which nothing changes: their lengths, and probabilities and weights, (groups, stretches)."""
    ends = [np.cumsum([rounds for _, _, rounds in trajectory]) for trajectory in groups]
    edges = np.unique(np.concatenate(ends))
    places = [np.searchsorted(each, edges) for each in ends]
    probs = [np.array([float(q) for q, _, _ in one])[at] for one, at in zip(groups, places, strict=True)]
    weights = [np.array([float(w) for _, w, _ in one])[at] for one, at in zip(groups, places, strict=True)]
    return np.diff(edges, prepend=0).tolist(), np.array(probs), np.array(weights)


def highest(groups: Sequence[Trajectory]) -> Trajectory:
    """Returns the trajectory that dominates all groups, with the largest of their probabilities and weights."""
    lengths, probs, weights = aligned(groups)
    return tuple(zip(probs.max(axis=0).tolist(), weights.max(axis=0).tolist(), lengths, strict=True))


def highest_round(trajectory: Sequence[tuple[float, float, int]]) -> tuple[float, float]:
    """Returns the largest probability and the largest weight of all rounds."""
    return max(prob for prob, _, _ in trajectory), max(weight for _, weight, _ in trajectory)


def distinct(groups: Sequence[Trajectory]) -> list[Trajectory]:
    """Returns the groups whose users may be the costliest; none where nothing is released about anybody.

    Left out are groups that another one dominates, as far as that is quickly seen, those with the same rounds in
    another order, and those about whom nothing is released.
    """
    found = {frozenset(counted(trajectory).items()): trajectory for trajectory in undominated(groups)}
    return [trajectory for rounds, trajectory in found.items() if rounds]


def undominated(groups: Sequence[Trajectory]) -> list[Trajectory]:
    """Returns the groups without those that another one dominates; where there are very many, with some of these."""
    groups = list(dict.fromkeys(groups))
    if len(groups) == 1:
        return groups
    lengths, probs, weights = aligned(groups)
    costs = (probs * np.minimum(weights, 1e100)) ** 2 @ np.array(lengths, dtype=np.float64)
    order = np.argsort(-costs, kind="stable")
    left = np.ones(len(groups), dtype=bool)
    for place in itertools.islice(order, max(_MOST_COMPARISONS // probs.size, 1)):
        if left[place]:
            is_below = (probs <= probs[place]).all(axis=1) & (weights <= weights[place]).all(axis=1)
            left &= ~is_below
            left[place] = True
    return [groups[place] for place in order if left[place]]


def _check_trajectory(name: str, trajectory: object) -> None:
    """Raises ValueError unless it is one."""
    if not isinstance(trajectory, tuple) or not trajectory:
        raise ValueError(f"{name} must be a tuple of (sampling_prob, weight, rounds), got {trajectory!r}")
    if _is_plain(trajectory):
        return
    for step in trajectory:
        if not isinstance(step, tuple) or len(step) != 3:
            raise ValueError(f"{name} must be a tuple of (sampling_prob, weight, rounds), got {trajectory!r}")
        check_real(f"sampling_prob of {name}", step[0], 0.0, 1.0, open_low=False, open_high=False)
        check_real(f"weight of {name}", step[1], 0.0, math.inf, open_low=False)
        check_count(f"rounds of {name}", step[2])


def _is_plain(trajectory: tuple[object, ...]) -> bool:
    """Whether it is a trajectory of floats and one kind of whole numbers: quickly seen, where there are very many."""
    if {*map(type, trajectory)} != {tuple} or {*map(len, cast(Trajectory, trajectory))} != {3}:
        return False
    probs, weights, rounds = zip(*cast(Trajectory, trajectory), strict=True)
    if {*map(type, probs), *map(type, weights)} != {float} or {*map(type, rounds)} != {int}:
        return False
    is_number = math.isfinite(sum(probs) + max(weights)) and not math.isnan(sum(weights))
    return is_number and min(probs) >= 0.0 and max(probs) <= 1.0 and min(weights) >= 0.0 and min(rounds) >= 1
