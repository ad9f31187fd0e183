import numpy as np
import pytest
from scipy import stats

from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.streams import numpy_generator
from fedsim_userdp.selection import (
    ClientSelector,
    Cohorts,
    CyclicSelector,
    FixedSizeSelector,
    PoissonSelector,
    draw_cohort,
    foreign_name,
)
from strategies.every_other_user import EveryOtherUser

SELECTORS: list[ClientSelector] = [
    PoissonSelector(0.3), PoissonSelector(1.0), FixedSizeSelector(5), CyclicSelector(7), EveryOtherUser(),
]  # fmt: skip
NUM_USERS = 20


def cohort(selector: ClientSelector, round: int, seed: int = 0, num_users: int = NUM_USERS) -> list[int]:
    return draw_cohort(selector, num_users, round, numpy_generator(seed, "selection", round=round))


@pytest.mark.parametrize("selector", SELECTORS, ids=lambda selector: type(selector).__name__)
class TestEverySelector:
    def test_is_a_client_selector(self, selector: ClientSelector) -> None:
        assert isinstance(selector, ClientSelector)

    def test_chooses_distinct_users_of_the_population(self, selector: ClientSelector) -> None:
        for round in range(1, 30):
            chosen = cohort(selector, round)
            assert len(set(chosen)) == len(chosen)
            assert all(0 <= user < NUM_USERS for user in chosen)

    def test_repeats_itself_for_the_same_seed_and_round(self, selector: ClientSelector) -> None:
        assert cohort(selector, 3) == cohort(selector, 3)

    def test_mean_cohort_is_the_declared_denominator(self, selector: ClientSelector) -> None:
        sizes = [len(cohort(selector, round)) for round in range(1, 401)]
        assert np.mean(sizes) == pytest.approx(selector.expected_cohort_size(NUM_USERS), abs=0.6)

    def test_participations_stay_within_what_is_declared(self, selector: ClientSelector) -> None:
        release = selector.release(1.0, NUM_USERS, 12)
        counts = np.bincount([u for round in range(1, 13) for u in cohort(selector, round)], minlength=NUM_USERS)
        most = release.max_participations if isinstance(release, acc.Unamplified) else 12
        assert counts.max() <= most


def test_poisson_users_take_part_independently_at_the_stated_rate() -> None:
    drawn = np.zeros((2000, NUM_USERS))
    for round in range(1, 2001):
        drawn[round - 1, cohort(PoissonSelector(0.3), round)] = 1
    assert stats.binomtest(int(drawn.sum()), drawn.size, 0.3).pvalue > 1e-9
    assert stats.binomtest(int(drawn.sum()), drawn.size, 0.33).pvalue < 1e-9
    # Sizes of independent draws have binomial variance; fixed-size cohorts would have none.
    assert drawn.sum(1).var() == pytest.approx(NUM_USERS * 0.3 * 0.7, rel=0.2)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(NUM_USERS)).max() < 0.12


def test_poisson_is_worth_user_wise_amplification() -> None:
    assert PoissonSelector(0.1).release(2.0, 100, 50) == acc.UserWise(2.0, 0.1, 50)


def test_fixed_size_is_worth_replace_one_without_a_poisson_claim() -> None:
    assert FixedSizeSelector(10).release(2.0, 100, 50) == acc.FixedSize(2.0, 100, 10, 50)


def test_cyclic_is_worth_no_amplification() -> None:
    release = CyclicSelector(10).release(2.0, 100, 25)
    assert release == acc.Unamplified(2.0, 3)
    poisson = PoissonSelector(0.1).release(2.0, 100, 25)
    assert acc.epsilon(release, 1e-5) > acc.epsilon(poisson, 1e-5)


def test_a_subclass_with_its_own_select_cannot_claim_poisson() -> None:
    class Greedy(PoissonSelector):
        def select(self, num_users: int, round: int, generator: np.random.Generator) -> np.ndarray:
            return np.arange(num_users)

    with pytest.raises(acc.AccountingError, match="Poisson"):
        Greedy(0.01).release(1.0, 100, 10)


@pytest.mark.parametrize("chosen", [[1, 1], [-1], [NUM_USERS]])
def test_cohorts_with_repeated_or_unknown_users_are_refused(chosen: list[int]) -> None:
    class Wrong(EveryOtherUser):
        def select(self, num_users: int, round: int, generator: np.random.Generator) -> np.ndarray:
            return np.array(chosen)

    with pytest.raises(ValueError, match="Wrong chose"):
        cohort(Wrong(), 1)


def test_selectors_of_this_package_have_no_foreign_name_and_others_do() -> None:
    class Renamed(PoissonSelector):
        pass

    class Own(PoissonSelector):
        def select(self, num_users: int, round: int, generator: np.random.Generator) -> np.ndarray:
            return np.arange(num_users)

    for known in (PoissonSelector(0.1), FixedSizeSelector(3), CyclicSelector(3), Renamed(0.1)):
        assert foreign_name(known) is None
    assert str(foreign_name(Own(0.1))).endswith("Own")
    assert foreign_name(EveryOtherUser()) == "strategies.every_other_user.EveryOtherUser"


@pytest.mark.parametrize("probability", [0.0, -0.1, 1.1, float("nan")])
def test_sampling_probability_must_lie_in_0_1(probability: float) -> None:
    with pytest.raises(ValueError, match="sampling_prob"):
        PoissonSelector(probability)


class Shuffled:
    """Everybody once in a random order, half of them a round; remembers the order."""

    def __init__(self, declared: int = 1) -> None:
        self.declared = declared
        self.left: list[int] = []

    def select(self, num_users: int, round: int, generator: np.random.Generator) -> np.ndarray:
        if not self.left:
            self.left = generator.permutation(num_users).tolist()
        chosen, self.left = self.left[: num_users // 2], self.left[num_users // 2 :]
        return np.array(chosen)

    def expected_cohort_size(self, num_users: int) -> float:
        return num_users / 2

    def release(self, noise_multiplier: float, num_users: int, rounds: int) -> acc.Description:
        return acc.Unamplified(noise_multiplier, max_participations=self.declared)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_user_chosen_more_often_than_declared_stops_the_run(resumed: bool) -> None:
    def cohorts() -> Cohorts:
        return Cohorts(Shuffled(declared=2), NUM_USERS, seed=0, max_participations=2)

    drawn = cohorts()
    for round in range(1, 5):
        drawn.draw(round)
    last = cohorts() if resumed else drawn
    with pytest.raises(ValueError, match=r"Shuffled declared at most 2 rounds for each user .* in round 5"):
        last.draw(5)


@pytest.mark.parametrize("most", [None, 3])
def test_a_selector_with_a_memory_goes_on_where_it_would_have_been(most: int | None) -> None:
    whole = Cohorts(Shuffled(3), NUM_USERS, seed=0, max_participations=most)
    expected = [whole.draw(round) for round in range(1, 7)]
    resumed = Cohorts(Shuffled(3), NUM_USERS, seed=0, max_participations=most)
    assert [resumed.draw(round) for round in (4, 5, 6)] == expected[3:]
    assert Cohorts(Shuffled(3), NUM_USERS, seed=1, max_participations=most).draw(4) != expected[3]


def test_a_selector_without_a_memory_is_not_asked_for_rounds_before() -> None:
    asked: list[int] = []
    cohorts = Cohorts(PoissonSelector(0.3), NUM_USERS, seed=0, max_participations=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedsim_userdp.selection.draw_cohort", lambda *a: asked.append(a[2]) or [])
        cohorts.draw(1000)
    assert asked == [1000]
