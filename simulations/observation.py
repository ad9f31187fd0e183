"""The observer of audited runs: what they guess at, and what was true."""

import copy
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedsim_userdp.audit.directions import Floats
from fedsim_userdp.audit.observer import Draws, Observed, Secrets, observe
from fedsim_userdp.federation.client_app import TrainFn
from fedsim_userdp.federation.messages import TrainRequest
from fedsim_userdp.participation import draw_cohort
from fedsim_userdp.population import Population
from fedsim_userdp.privacy.noise import NoiseSource, NoiseStream, SeededNoise
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.selection import ClientSelector
from fedsim_userdp.simulations.audited_run import AuditedRun
from fedsim_userdp.training.cohort import CohortUpdate


class Watch:
    """Remembers what a run drew: the users that its nodes were asked for, and its noise."""

    def __init__(self) -> None:
        self._asked: dict[int, set[int]] = {}
        self.drawn: dict[int, Floats] = {}

    def watching(self, train_fn: TrainFn) -> TrainFn:
        """Returns the train function, its requests remembered."""

        def train(request: TrainRequest) -> CohortUpdate:
            """Answers as the other does."""
            self._asked.setdefault(request.round, set()).update(request.users)
            return train_fn(request)

        return train

    def listening(self, source: NoiseSource) -> NoiseSource:
        """Returns the noise source, its numbers remembered."""
        return _WatchedNoise(source, self.drawn)

    def draws(self, rounds: int, size: int) -> Draws:
        """Returns what was drawn in each round, from the first."""
        cohorts = [tuple(sorted(self._asked.get(round, ()))) for round in range(1, rounds + 1)]
        none = np.zeros(size, np.float32)
        return Draws(cohorts, np.stack([self.drawn.get(round, none) for round in range(1, rounds + 1)]))


class _WatchedNoise:
    """A noise source whose numbers are remembered by round."""

    def __init__(self, source: NoiseSource, drawn: dict[int, Floats]) -> None:
        self._source, self._drawn = source, drawn

    @property
    def is_seeded(self) -> bool:
        """As the source says."""
        return self._source.is_seeded

    def standard_normal(self, size: int, round: int, stream: NoiseStream = "noise") -> NDArray[np.float64]:
        """Returns the source's numbers."""
        numbers = self._source.standard_normal(size, round, stream)
        if stream == "noise":
            self._drawn[round] = numbers.astype(np.float32)
        return numbers


class Observer:
    """Knows all that is published, and what every earlier run drew; guesses at a run with all of it.

    Args:
        selector: as it is before any run.
        is_seeded: whether the runs are.
    """

    def __init__(self, selector: ClientSelector, is_seeded: bool) -> None:
        self._selector, self._is_seeded = selector, is_seeded
        self._earlier: list[Draws] = []

    def observe(self, run: AuditedRun, watch: Watch, releases: Floats, keys: Sequence[RunKey]) -> Observed:
        """Returns what is told of a run.

        Args:
            run: the run; where it claims something, later ones are held against it.
            watch: what was drawn in it.
            releases: noisy sums, shape [rounds, size].
            keys: that follow from what is published.
        """
        secrets, population = Secrets.of(run.settings.declared), run.settings.population
        true, prob = watch.draws(*releases.shape), min(run.expected_cohort / len(population), 1.0)
        guesses = (draws_of(key, self._selector, population, releases.shape) for key in keys)
        published = observe(guesses, true.cohorts, prob, releases)
        if not secrets.noise:
            return Observed(secrets, self._is_seeded, published)
        others = observe(self._earlier, true.cohorts, prob, releases) if self._earlier else None
        self._earlier.append(true)
        return Observed(secrets, self._is_seeded, published, others)


def published_keys(seed: int, identities: Sequence[str]) -> list[RunKey]:
    """Returns the run keys that somebody tries: of the seed and of seed 0, with each identity and with none."""
    return [RunKey.seeded(each, identity) for each in dict.fromkeys((seed, 0)) for identity in (*identities, "")]


def draws_of(key: RunKey, selector: ClientSelector, population: Population, shape: tuple[int, ...]) -> Draws:
    """Returns what a run of that key would draw; `selector` stays as it is, `shape` is (rounds, size)."""
    selector, noise, rounds = copy.deepcopy(selector), SeededNoise(key), range(1, shape[0] + 1)
    return Draws(
        [draw_cohort(selector, population, round, key).tolist() for round in rounds],
        np.stack([noise.standard_normal(shape[1], round) for round in rounds]),
    )
