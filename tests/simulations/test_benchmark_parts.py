"""What each part of a benchmark measures, and that its ratio is the right way round."""

import importlib.util
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message

from fedsim_userdp.federation.worker import Worker
from fedsim_userdp.models.loading import ModelSource
from fedsim_userdp.selection import CyclicSelector
from fedsim_userdp.simulations.measurements import curves, memory, overhead, population, runtimes, startup, updates
from fedsim_userdp.simulations.measurements.results import PartResult
from fedsim_userdp.simulations.measurements.synthetic import SyntheticUsers, synthetic_store
from fedsim_userdp.simulations.measurements.timing import (
    Alternation,
    BenchmarkError,
    RoundTimes,
    Stopwatch,
    affordable,
    take_turns,
)
from fedsim_userdp.simulations.measurements.training import TrainingRounds, benchmark_strategy
from fedsim_userdp.simulations.measurements.watched_rounds import StepwiseRounds, WatchedStrategy, nodes_in_this_process
from fedsim_userdp.simulations.measurements.workbench import Workbench, check_agreement, relative_distance
from fedsim_userdp.training.batches import Unit
from tests.simulations.benchmark_setup import small_bench


class FakeClock:
    """Time that passes only where a test lets it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def passing(self, seconds: float) -> Callable[[], None]:
        """Something that takes so many seconds."""

        def run() -> None:
            self.now += seconds

        return run


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return small_bench(tmp_path_factory.mktemp("bench"))


POPULATIONS, AXES = (20, 40), {"cohort": (1, 2), "rank": (1, 2)}
PARTS: Mapping[str, Callable[[Workbench], PartResult]] = {
    "cohort_vs_plain": updates.cohort_vs_plain,
    "cohort_vs_one_by_one": updates.cohort_vs_one_by_one,
    "record_vs_opacus": updates.record_vs_opacus,
    "population_1e6_vs_1e3": partial(population.population_1e6_vs_1e3, populations=POPULATIONS),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_gives_a_positive_finite_ratio_for_each_repeat(name: str, bench: Workbench) -> None:
    comparison = PARTS[name](bench).comparison
    assert comparison is not None
    assert comparison.name == name
    assert len(comparison.ratios) >= bench.repeats
    assert all(0 < ratio < math.inf for ratio in comparison.ratios)


# Seconds that the sides are said to take, and the ratio that follows.
KNOWN = {
    "cohort_vs_plain": ({"cohort": 2.0, "plain": 6.0, "plain_packed_by_record": 1.0}, 3.0),
    "cohort_vs_one_by_one": ({"cohort": 2.0, "one_by_one": 8.0}, 4.0),
    "record_vs_opacus": ({"stacked": 2.0, "opacus": 5.0}, 2.5),
    "population_1e6_vs_1e3": ({"20": 2.0, "40": 3.0}, 1.5),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_parts_ratio_is_the_right_way_round(name: str, bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    known, expected = KNOWN[name]

    def said(sides: Mapping[str, object], repeats: int, stopwatch: Stopwatch) -> dict[str, list[float]]:
        assert sides.keys() == known.keys()
        return {side: [known[side]] * repeats for side in sides}

    for module in (updates, population):
        monkeypatch.setattr(module, "take_turns", said)
    comparison = PARTS[name](bench).comparison
    assert comparison is not None
    assert comparison.ratio == expected


def test_sides_take_turns_after_one_warm_up_each_and_neither_always_comes_first() -> None:
    clock, order = FakeClock(), list[str]()

    def side(name: str, seconds: float) -> None:
        order.append(name)
        clock.now += seconds

    sides = {"a": partial(side, "a", 1.0), "b": partial(side, "b", 3.0)}
    seconds = take_turns(sides, 3, Stopwatch(clock=clock))
    assert seconds == {"a": [1.0] * 3, "b": [3.0] * 3}
    assert order == ["a", "b", "a", "b", "b", "a", "a", "b"]


def test_an_alternation_leaves_out_warm_rounds_and_the_others_time() -> None:
    clock = FakeClock()
    turns = Alternation("flower", "in_process", clock.passing(2.0), Stopwatch(clock=clock), num_warm=1)
    turns.begin()
    for seconds in (50.0, 8.0, 9.0):
        clock.now += seconds
        turns.lap()
    assert turns.seconds == {"flower": [8.0, 9.0], "in_process": [2.0, 2.0]}


def test_round_times_leave_out_warm_rounds_and_what_comes_between() -> None:
    clock = FakeClock()
    times = RoundTimes("flower", Stopwatch(clock=clock), num_warm=1)
    for seconds in (50.0, 8.0, 9.0):
        clock.now += 100.0
        times.begin()
        clock.now += seconds
        times.lap()
    assert times.seconds == {"flower": [8.0, 9.0]}


def test_as_many_users_are_taken_as_fit_into_the_time() -> None:
    clock = FakeClock()
    units = [Unit(i, [np.arange(5)]) for i in range(100)]

    def run(chosen: object) -> None:
        clock.now += 0.1 * len(chosen)  # type: ignore[arg-type]

    assert len(affordable(units, run, 4.05, Stopwatch(clock=clock))) == 40
    assert len(affordable(units, run, 1e-9, Stopwatch(clock=clock))) == 8
    assert len(affordable(units, run, 1e9, Stopwatch(clock=clock))) == 100


def test_sides_with_different_results_are_refused() -> None:
    a = {"w": torch.tensor([3.0, 4.0])}
    model = ModelSource(device="cpu")
    assert check_agreement("part", {"w": a["w"] * (1 + 1e-6)}, a, model) == pytest.approx(1e-6, rel=0.1)
    for wrong in (a["w"] * 1.0001, torch.tensor([math.nan, 4.0])):
        with pytest.raises(BenchmarkError, match="part: the two sides' results differ"):
            check_agreement("part", {"w": wrong}, a, model)
    mixed = ModelSource(device="cpu", autocast="bfloat16")
    assert check_agreement("part", {"w": a["w"] * 1.01}, a, mixed) == pytest.approx(0.01, rel=0.1)
    with pytest.raises(BenchmarkError, match="part: the two sides' results differ"):
        check_agreement("part", {"w": a["w"] * 1.2}, a, mixed)


def test_the_loop_over_users_clips_each_of_them(bench: Workbench) -> None:
    units = bench.users()[:4]
    model = bench.fresh_model()
    found = updates.one_by_one_sum(bench, model, units)
    expected = updates.cohort_update(bench, bench.run.study.gradients(bench.fresh_model()), units).clipped.total
    assert relative_distance(found, expected) <= 1e-5
    assert math.sqrt(sum(float(t.square().sum()) for t in found.values())) <= 4 * bench.mechanism.clip_norm


def test_overhead_is_what_is_left_of_the_rounds_without_gradients_and_evaluations() -> None:
    clock = FakeClock()
    rounds = overhead.RoundClock(Stopwatch(clock=clock))
    rounds.mark()
    for computing, rest in ((8.0, 2.0), (3.0, 1.0)):
        rounds.add(computing)
        clock.now += computing + rest
        rounds.mark()
    times = rounds.times()
    assert times.total == [10.0, 4.0]
    assert times.computing == [8.0, 3.0]
    assert [sum(w.total) for w in overhead.RoundSeconds([1.0] * 7, [0.5] * 7).windows(3)] == [3.0, 3.0]
    assert len(overhead.RoundSeconds([1.0] * 2, [0.5] * 2).windows(3)) == 1


def test_overhead_is_measured_on_the_configured_run(bench: Workbench) -> None:
    comparison = overhead.overhead_share(bench).comparison
    assert comparison is not None
    assert len(comparison.ratios) == bench.mechanism.rounds  # evaluation.every=1
    assert (comparison.name, comparison.over, comparison.under) == ("overhead_share", "overhead", "round")
    assert all(0 < share < 1 for share in comparison.ratios)
    assert not [path for path in bench.folder.iterdir() if path.name.startswith("overhead-")]


def test_cost_curves_have_a_point_for_each_value_and_a_slope(bench: Workbench) -> None:
    found = curves.cost_curves(bench, AXES).curves
    assert {curve.axis: tuple(curve.points) for curve in found} == AXES
    assert all(len(seconds) == bench.repeats for curve in found for seconds in curve.points.values())
    assert all(math.isfinite(curve.slope) for curve in found)


def test_cohorts_are_drawn_from_populations_of_every_size(bench: Workbench) -> None:
    draws = population.population_1e6_vs_1e3(bench, POPULATIONS).draws
    assert [draw.num_users for draw in draws] == list(POPULATIONS)
    assert all(draw.open_seconds > 0 and draw.draw_seconds > 0 and draw.split_seconds > 0 for draw in draws)


def test_synthetic_users_are_built_once_and_all_alike(tmp_path: Path) -> None:
    users = SyntheticUsers(num_users=7, records=3, length=5)
    store = synthetic_store(users, tmp_path)
    assert store.num_users == 7
    assert all([len(record) for record in store.records(user)] == [5] * 3 for user in range(7))
    built = (store.path / "store.json").stat().st_mtime_ns
    assert (synthetic_store(users, tmp_path).path / "store.json").stat().st_mtime_ns == built


def test_a_round_takes_memory(bench: Workbench) -> None:
    recipe = replace(runtimes.fixed_task(bench), threads=None)
    measured = memory.memory_of_round(recipe, cohort=2)
    assert 0 < measured.before <= measured.peak


def test_every_round_of_a_training_is_another(bench: Workbench) -> None:
    worker = runtimes.fixed_task(bench).build()
    training = TrainingRounds.in_process(worker, benchmark_strategy(worker, CyclicSelector(2)))
    states = [training.state]
    for _ in range(2):
        training()
        states.append(training.state)
    assert all(relative_distance(a, b) > 0 for a, b in itertools.pairwise(states))


def test_one_node_and_two_nodes_take_turns_on_one_grid_and_train_the_same_model(bench: Workbench) -> None:
    worker, selector = runtimes.fixed_task(bench).build(), CyclicSelector(4)
    grid, clock = nodes_in_this_process(worker, num_nodes=2), FakeClock()
    asked: list[int] = []
    push = grid.push_messages
    grid.push_messages = lambda messages: push(_noted(messages, asked))  # type: ignore[method-assign]
    two = benchmark_strategy(worker, selector, num_nodes=2, deals_by_size=True)
    one = TrainingRounds(benchmark_strategy(worker, selector, deals_by_size=True), lambda: watched.first_node)
    turns = Alternation("two_workers", "one_worker", one, Stopwatch(clock=clock), num_warm=1)
    watched = WatchedStrategy(two, turns)
    rounds = StepwiseRounds(watched, two.optimizer.state, lambda: grid)
    for _ in range(3):
        rounds()
    assert asked == [1, 2, 1] * 3  # both nodes, then the first alone
    assert {side: len(seconds) for side, seconds in turns.seconds.items()} == {"two_workers": 2, "one_worker": 2}
    assert relative_distance(one.state, two.optimizer.state) <= 1e-5


def _noted(messages: Iterable[Message], asked: list[int]) -> list[Message]:
    listed = list(messages)
    asked += [message.metadata.dst_node_id for message in listed]
    return listed


@pytest.mark.skipif(importlib.util.find_spec("pfl") is None, reason="pfl is not installed")
def test_the_pfl_program_trains_the_same_model(bench: Workbench) -> None:
    from fedsim_userdp.simulations.measurements.pfl_program import PflSettings, PflTraining

    without_noise = {"clip_norm": 0.05, "noise_multiplier": 0.0, "learning_rate": 1.0}
    worker = runtimes.fixed_task(bench).build()
    own = _own_training(worker, CyclicSelector(4), without_noise)
    other = PflTraining(
        runtimes.fixed_task(bench).build(),
        4,
        PflSettings(**without_noise, optimizer_fn=torch.optim.SGD),
    )
    start = own.state
    turns = Alternation("pfl", "in_process", own, Stopwatch(), num_warm=0)
    other.run(3, turns)
    changes = [{n: s[n] - start[n] for n in start} for s in (_without_wrapper(other.state), own.state)]
    assert relative_distance(changes[0], changes[1]) <= 1e-4
    assert min(map(len, turns.seconds.values())) == 3


def _own_training(worker: Worker, selector: CyclicSelector, settings: Mapping[str, float]) -> TrainingRounds:
    strategy = benchmark_strategy(worker, selector, optimizer_fn=torch.optim.SGD, **settings)  # type: ignore[arg-type]
    return TrainingRounds.in_process(worker, strategy)


def _without_wrapper(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("model."): tensor for name, tensor in state.items()}


@pytest.mark.slow
def test_a_fresh_processs_memory_is_not_its_parents(bench: Workbench) -> None:
    ballast = np.ones(2 << 30, dtype=np.uint8)
    measured = memory.in_fresh_process(runtimes.fixed_task(bench), cohort=2)
    assert 100_000_000 < measured.peak < ballast.nbytes


@pytest.mark.slow
def test_memory_is_measured_in_pairs(bench: Workbench) -> None:
    comparison = memory.memory_512_vs_64(bench, cohorts=(4, 2)).comparison
    assert comparison is not None
    assert comparison.unit == "bytes"
    assert (comparison.over, comparison.under) == ("4", "2")
    assert all(0.5 < ratio < 2 for ratio in comparison.ratios)


@pytest.mark.slow
@pytest.mark.parametrize("part", [runtimes.cohort_vs_flower, runtimes.two_workers_vs_one])
def test_flower_takes_turns_and_trains_the_same_model(
    part: Callable[[Workbench], PartResult], bench: Workbench
) -> None:
    comparison = part(bench).comparison
    assert comparison is not None
    assert len(comparison.ratios) == bench.repeats
    assert all(0 < ratio < math.inf for ratio in comparison.ratios)
    assert float(str(comparison.notes["relative_distance"])) <= 1e-5
    assert comparison.under in ("in_process", "two_workers")


@pytest.mark.slow
def test_startup_waits_for_the_first_round_and_ends_the_run_there(tmp_path: Path) -> None:
    found = startup.startup(replace(small_bench(tmp_path, "seed=1"), overrides=("seed=1", "benchmark.repeats=1")))
    assert found.startup is not None
    assert min(found.startup.help_seconds) < min(found.startup.first_round_seconds)


@pytest.mark.slow
def test_a_run_that_ends_before_its_first_round_is_reported() -> None:
    with pytest.raises(BenchmarkError, match=r"before its first round .*clip_norm"):
        startup.seconds_until_first_round(["mechanism.clip_norm=-1"], Stopwatch())
