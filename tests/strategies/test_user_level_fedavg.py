import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Result
from scipy import stats

from fedsim_userdp.errors import BudgetExceeded, LedgerError, RoundError
from fedsim_userdp.federation.engines.in_process import InProcessGrid
from fedsim_userdp.federation.user_level import clipped_update
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.ledger import Ledger, check_ledger
from fedsim_userdp.privacy.noise import OperatingSystemNoise
from fedsim_userdp.strategies.user_level_fedavg import UserLevelFedAvg
from tests.federation.own_app import Arrays, arrays_of, moved_by, ordinary_app, record
from tests.known import known

SIZE, CLIP, DELTA = 5000, 0.5, 1e-3
START = {"a": np.zeros((SIZE - 10, 1), np.float32), "b": np.full(10, 3.0, np.float32)}


class Silent:
    """No noise at all, so that a sum can be seen."""

    def standard_normal(self, size: int, round: int, stream: str = "noise") -> np.ndarray:
        return np.zeros(size)


@pytest.fixture
def without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OperatingSystemNoise, "standard_normal", Silent.standard_normal)


def strategy(folder: Path, num_users: int = 4, **settings: Any) -> UserLevelFedAvg:
    chosen: dict[str, Any] = {
        "clip_norm": CLIP,
        "epsilon": 4.0,
        "delta": DELTA,
        "sampling_prob": 1.0,
        "ledger": folder / "ledger.jsonl",
    }
    return UserLevelFedAvg(num_users=num_users, **{**chosen, **settings})


def start(app: ClientApp, trained: UserLevelFedAvg, rounds: int = 1, **options: Any) -> Result:
    grid = InProcessGrid(app, trained.num_users)
    return trained.start(grid=grid, initial_arrays=record(START), num_rounds=rounds, **options)


def moved(result: Result) -> np.ndarray:
    """How far the model fell, all weights in a row."""
    state = arrays_of(result.arrays)
    return np.concatenate([(START[name] - state[name]).ravel() for name in START]).astype(np.float64)


def only(nodes: Sequence[int], step: float = 1.0) -> ClientApp:
    """The nodes that have anything to learn from; the others answer with what they were sent."""
    return ordinary_app(lambda sent, node: moved_by(step)(sent, node) if node in nodes else sent)


def test_the_sum_of_clipped_updates_is_divided_by_the_expected_cohort(tmp_path: Path, without_noise: None) -> None:
    assert float(np.linalg.norm(moved(start(only([0, 1]), strategy(tmp_path))))) == pytest.approx(
        2 * CLIP / 4, rel=1e-4
    )


def test_the_denominator_does_not_follow_the_cohort(tmp_path: Path, without_noise: None) -> None:
    sampled = strategy(tmp_path, num_users=40, sampling_prob=0.3)
    steps = float(np.linalg.norm(moved(start(ordinary_app(moved_by(1.0)), sampled)))) * 0.3 * 40 / CLIP
    assert steps == pytest.approx(round(steps), abs=1e-3)


def test_a_user_more_moves_the_sum_by_at_most_the_clip_norm(tmp_path: Path, without_noise: None) -> None:
    sums = []
    for number, nodes in enumerate(([0, 1], [0, 1, 2])):

        def training(sent: Arrays, node: int, here: Sequence[int] = nodes) -> Arrays:
            return distinct(sent, node) if node in here else sent

        app = ordinary_app(training)
        sums.append(4 * moved(start(app, strategy(tmp_path, ledger=tmp_path / f"{number}.jsonl"))))
    assert 0.5 * CLIP < float(np.linalg.norm(sums[1] - sums[0])) <= CLIP * (1 + 1e-5)


def distinct(sent: Arrays, node: int) -> Arrays:
    generator = np.random.default_rng(node)
    return {name: array + generator.standard_normal(array.shape).astype(np.float32) for name, array in sent.items()}


@pytest.mark.parametrize("step", [1e-4, 1.0])
def test_a_client_that_lies_about_its_examples_changes_nothing(
    tmp_path: Path, without_noise: None, step: float
) -> None:
    honest, lying = (
        moved(start(ordinary_app(moved_by(step), number), strategy(tmp_path, ledger=tmp_path / f"{number}.jsonl")))
        for number in (1, 10**9)
    )
    np.testing.assert_array_equal(honest, lying)


def test_an_update_of_nan_adds_an_exact_zero(tmp_path: Path, without_noise: None) -> None:
    def training(sent: Arrays, node: int) -> Arrays:
        return {name: array * np.float32(math.nan if node == 0 else 1) for name, array in sent.items()}

    assert not moved(start(ordinary_app(training), strategy(tmp_path))).any()


def test_nodes_that_fail_count_as_zero_and_change_no_denominator(tmp_path: Path, without_noise: None) -> None:
    def training(sent: Arrays, node: int) -> Arrays:
        if node == 0:
            raise RuntimeError("out of memory")
        return moved_by(1.0)(sent, node)

    assert float(np.linalg.norm(moved(start(ordinary_app(training), strategy(tmp_path))))) == pytest.approx(
        3 * CLIP / 4, rel=1e-4
    )


def test_noise_has_the_accountants_stddev_and_half_of_it_is_rejected(tmp_path: Path) -> None:
    trained = strategy(tmp_path)
    sample = moved(start(only([]), trained)) * 4 / CLIP
    noise_multiplier = acc.calibrate(acc.PoissonUsers(1.0, 1.0, 1), epsilon=4.0, delta=DELTA).noise_multiplier
    low, high = stats.chi2.ppf([5e-10, 1 - 5e-10], SIZE)
    assert low < float(np.square(sample / noise_multiplier).sum()) < high
    for wrong in (0.5, 2.0):
        assert not low < float(np.square(sample / (noise_multiplier * wrong)).sum()) < high


def test_two_runs_never_have_the_same_noise(tmp_path: Path) -> None:
    first, second = (moved(start(only([]), strategy(tmp_path, ledger=tmp_path / name))) for name in ("1", "2"))
    assert abs(float(np.corrcoef(first, second)[0, 1])) < 0.1


def test_every_round_is_in_the_ledger_before_its_noise_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[int] = []

    def drawn(self: object, size: int, round: int, stream: str = "noise") -> np.ndarray:
        lines.append(len((tmp_path / "ledger.jsonl").read_text().splitlines()))
        return np.zeros(size)

    monkeypatch.setattr(OperatingSystemNoise, "standard_normal", drawn)
    start(only([0]), strategy(tmp_path), rounds=3)
    assert lines == [1, 2, 3]


def test_a_ledger_that_refuses_ends_the_run_before_the_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Ledger, *arguments: object) -> None:
        raise BudgetExceeded("enough")

    monkeypatch.setattr(Ledger, "record", refuse)
    seen: list[int] = []
    with pytest.raises(BudgetExceeded):
        start(only([0]), strategy(tmp_path), evaluate_fn=lambda round, arrays: seen.append(round))
    assert seen == [0]


def test_epsilon_is_that_of_the_ledger_by_the_accountant(tmp_path: Path) -> None:
    trained = strategy(tmp_path, num_users=6, sampling_prob=0.5)
    result = start(only([0]), trained, rounds=3)
    entries = check_ledger(tmp_path / "ledger.jsonl").entries
    assert [entry.round for entry in entries] == [1, 2, 3]
    assert {entry.noise_source for entry in entries} == {"os"}
    (release,) = {entry.release for entry in entries}
    epsilons = [acc.epsilon(acc.PoissonUsers(release.noise_multiplier, 0.5, rounds), DELTA) for rounds in (1, 2, 3)]
    assert trained.epsilon == pytest.approx(epsilons[-1], rel=1e-9)
    assert 0.99 * 4.0 <= known(trained.epsilon) <= 4.0
    shown = [result.train_metrics_clientapp[round] for round in (1, 2, 3)]
    assert [dict(metrics) for metrics in shown] == [{"epsilon": pytest.approx(value, rel=1e-9)} for value in epsilons]


def test_the_statement_says_whom_it_protects(tmp_path: Path) -> None:
    trained = strategy(tmp_path)
    assert trained.epsilon is None
    start(only([0]), trained)
    assert "DP for users" in known(trained.statement).claim
    assert "add or remove" in str(known(trained.statement).adjacency)


def test_a_ledger_with_releases_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    start(only([0]), strategy(tmp_path))
    before = (tmp_path / "ledger.jsonl").read_bytes()
    with pytest.raises(LedgerError, match="1 releases of an earlier run"):
        start(only([0]), strategy(tmp_path))
    assert (tmp_path / "ledger.jsonl").read_bytes() == before


def test_clients_are_told_the_rounds_config_and_nothing_of_the_cohort(tmp_path: Path) -> None:
    seen: list[dict[str, object]] = []
    app = ClientApp(mods=[clipped_update])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        seen.append(dict(message.content["config"]))
        assert set(message.content) == {"arrays", "config"}
        return Message(message.content, reply_to=message)

    start(app, strategy(tmp_path, num_users=2), rounds=2, train_config=ConfigRecord({"lr": 0.1}))
    assert seen == [{"lr": 0.1, "server-round": round} for round in (1, 1, 2, 2)]


def test_evaluation_is_at_the_server(tmp_path: Path) -> None:
    result = start(
        only([0]), strategy(tmp_path), evaluate_fn=lambda round, arrays: MetricRecord({"size": len(arrays)}), rounds=2
    )
    assert sorted(result.evaluate_metrics_serverapp) == [0, 1, 2]
    assert not result.evaluate_metrics_clientapp


def test_clients_without_the_mod_are_no_answer_at_all(tmp_path: Path) -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(message.content, reply_to=message)

    with pytest.raises(RoundError, match="nothing of the round was released"):
        start(app, strategy(tmp_path))
    assert not (tmp_path / "ledger.jsonl").read_bytes()


def test_a_model_with_running_statistics_is_refused_before_anything_is_spent(tmp_path: Path) -> None:
    arrays = record(START | {"bn.running_var": np.ones(3, np.float32)})
    with pytest.raises(ValueError, match="running_var"):
        strategy(tmp_path).start(InProcessGrid(only([0]), 4), arrays, 1)
    assert not (tmp_path / "ledger.jsonl").exists()


def test_more_nodes_than_users_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_users=3 must be the number of nodes, of which there are 4"):
        strategy(tmp_path, num_users=3).start(InProcessGrid(only([0]), 4), record(START), 1)


def test_fewer_nodes_than_users_are_waited_for(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="4 of 5 nodes"):
        strategy(tmp_path, num_users=5).start(InProcessGrid(only([0]), 4), record(START), 1, timeout=0.1)


@pytest.mark.parametrize(
    "wrong",
    [{"clip_norm": math.inf}, {"clip_norm": 0}, {"clip_norm": 3e38}, {"clip_norm": 1e-31},
     {"epsilon": math.inf}, {"sampling_prob": 0}, {"sampling_prob": 1.1},
     {"num_users": 1}, {"delta": 1.0}, {"learning_rate": 0}],
)  # fmt: skip
def test_numbers_out_of_range_are_refused_by_name(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        strategy(tmp_path, **wrong)


def test_rounds_are_trained_by_start_only(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="`start`"):
        strategy(tmp_path).aggregate_train(1, [])


def test_a_target_that_no_noise_meets_is_named(tmp_path: Path) -> None:
    with pytest.raises(acc.AccountingError, match=r"epsilon=4 at delta=0.9 over 2 rounds: "):
        strategy(tmp_path, delta=0.9, sampling_prob=0.1).calibrated(2)


def test_a_large_delta_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="flwr"):
        start(only([0]), strategy(tmp_path, delta=None))
    assert "is large: one user in 4 could be published whole" in caplog.text
