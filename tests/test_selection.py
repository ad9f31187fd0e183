import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from client_selector import EveryOtherUser
from fedsim_userdp.errors import ConfigError
from fedsim_userdp.participation import FALSE_ALARM, Cohorts, UserLevel, declared_release, draw_cohort, rounds_to_differ
from fedsim_userdp.population import Past, Population
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.selection import (
    ClientSelector,
    CyclicSelector,
    FixedSizeSelector,
    PoissonSelector,
    foreign_name,
)
from fedsim_userdp.wagers import Wager

SELECTORS: list[ClientSelector] = [
    PoissonSelector(0.3), PoissonSelector(1.0), FixedSizeSelector(5), CyclicSelector(7), EveryOtherUser(),
]  # fmt: skip
NUM_USERS = 20
USERS = Population.numbered(100)


def cohort(selector: ClientSelector, round: int, seed: int = 0, num_users: int = NUM_USERS) -> list[int]:
    users = Population.numbered(num_users)
    return [int(user) for user in draw_cohort(selector, users, round, RunKey.seeded(seed))]


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
        assert np.mean(sizes) == pytest.approx(cohorts_of(selector, None).denominator(1), abs=0.6)

    def test_participations_stay_within_what_is_declared(self, selector: ClientSelector) -> None:
        release = declared_release(selector, 1.0, Population.numbered(NUM_USERS), 12)
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
    assert declared_release(PoissonSelector(0.1), 2.0, USERS, 50) == acc.PoissonUsers(2.0, 0.1, 50)


def test_fixed_size_is_worth_replace_one_without_a_poisson_claim() -> None:
    assert FixedSizeSelector(10).release(2.0, 100, 50) == acc.FixedSize(2.0, 100, 10, 50)


def test_cyclic_is_worth_no_amplification() -> None:
    release = CyclicSelector(10).release(2.0, 100, 25)
    assert release == acc.Unamplified(2.0, 3)
    poisson = declared_release(PoissonSelector(0.1), 2.0, USERS, 25)
    assert acc.epsilon(release, 1e-5) > acc.epsilon(poisson, 1e-5)


def test_a_subclass_with_its_own_select_cannot_claim_poisson() -> None:
    class Greedy(PoissonSelector):
        def select(self, num_users: int, round: int, generator: np.random.Generator) -> np.ndarray:
            return np.arange(num_users)

    with pytest.raises(ConfigError, match="has both `probabilities` and `select`"):
        declared_release(Greedy(0.01), 1.0, USERS, 10)


@pytest.mark.parametrize("chosen", [[1, 1], [-1], [NUM_USERS]])
def test_cohorts_with_repeated_or_unknown_users_are_refused(chosen: list[int]) -> None:
    class Wrong(EveryOtherUser):
        def select(self, num_users: int, round: int, generator: np.random.Generator) -> np.ndarray:
            return np.array(chosen)

    with pytest.raises(ValueError, match="Wrong chose"):
        cohort(Wrong(), 1)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([0.0], "chose no list of user numbers in round 1, but a list with 0.0 in it"),
        ((1, True), "but a tuple with True in it"),
        ([[1]], "but a list with a list in it"),
        ([2**70], rf"chose a user outside \[0, {NUM_USERS}\)"),
        ([-(2**200)], rf"chose a user outside \[0, {NUM_USERS}\)"),
        ([2**63 - 1], rf"chose a user outside \[0, {NUM_USERS}\)"),
    ],
)
def test_what_is_amiss_in_a_list_of_users_is_shown(answer: object, said: str) -> None:
    class Wrong(EveryOtherUser):
        def select(self, num_users: int, round: int, generator: np.random.Generator) -> np.ndarray:
            return answer  # type: ignore[return-value]

    with pytest.raises(ValueError, match=said):
        cohort(Wrong(), 1)


def test_selectors_of_this_package_have_no_foreign_name_and_others_do() -> None:
    class Renamed(PoissonSelector):
        pass

    class Own(PoissonSelector):
        def select(self, num_users: int, round: int, generator: np.random.Generator) -> np.ndarray:
            return np.arange(num_users)

    for known in (PoissonSelector(0.1), FixedSizeSelector(3), CyclicSelector(3)):
        assert foreign_name(known) is None
    assert str(foreign_name(Own(0.1))).endswith("Own")
    assert str(foreign_name(Renamed(0.1))).endswith("Renamed")
    assert foreign_name(EveryOtherUser()) == "client_selector.EveryOtherUser"


@pytest.mark.parametrize("probability", [0.0, -0.1, 1.1, float("nan")])
def test_sampling_probability_must_lie_in_0_1(probability: float) -> None:
    with pytest.raises(ValueError, match="sampling_prob"):
        PoissonSelector(probability)


def cohorts_of(selector: ClientSelector, declared: object, num_users: int = NUM_USERS, seed: int = 0) -> Cohorts:
    return Cohorts(selector, Population.numbered(num_users), RunKey.seeded(seed), declared)  # type: ignore[arg-type]


def draw_all(cohorts: Cohorts, rounds: int) -> None:
    for round in range(1, rounds + 1):
        cohorts.draw(round)


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


class Alternating:
    """States a probability that is declared to whoever asks twice, and 1 to whoever draws."""

    def __init__(self) -> None:
        self.asked = 0

    def probabilities(self, round: int, population: Population, past: Past) -> float:
        self.asked += 1
        return 1.0 if self.asked > 3 else 0.2


def test_a_plan_is_kept_to_whatever_a_selector_would_say_by_then() -> None:
    selector, users = Alternating(), Population.numbered(1000)
    declared = declared_release(selector, 1.0, users, 3)
    assert declared == acc.PoissonGroups(1.0, (((0.2, 1.0, 3),),), acc.Adjacency.ZERO_OUT_USER)
    cohorts = cohorts_of(Alternating(), declared, 1000)
    assert [cohorts.expected_size(round) for round in (1, 2, 3)] == pytest.approx([200, 200, 200])
    assert max(len(cohorts.draw(round)) for round in (1, 2, 3)) < 300


def test_a_selector_that_states_otherwise_than_its_noise_was_made_for_is_refused() -> None:
    with pytest.raises(ValueError, match="states other probabilities or weights than the noise was made for"):
        cohorts_of(Alternating(), acc.PoissonUsers(1.0, 0.1, 3))


def test_a_selector_cannot_begin_to_choose_by_itself_once_the_run_is_under_way() -> None:
    class Late(Alternating):
        def probabilities(self, round: int, population: Population, past: Past) -> float:
            self.select = lambda num_users, round, generator: np.arange(3)
            return 0.2

    cohorts = cohorts_of(Late(), declared_release(Late(), 1.0, Population.numbered(NUM_USERS), 30))
    assert [0, 1, 2] not in [cohorts.draw(round) for round in range(1, 10)]


def test_an_object_with_methods_of_its_own_is_foreign_whatever_its_class() -> None:
    patched = PoissonSelector(0.2)
    assert foreign_name(patched) is None
    object.__setattr__(patched, "select", lambda num_users, round, generator: np.arange(3))
    assert foreign_name(patched) is not None


@pytest.mark.parametrize("resumed", [False, True])
def test_a_user_chosen_more_often_than_declared_stops_the_run(resumed: bool) -> None:
    def cohorts() -> Cohorts:
        return cohorts_of(Shuffled(declared=2), acc.Unamplified(1.0, 2))

    drawn = cohorts()
    for round in range(1, 5):
        drawn.draw(round)
    last = cohorts() if resumed else drawn
    with pytest.raises(ValueError, match=r"Shuffled declared at most 2 rounds for each user .* in round 5"):
        last.draw(5)


@pytest.mark.parametrize("most", [None, 3])
def test_a_selector_with_a_memory_goes_on_where_it_would_have_been(most: int | None) -> None:
    declared = None if most is None else acc.Unamplified(1.0, most)
    whole = cohorts_of(Shuffled(3), declared)
    expected = [whole.draw(round) for round in range(1, 7)]
    resumed = cohorts_of(Shuffled(3), declared)
    assert [resumed.draw(round) for round in (4, 5, 6)] == expected[3:]
    assert cohorts_of(Shuffled(3), declared, seed=1).draw(4) != expected[3]


def test_a_selector_without_a_memory_is_not_asked_for_rounds_before() -> None:
    asked: list[int] = []
    cohorts = cohorts_of(PoissonSelector(0.3), None)
    with pytest.MonkeyPatch.context() as patch:

        def nobody(probabilities: object, hashes: object, round: int, key: object) -> np.ndarray:
            asked.append(round)
            return np.empty(0, np.int64)

        patch.setattr("fedsim_userdp.participation.drawn_cohort", nobody)
        cohorts.draw(1000)
    assert asked == [1000]


def test_one_user_more_changes_nobody_elses_part_in_poisson_cohorts() -> None:
    ids = np.random.default_rng(0).integers(0, 2**63, 40).astype(np.uint64)
    for round in range(1, 30):
        without = draw_cohort(PoissonSelector(0.3), Population(ids[1:]), round, RunKey.seeded(0)) + 1
        more = draw_cohort(PoissonSelector(0.3), Population(ids), round, RunKey.seeded(0))
        assert [user for user in more if user != 0] == list(without)


class Drawn:
    """Chooses as `select_fn` says, declares the sampling probability 0.2 and expects as many users as are said."""

    def __init__(
        self, select_fn: Callable[[int, int], object], expected: float = 0.2, declared: acc.Description | None = None
    ) -> None:
        self.select_fn, self.expected, self.declared = select_fn, expected, declared

    def select(self, num_users: int, round: int, generator: np.random.Generator) -> np.ndarray:
        chosen = self.select_fn(num_users, round)
        return np.asarray(sorted(chosen) if isinstance(chosen, set) else chosen)

    def expected_cohort_size(self, num_users: int) -> float:
        return self.expected * num_users

    def release(self, noise_multiplier: float, num_users: int, rounds: int) -> acc.Description:
        return self.declared or acc.PoissonUsers(noise_multiplier, 0.2, rounds)


RNG = np.random.default_rng(5)
CONTRADICTIONS: dict[str, tuple[Drawn, str]] = {
    "everybody": (Drawn(lambda n, r: range(n)), "with probability 0.2 and chose users 200 of 200 times in 1 round:"),
    "nobody": (Drawn(lambda n, r: np.empty(0, int)), "chose users 0 of 200 times"),
    "always the same": (Drawn(lambda n, r: range(n // 5)), "overlaps with the cohort before, in 2 rounds"),
    "one of them always": (Drawn(lambda n, r: {0, *np.flatnonzero(RNG.random(n) < 0.2).tolist()}), "one user in"),
    "a little too many": (Drawn(lambda n, r: np.flatnonzero(RNG.random(n) < 0.3)), "times in"),
    "a fixed size": (
        Drawn(lambda n, r: range(41), declared=acc.FixedSize(1.0, 200, 40, 60)), "declared cohorts of 40 users",
    ),
    "the same of a fixed size": (
        Drawn(lambda n, r: range(40), declared=acc.FixedSize(1.0, 200, 40, 60)), "overlaps with the cohort before",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_foreign_class_that_draws_otherwise_than_it_declares_stops_the_run(name: str) -> None:
    selector, said = CONTRADICTIONS[name]
    cohorts = cohorts_of(selector, selector.release(1.0, 200, 60), 200)
    with pytest.raises(ValueError, match=said):
        draw_all(cohorts, 60)


def test_a_foreign_class_that_draws_as_it_declares_is_never_stopped() -> None:
    generator = np.random.default_rng(1)
    for num_users, rounds in ((200, 300), (30, 300), (3, 300), (20_000, 40)):
        honest = Drawn(lambda n, r: np.flatnonzero(generator.random(n) < 0.2))
        cohorts = cohorts_of(honest, honest.release(1.0, num_users, rounds), num_users)
        for round in range(1, rounds + 1):
            cohorts.draw(round)


def batches(num_users: int, size: int) -> Callable[[int, int], object]:
    """Everybody in a random order, batch after batch, and anew at the end."""
    order = RNG.permutation(num_users)

    def select(num_users: int, round: int) -> object:
        nonlocal order
        at = (round - 1) % (num_users // size)
        order = RNG.permutation(num_users) if at == 0 else order
        return order[at * size : (at + 1) * size]

    return select


@pytest.mark.parametrize(
    ("declared", "num_users"),
    [
        (acc.PoissonUsers(1.0, 0.25, 60), 30),
        (acc.PoissonUsers(1.0, 0.01, 60), 300),
        (acc.FixedSize(1.0, 12, 3, 60), 12),
        (acc.FixedSize(1.0, 10_000, 5_000, 60), 10_000),
    ],
)
def test_so_many_rounds_are_drawn_that_two_keys_seldom_agree_in_all(
    declared: acc.PoissonUsers | acc.FixedSize, num_users: int
) -> None:
    rounds = rounds_to_differ(declared, num_users)
    assert rounds is not None
    if isinstance(declared, acc.FixedSize):
        equal = 1.0 / math.comb(num_users, declared.cohort_size) if num_users < 1000 else 0.0
    else:
        users = np.random.default_rng(0).random((2, 10**6)) < declared.sampling_prob
        equal = (users[0] == users[1]).mean() ** num_users
    assert equal**rounds < 1.1 * FALSE_ALARM / 8 <= (equal ** (rounds - 1) if equal else 1.0)


@pytest.mark.parametrize(
    "declared",
    [None, acc.NoAmplification(1.0, 3), acc.PoissonUsers(1.0, 1.0, 60), acc.PoissonUsers(1.0, 0.25, 2),
     acc.PoissonUsers(1.0, 1e-4, 1000), acc.FixedSize(1.0, 12, 12, 60), acc.FixedSize(1.0, 12, 3, 3)],
)  # fmt: skip
def test_keys_are_not_compared_where_equal_cohorts_prove_nothing(declared: UserLevel | None) -> None:
    assert rounds_to_differ(declared, 12) is None


@pytest.mark.parametrize("num_users", [30, 200])
@pytest.mark.parametrize(
    ("rule", "is_fixed", "said"),
    [
        ("one size", False, "cohorts whose sizes, in"),
        ("batches", False, "cohorts whose (sizes|shares of users who were chosen more often than others), in"),
        ("batches", True, "cohorts whose shares of users who were chosen more often than others, in"),
    ],
)
def test_cohorts_that_are_too_even_for_chance_stop_the_run(
    num_users: int, rule: str, is_fixed: bool, said: str
) -> None:
    size = num_users // 5
    alike: Callable[[int, int], object] = lambda n, r: RNG.choice(n, size, replace=False)  # noqa: E731
    select_fn = alike if rule == "one size" else batches(num_users, size)
    declared = acc.FixedSize(1.0, num_users, size, 60) if is_fixed else acc.PoissonUsers(1.0, 0.2, 60)
    cohorts = cohorts_of(Drawn(select_fn, declared=declared), declared, num_users)
    with pytest.raises(ValueError, match=said):
        draw_all(cohorts, 60)


def test_who_is_drawn_by_chance_seldom_wins_against_and_never_enough_to_be_stopped() -> None:
    """2,000 runs of a few users: the wealth reaches w in at most one of w, and what stops a run in none."""
    generator = np.random.default_rng(2)
    most = []
    for run in range(2000):
        num_users, prob, size = ((3, 0.5, 1), (6, 0.3, 3), (12, 0.2, 2))[run % 3]
        is_fixed = run % 2 == 1
        declared = acc.FixedSize(1.0, num_users, size, 20) if is_fixed else acc.PoissonUsers(1.0, prob, 20)
        wager, wealth = Wager(declared, num_users), 0.0
        for _ in range(20):
            drawn = generator.choice(num_users, size, replace=False) if is_fixed else generator.random(num_users) < prob
            wager.see(np.sort(drawn) if is_fixed else np.flatnonzero(drawn))
            wealth = max(wealth, wager.log_wealth)
        most.append(wealth)
    for factor in (5, 20, 100):
        assert np.mean(np.array(most) >= math.log(factor)) <= 1 / factor
    assert max(most) < -math.log(FALSE_ALARM)


@pytest.mark.parametrize("declared", [acc.PoissonUsers(1.0, 0.4, 9), acc.FixedSize(1.0, 6, 2, 9)])
def test_every_bet_is_fair(declared: acc.PoissonUsers | acc.FixedSize) -> None:
    """Over all cohorts that the sixth round can have, each with its probability, the mean factor of each bet is 1."""
    generator = np.random.default_rng(3)
    users = [np.flatnonzero([(mask >> user) & 1 for user in range(6)]) for mask in range(64)]
    if isinstance(declared, acc.FixedSize):
        users = [cohort for cohort in users if len(cohort) == 2]
        probs = np.full(len(users), 1 / len(users))
    else:
        probs = np.array([0.4 ** len(cohort) * 0.6 ** (6 - len(cohort)) for cohort in users])
    history = [users[at] for at in generator.integers(0, len(users), 5)]
    means = np.zeros(21)
    for cohort, prob in zip(users, probs, strict=True):
        wager = Wager(declared, 6)
        for earlier in history:
            wager.see(earlier)
        before = np.concatenate(wager.log_stakes)
        wager.see(cohort)
        means += prob * np.exp(np.concatenate(wager.log_stakes) - before)
    np.testing.assert_allclose(means, 1.0, rtol=1e-9)


def test_a_declaration_for_another_run_or_another_unit_is_refused() -> None:
    everybody = lambda n, r: range(n)  # noqa: E731
    for declared, said in (
        (acc.RecordLevel(1.0, 0.2, 10, 4), "declares acc.PoissonUsers, acc.FixedSize or"),
        (acc.AdaptiveClipping(acc.PoissonUsers(1.0, 0.2, 10), 5.0), "declares acc.PoissonUsers"),
        (acc.PoissonUsers(1.0, 0.2, 9), "declared rounds=9 for a run with 10"),
        (acc.PoissonUsers(2.0, 0.2, 10), "declared noise_multiplier=2.0 for a run with 1.0"),
        (acc.FixedSize(1.0, 1000, 20, 10), "declared num_users=1000 for a run with 100"),
    ):
        with pytest.raises(acc.AccountingError, match=said):
            declared_release(Drawn(everybody, declared=declared), 1.0, USERS, 10)
    assert declared_release(PoissonSelector(0.1), 1.0, USERS, 10) == acc.PoissonUsers(1.0, 0.1, 10)


@pytest.mark.parametrize("chosen", [[0.5], [[0], [1]], ["a"], [True]])
def test_a_cohort_that_is_no_list_of_numbers_is_refused(chosen: list[object]) -> None:
    with pytest.raises(ValueError, match="no list of user numbers"):
        cohort(Drawn(lambda n, r: chosen), 1)


def test_a_class_that_neither_selects_nor_states_probabilities_is_refused() -> None:
    class Neither:
        def expected_cohort_size(self, num_users: int) -> float:
            return 1.0

        def release(self, noise_multiplier: float, num_users: int, rounds: int) -> acc.Description:
            return acc.PoissonUsers(noise_multiplier, 0.1, rounds)

    with pytest.raises(ValueError, match=r"select\(\) raised AttributeError"):
        cohort(Neither(), 1)  # type: ignore[arg-type]
