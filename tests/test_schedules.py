"""Selectors that choose by public facts, the past, or a plan over all rounds."""

import numpy as np
import pytest

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.participation import Cohorts, UserLevel, declared_release, draw_cohort
from fedsim_userdp.population import Past, Population
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.selection import ClientSelector, Scheduling

POPULATION = Population(np.arange(12, dtype=np.uint64), {"region": np.array(["n"] * 8 + ["s"] * 4)})


class Allocated:
    """Deals every user of a region to one of three rounds, in an order that is drawn once."""

    def __init__(self, region: str = "n", declared: acc.Description | None = None) -> None:
        self.region, self.declared = region, declared
        self.seen: list[Past] = []
        self.drawn: list[float] = []

    def cohort(
        self,
        round: int,
        population: Population,
        past: Past,
        rng_round: np.random.Generator,
        rng_run: np.random.Generator,
    ) -> np.ndarray:
        self.seen.append(past)
        self.drawn.append(float(rng_round.random()))
        order = rng_run.permutation(np.flatnonzero(population.column("region") == self.region))
        return order[(round - 1) % 3 :: 3]

    def expected_cohort_size(self, population: Population) -> float:
        return float((population.column("region") == self.region).sum()) / 3

    def release(self, noise_multiplier: float, population: Population, rounds: int) -> acc.Description:
        return self.declared or acc.Unamplified(noise_multiplier, -(-rounds // 3))


def cohorts_of(selector: ClientSelector, declared: UserLevel | None, seed: int = 0) -> Cohorts:
    return Cohorts(selector, POPULATION, RunKey.seeded(seed), declared)


def test_a_schedule_is_a_client_selector() -> None:
    assert isinstance(Allocated(), Scheduling)
    assert isinstance(Allocated(), ClientSelector)


def test_what_is_drawn_from_the_runs_generator_is_the_same_in_every_round() -> None:
    drawn = [draw_cohort(Allocated(), POPULATION, round, RunKey.seeded(0)).tolist() for round in (1, 2, 3)]
    assert sorted(user for each in drawn for user in each) == list(range(8))
    assert drawn != [draw_cohort(Allocated(), POPULATION, round, RunKey.seeded(1)).tolist() for round in (1, 2, 3)]


def test_the_rounds_generator_differs_between_rounds() -> None:
    selector = Allocated()
    for round in (1, 2, 1):
        draw_cohort(selector, POPULATION, round, RunKey.seeded(0))
    first, second, again = selector.drawn
    assert first == again != second


def test_a_resumed_schedule_goes_on_as_if_it_had_never_stopped() -> None:
    declared = declared_release(Allocated(), 1.0, POPULATION, 6)
    whole, resumed = cohorts_of(Allocated(), declared), cohorts_of(Allocated(), declared)
    expected = [whole.draw(round) for round in range(1, 7)]
    assert [resumed.draw(round) for round in (4, 5, 6)] == expected[3:]
    assert whole.history == resumed.history


def test_a_schedule_is_told_the_past_where_its_cap_holds_whatever_that_is_and_nowhere_else() -> None:
    for declared, told in ((acc.Unamplified(1.0, 2), {1: 0.5}), (acc.FixedSize(1.0, 12, 8, 2), {}), (None, {})):
        selector = Allocated()
        cohorts = cohorts_of(selector, None)
        cohorts._declared = declared  # of any law: what the class is told is looked at alone
        assert cohorts.follows_past is bool(told)
        cohorts.note_released(1, 0.5)
        cohorts._cohort(2)
        assert selector.seen[-1].norms == told
        assert selector.seen[-1].rounds == 1


def test_a_schedule_that_chooses_a_user_more_often_than_declared_is_stopped() -> None:
    cohorts = cohorts_of(Allocated(), acc.Unamplified(1.0, 1))
    for round in (1, 2, 3):
        cohorts.draw(round)
    with pytest.raises(ValueError, match=r"Allocated declared at most 1 rounds for each user .* in round 4"):
        cohorts.draw(4)


def test_what_a_schedule_declares_must_be_of_this_population() -> None:
    with pytest.raises(acc.AccountingError, match="declared num_users=13 for a run with 12"):
        declared_release(Allocated(declared=acc.FixedSize(1.0, 13, 4, 3)), 1.0, POPULATION, 3)


def test_runs_of_several_kinds_are_refused_with_what_to_do_instead() -> None:
    several = acc.Composed((acc.PoissonUsers(1.0, 0.1, 2), acc.PoissonUsers(1.0, 0.3, 1)))
    with pytest.raises(acc.AccountingError, match=r"between users or rounds states them by probabilities\(\)"):
        declared_release(Allocated(declared=several), 1.0, POPULATION, 3)


def test_a_class_with_two_ways_to_choose_is_refused() -> None:
    class Both(Allocated):
        def select(self, num_users: int, round: int, generator: np.random.Generator) -> np.ndarray:
            return np.arange(num_users)

    class States(Allocated):
        def probabilities(self, round: int, population: Population, past: Past) -> float:
            return 0.1

    for selector, said in ((Both(), "`cohort` and `select`"), (States(), "`probabilities` and `cohort`")):
        with pytest.raises(ConfigError, match=said):
            declared_release(selector, 1.0, POPULATION, 3)
