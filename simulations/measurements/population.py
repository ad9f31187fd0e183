"""What a round and a cohort's draw take at a thousand and at a million users."""

import statistics
from collections.abc import Callable, Sequence
from functools import partial

from fedsim_userdp.data.split import split_users
from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.federation.worker import Worker
from fedsim_userdp.participation import draw_cohort
from fedsim_userdp.selection import FixedSizeSelector, PoissonSelector
from fedsim_userdp.simulations.measurements.results import CohortDraw, Comparison, PartResult
from fedsim_userdp.simulations.measurements.synthetic import SyntheticUsers
from fedsim_userdp.simulations.measurements.timing import Stopwatch, take_turns
from fedsim_userdp.simulations.measurements.training import TrainingRounds, benchmark_strategy
from fedsim_userdp.simulations.measurements.workbench import Workbench
from fedsim_userdp.training.gradients import unit_gradients
from fedsim_userdp.training.users import TrainingUsers

POPULATIONS = (1_000, 10_000, 100_000, 1_000_000)
COHORT = 100
_RECORDS, _LENGTH = 2, 16  # of every user
_HELD_OUT = 100


def population_1e6_vs_1e3(bench: Workbench, populations: Sequence[int] = POPULATIONS) -> PartResult:
    """Seconds of a round with the same cohort at the largest population over those at the smallest; and cohort draws.

    All users have records of the same size and a cohort has a fixed size, so that only the population differs.

    Args:
        bench: the benchmark.
        populations: numbers of users, ascending.
    """
    users = {size: SyntheticUsers(size, _RECORDS, _LENGTH).recipe(bench.cache_dir).open() for size in populations}
    gradients = unit_gradients(bench.fresh_model(), _LENGTH)
    rounds = {
        str(size): _training(Worker(gradients, users[size], bench.run.study.local), min(COHORT, populations[0] // 2))
        for size in (populations[-1], populations[0])
    }
    seconds = take_turns(rounds, bench.repeats, bench.stopwatch)
    over, under = rounds
    comparison = Comparison(
        "population_1e6_vs_1e3", seconds, over, under, work={"users": min(COHORT, populations[0] // 2)}
    )
    return PartResult(comparison, draws=[cohort_draw(users[size], bench.repeats) for size in populations])


def cohort_draw(users: TrainingUsers, repeats: int) -> CohortDraw:
    """Returns what it takes to open these users' store and to draw a Poisson cohort with its tokens, medians."""
    stopwatch, num_users, population = Stopwatch(), len(users), users.population
    selector = PoissonSelector(min(1.0, COHORT / num_users))

    def draw(round: int) -> None:
        users.units((int(user) for user in draw_cohort(selector, population, round, users.key)), round)

    store = TokenStore(users.store.path)
    held_out = min(_HELD_OUT, num_users // 2)
    return CohortDraw(
        num_users=num_users,
        open_seconds=_median(stopwatch, lambda _: TokenStore(store.path), repeats),
        draw_seconds=_median(stopwatch, draw, repeats),
        split_seconds=_median(stopwatch, lambda _: split_users(store, heldout_users=held_out, seed=0), repeats),
        expected_cohort=selector.sampling_prob * num_users,
    )


def _training(worker: Worker, cohort: int) -> TrainingRounds:
    """Rounds on one node in this process."""
    return TrainingRounds.in_process(worker, benchmark_strategy(worker, FixedSizeSelector(cohort)))


def _median(stopwatch: Stopwatch, run: Callable[[int], object], repeats: int) -> float:
    """The median seconds of `run`, given the number of the repeat; one run before does not count."""
    run(repeats + 1)
    return statistics.median(stopwatch.seconds(partial(run, repeat)) for repeat in range(1, repeats + 1))
