"""Selectors that pay for a signal, through whole runs: what it costs, what is told, resume, refusals."""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim_userdp import Study, UserWise, UserWiseAdaptive, acc, run
from fedsim_userdp.errors import ConfigError, PluginError, RoundError
from fedsim_userdp.federation.worker import Worker
from fedsim_userdp.population import Past, Population
from fedsim_userdp.selectors import PowerOfChoiceSelector
from fedsim_userdp.signals import PaidSignal, Signal
from fedsim_userdp.strategies.user_level_dp import UserLevelDP
from tests.mechanisms.test_stated_selection import Calms, killed_in, stated, study_of, weights_in
from tests.simulations.zygote import Zygote


def power_of_choice(**given: Any) -> PowerOfChoiceSelector:
    keywords: dict[str, Any] = {"signals": {"loss": Signal(8.0, "region", 0.2)}}
    return PowerOfChoiceSelector(4, 0.6, **(keywords | given))


def noise_of_updates(study: Study, mechanism: UserWise, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The noise multipliers of updates and signals of a run, and the standard deviation of the count."""
    found: list[float] = []

    def sees(self: UserLevelDP, *arguments: Any) -> None:
        inner(self, *arguments)
        paid, adaptation = self.settings.signal, self.settings.adaptation
        found.extend([self.settings.noise_multiplier, paid.noise_multiplier if paid else math.inf])
        found.append(adaptation.count_stddev if adaptation else math.inf)

    inner = UserLevelDP.__init__
    with monkeypatch.context() as patch:
        patch.setattr(UserLevelDP, "__init__", sees)
        run(study, mechanism, folder)
    return found


@pytest.mark.parametrize("kind", [UserWise, UserWiseAdaptive])
def test_inverse_variances_add_up_to_what_is_accounted_for(
    kind: type[UserWise], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: Zygote
) -> None:
    folder = tmp_path / "run"
    update, signal, count = noise_of_updates(study_of(power_of_choice()), kind(rounds=2), folder, monkeypatch)
    (one,) = stated(folder).runs
    release = one.statement.release
    assert release is not None
    together = update**-2 + 2 * signal**-2 + (2 * count) ** -2
    assert together == pytest.approx(release.noise_multiplier**-2, rel=1e-12)
    assert 2 * signal**-2 / together == pytest.approx(0.2)
    inner = acc.inner_run(release)  # type: ignore[arg-type]
    assert isinstance(inner, acc.PoissonGroups)
    assert inner.groups == (((0.6, 1.0, 2),),)
    assert inner.adjacency is acc.Adjacency.ZERO_OUT_USER
    assert one.statement.epsilon == pytest.approx(acc.epsilon(inner, one.statement.delta or 0.0), rel=1e-12)
    page = (folder / "PRIVACY.md").read_text()
    assert f"with noise multiplier {signal:.4g} each" in page
    assert f"{update:.4g} times the clip norm on each sum" in page
    lines = (folder / "ledger" / f"{kind().name}-seed0.jsonl").read_text().splitlines()
    released = [json.loads(line)["release"] for line in lines if '"release"' in line]
    assert all("PaidSignals" in json.dumps(one) for one in released)
    assert len(released) == 2
    assert processes.run("verify", str(folder)).returncode == 0


@dataclass(frozen=True)
class Remembers:
    """Follows the loss of all users; keeps what it was told."""

    signals: Any = field(default_factory=lambda: {"loss": {"bound": 8.0, "share": 0.5}})

    def most(self, round: int, population: Population) -> float:
        return 0.8

    def probabilities(self, round: int, population: Population, past: Past) -> float:
        TOLD.append((round, [(r, *one.sums, *one.counts) for r, one in past.signals.get("loss", {}).items()]))
        return 0.8 if not past.signals else min(0.8, 0.1 + abs(float(past.signals["loss"][past.rounds].sums[0])) % 0.7)


TOLD: list[tuple[int, list[tuple[float, ...]]]] = []


@pytest.mark.parametrize("mechanism", [UserWise(rounds=3), UserWiseAdaptive(rounds=3)])
def test_what_was_told_is_the_same_after_a_kill(
    mechanism: UserWise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TOLD.clear()
    run(study_of(Remembers()), mechanism, tmp_path / "whole")
    told = dict(TOLD)
    assert [round for round, *_ in told[3]] == [1, 2]
    if type(mechanism) is UserWise:
        killed_in(3, monkeypatch, study_of(Remembers()), tmp_path / "broken")
        TOLD.clear()
        run(study_of(Remembers()), mechanism, tmp_path / "broken", resume=True)
        assert dict(TOLD)[3] == told[3]
        assert weights_in(tmp_path / "broken") == weights_in(tmp_path / "whole")


def test_without_noise_the_loss_is_told_as_it_is_of_single_users_too(tmp_path: Path) -> None:
    TOLD.clear()
    run(study_of(Remembers({"loss": Signal(20.0, "user")}), budget=math.inf), UserWise(rounds=2), tmp_path / "run")
    ((_, *told),) = dict(TOLD)[2]
    sums, counts = np.array(told).reshape(2, 11)
    assert set(counts) <= {0.0, 1.0}
    assert counts.sum() >= 4
    assert (sums[counts == 1] > 1).all()
    assert (sums[counts == 0] == 0).all()


def test_single_users_are_refused_where_noise_hides_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Remembers: signals\.loss\.groups=user tells of single users"):
        run(study_of(Remembers({"loss": Signal(20.0, "user")})), UserWise(rounds=2), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Deaf:
    signals = {"loss": Signal(3.0)}  # noqa: RUF012

    def probabilities(self, round: int, population: Population, past: Past) -> float:
        return 0.5


class Chooses:
    signals = {"loss": Signal(3.0)}  # noqa: RUF012

    def select(self, num_users: int, round: int, generator: np.random.Generator) -> np.ndarray:
        return np.arange(3)

    def expected_cohort_size(self, num_users: int) -> float:
        return 3.0

    def release(self, noise_multiplier: float, num_users: int, rounds: int) -> acc.Description:
        return acc.Unamplified(noise_multiplier=noise_multiplier, max_participations=rounds)


@pytest.mark.parametrize("selector", [Deaf(), Chooses()])
def test_a_class_that_is_never_shown_its_signal_does_not_pay_for_it(selector: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has signals and does not follow them"):
        run(study_of(selector), UserWise(rounds=2), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class LeastLoss:
    """Chooses three users of the region with the larger loss, as it was told; nothing is amplified."""

    signals = {"loss": Signal(8.0, "region")}  # noqa: RUF012

    def cohort(
        self, round: int, population: Population, past: Past, rng_round: np.random.Generator, rng_run: Any
    ) -> np.ndarray:
        WHERE.append((round, len(past.signals.get("loss", {}))))
        region = np.unique(population.column("region"), return_inverse=True)[1]
        means = past.means("loss")
        chosen = 0 if np.isnan(means).any() else int(np.argmax(means))
        return rng_round.permutation(np.flatnonzero(region == chosen))[:3]

    def expected_cohort_size(self, population: Population) -> float:
        return 3.0

    def release(self, noise_multiplier: float, population: Population, rounds: int) -> acc.Description:
        return acc.Unamplified(noise_multiplier=noise_multiplier, max_participations=rounds)


WHERE: list[tuple[int, int]] = []


def test_a_schedule_under_a_cap_may_pay_for_a_signal_and_follow_it(tmp_path: Path) -> None:
    WHERE.clear()
    run(study_of(LeastLoss()), UserWise(rounds=3), tmp_path / "run")
    assert {(1, 0), (2, 1), (3, 2)} <= set(WHERE)
    release = stated(tmp_path / "run").runs[0].statement.release
    assert isinstance(release, acc.PaidSignals)
    assert isinstance(release.run, acc.NoAmplification)


def test_a_group_that_is_no_public_column_is_refused_before_anything_trains(tmp_path: Path) -> None:
    selector = power_of_choice(signals={"loss": Signal(8.0, "country")})
    with pytest.raises((ConfigError, PluginError), match="country"):
        run(study_of(selector), UserWise(rounds=2), tmp_path / "run")
    assert not (tmp_path / "run").exists()


CHANGING: list[float] = []


class Changing:
    """Asks for a larger bound, and a smaller share, at each question."""

    @property
    def signals(self) -> Any:
        CHANGING.append(1.0)
        return {"loss": {"bound": 1.0 * len(CHANGING), "share": 0.5 / len(CHANGING)}}

    def most(self, round: int, population: Population) -> float:
        return 0.8

    def probabilities(self, round: int, population: Population, past: Past) -> float:
        return 0.8


def test_a_signal_that_changes_is_released_with_the_noise_of_its_own_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[float, float]] = []
    inner = PaidSignal.release

    def sees(self: PaidSignal, answer: Any, source: Any, round: int) -> Any:
        found.append((self.signal.bound, self.noise_multiplier))
        assert np.abs(answer[0]).max() <= 11 * self.signal.bound / 2 * (1 + 1e-9)
        return inner(self, answer, source, round)

    monkeypatch.setattr(PaidSignal, "release", sees)
    run(study_of(Changing()), UserWise(rounds=2), tmp_path / "run")
    release = stated(tmp_path / "run").runs[0].statement.release
    assert isinstance(release, acc.PaidSignals)
    assert len(set(found)) == 1
    assert found[0][1] == pytest.approx(release.signal_noise_multiplier)


@pytest.mark.parametrize("selector", [Remembers(), Calms()])
def test_a_node_that_answers_more_than_its_users_can_send_is_not_heard(
    selector: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = Worker.train

    def lies(self: Worker, request: Any) -> Any:
        return replace(inner(self, request), signals=np.array([[4.1 * len(request.users)], [len(request.users)]]))

    monkeypatch.setattr(Worker, "train", lies)
    with pytest.raises(RoundError, match="signals"):
        run(study_of(selector), UserWise(rounds=2), tmp_path / "run")


def test_the_shipped_one_gives_more_to_the_group_of_larger_loss() -> None:
    population = Population(np.arange(40, dtype=np.uint64), {"region": np.array(["a"] * 10 + ["b"] * 30)})
    selector = PowerOfChoiceSelector(8, 0.4, {"loss": Signal(8.0, "region")}, explore=0.25)
    assert selector.probabilities(1, population, Past()) == pytest.approx(np.full(40, 0.2))
    from fedsim_userdp.population import Reported

    for larger, probs in ((0, [0.4, 4 / 30]), (1, [0.05, 7.5 / 30])):
        sums = np.array([10.0, 10.0])
        sums[larger] = 20.0
        past = Past(1, {}, {"loss": {1: Reported(sums, np.array([5.0, 5.0]))}})
        stated_probs = selector.probabilities(2, population, past)
        assert stated_probs[[0, 39]] == pytest.approx(probs)
        assert stated_probs.sum() == pytest.approx(8.0)
        assert stated_probs.max() <= 0.4
    unknown = Past(1, {}, {"loss": {1: Reported(np.array([1.0, 40.0]), np.array([0.1, 5.0]))}})
    assert selector.probabilities(2, population, unknown)[0] == pytest.approx(0.4)


@pytest.mark.parametrize(
    "given",
    [
        {"cohort_size": 0}, {"most_prob": 0.0}, {"most_prob": 1.1}, {"explore": 0.0}, {"half_life": 0.0},
        {"signals": {}}, {"signals": {"loss": {"bound": 3.0}}},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(given: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"cohort_size": 4, "most_prob": 0.5, "signals": {"loss": Signal(8.0, "region")}} | given
    with pytest.raises(ValueError, match=next(iter(given))):
        PowerOfChoiceSelector(**settings)


def test_a_cohort_that_the_highest_probability_cannot_fill_is_refused(tmp_path: Path) -> None:
    selector = PowerOfChoiceSelector(8, 0.5, {"loss": Signal(8.0, "region")})
    with pytest.raises(ValueError, match="cohort_size=8 is more than most_prob"):
        run(study_of(selector), UserWise(rounds=2), tmp_path / "run")
