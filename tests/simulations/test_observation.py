"""The observer of whole audited runs, of a small model: what is published tells, and what runs of one audit share."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from client_selector import EveryOtherUser
from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.guarantee import Target
from fedsim_userdp.mechanisms.keys import RunKeys
from fedsim_userdp.mechanisms.user_wise import UserWise
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.report.audit import AuditedClaim, observers, summary
from fedsim_userdp.report.audit_progress import StepProgress
from fedsim_userdp.selection import CyclicSelector, FixedSizeSelector, PoissonSelector
from fedsim_userdp.simulations.auditor import Auditor, AuditSettings
from tests.simulations.small_runs import os_noise, small_run

CLAIMS = (0.5, 1.0)
SELECTORS = {"poisson": PoissonSelector(0.4), "fixed size": FixedSizeSelector(12), "cyclic": CyclicSelector(12)}
KINDS = {"direction": 8, "oversized": 8, "many_records": 8}
pytestmark = pytest.mark.usefixtures("quick_accounting")


def settings_of(epsilons: tuple[float, ...]) -> AuditSettings:
    """With two candidates, three right guesses of three refute nothing: what is refuted is so by the observer."""
    return AuditSettings(epsilons, 0.95, 2, None, KINDS, window=16, records_per_user=1)


def audited(
    folder: Path, store: TokenStore, source: str, epsilons: tuple[float, ...] = CLAIMS, **changes: Any
) -> list[AuditedClaim]:
    run = small_run(folder, store, target=Target(8.0, 1e-6), **changes)
    mechanism = UserWise(name="user_wise", learning_rate=0.05, clip_norm=0.3, rounds=6, records_per_user=2)
    auditor = Auditor(
        os_noise(run) if source == "os" else run, mechanism, settings_of(epsilons),
        StepProgress(Console(file=io.StringIO())),
    )  # fmt: skip
    return [auditor.audit(epsilon) for epsilon in epsilons]


def with_key_of(key: RunKey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every audited run has this key."""
    monkeypatch.setattr(Auditor, "_keys", lambda auditor, epsilon: RunKeys.of(key))


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("source", ["os", "seeded"])
def test_correct_runs_are_not_refuted_whoever_is_selected(
    name: str, source: str, tmp_path: Path, store: TokenStore
) -> None:
    """Cohorts of a cycle are public: to know them refutes nothing, in a release neither."""
    claims = audited(tmp_path, store, source, selector=SELECTORS[name])
    assert summary(claims) == "Not refuted: epsilon 0.50, 1.00."
    assert not any("REFUTED" in line for line in observers(claims))
    for claim in claims:
        assert (claim.observed["cohort_p"] < 1e-6) == (name == "cyclic" or source == "seeded")
        assert (claim.observed["noise_p"] < 1e-6) == (source == "seeded")
    assert claims[1].observed["others_noise_p"] > 1e-6
    assert (claims[1].observed["others_cohort_p"] < 1e-6) == (name == "cyclic")


@pytest.mark.parametrize("name", SELECTORS)
def test_releases_of_one_key_share_their_cohorts_which_refutes_where_these_are_secret(
    name: str, tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_key_of(RunKey.drawn(), monkeypatch)
    first, second = audited(tmp_path, store, "os", selector=SELECTORS[name])
    assert not first.is_refuted
    assert second.is_refuted == (name != "cyclic")
    assert not second.is_claim_refuted
    assert second.observed["others_cohort_p"] < 1e-6
    assert ("runs share what is secret" in second.observer) == second.is_refuted


@pytest.mark.parametrize("name", SELECTORS)
def test_seeded_runs_of_one_key_share_their_noise_which_refutes_what_they_claim_together(
    name: str, tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_key_of(RunKey.seeded(5, "one for all"), monkeypatch)
    first, second = audited(tmp_path, store, "seeded", selector=SELECTORS[name])
    assert not first.is_refuted
    assert second.is_secret_shared
    assert second.observed["others_noise_p"] < 1e-6
    assert "the joint epsilon of the runs" in summary([first, second])


@pytest.mark.parametrize(
    "key", [RunKey.seeded(3, ""), RunKey.seeded(0, ""), RunKey.seeded(0, "identity"), RunKey.seeded(3, "identity")]
)
def test_a_release_whose_key_somebody_would_try_is_refuted(
    key: RunKey, tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Auditor, "_identity", lambda auditor, epsilon: "identity")
    with_key_of(key, monkeypatch)
    (claim,) = audited(tmp_path, store, "os", (1.0,), seed=3)
    assert claim.is_secret_found
    assert "REFUTED" in claim.observer


@pytest.mark.parametrize("epsilons", [(math.inf, 1.0), (1.0, math.inf)])
def test_a_run_without_noise_is_neither_refuted_nor_held_against_others(
    epsilons: tuple[float, ...], tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_key_of(RunKey.seeded(0), monkeypatch)
    claims = {claim.claimed_epsilon is None: claim for claim in audited(tmp_path, store, "os", epsilons)}
    assert not claims[True].is_refuted
    assert "cohorts recomputed" in claims[True].observer
    assert "No claim rests on it." in claims[True].observer
    assert claims[False].is_secret_found
    assert not any("others_noise_p" in claim.observed for claim in claims.values())


class Counting(EveryOtherUser):
    """Remembers how often it was asked: each round once, in order."""

    def __init__(self) -> None:
        self.asked = 0

    def select(self, num_users: int, round: int, generator: np.random.Generator) -> np.ndarray:
        self.asked += 1
        if self.asked != round:
            raise ValueError(f"asked {self.asked} times in round {round}")
        return super().select(num_users, round, generator)


def test_a_selector_with_a_memory_starts_anew_in_every_run(tmp_path: Path, store: TokenStore) -> None:
    selector = Counting()
    assert not any(claim.is_refuted for claim in audited(tmp_path, store, "os", selector=selector))
    assert selector.asked == 0


@pytest.mark.parametrize("epsilons", [(8.0, 8.0), (1.0, 8.0, 8.0000001), (math.inf, math.inf)])
def test_epsilons_that_name_one_run_twice_are_refused(epsilons: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"audit\.epsilons=.* names epsilon (8|inf) twice"):
        settings_of(epsilons)
