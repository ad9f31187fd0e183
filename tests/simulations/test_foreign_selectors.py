"""Runs whose cohorts are drawn by a class that is not this package's."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from client_selector import EveryOtherUser
from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.plugin_checks import check_follows_key
from fedsim_userdp.population import Population
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.selection import ClientSelector, PoissonSelector
from tests.simulations.small_runs import os_noise, run_small, small_run

pytestmark = pytest.mark.usefixtures("quick_accounting")


@dataclass(frozen=True)
class SaysPoisson:
    """Claims Poisson sampling in a release of its own, and chooses in its own way."""

    sampling_prob: float

    def expected_cohort_size(self, num_users: int) -> float:
        return self.sampling_prob * num_users

    def select(self, num_users: int, round: int, generator: np.random.Generator) -> np.ndarray:
        return np.flatnonzero(generator.random(num_users) < self.sampling_prob)

    def release(self, noise_multiplier: float, num_users: int, rounds: int) -> acc.Description:
        return acc.PoissonUsers(noise_multiplier, self.sampling_prob, rounds)


def assumptions(folder: Path) -> list[str]:
    """What the privacy statement of a run of one mechanism assumes."""
    return list(json.loads((folder / "privacy.json").read_text())["runs"][0]["assumptions"])


def believed(folder: Path) -> list[str]:
    """Those that say that a selector is taken at its word."""
    return [one for one in assumptions(folder) if "is not part of this package" in one]


@pytest.mark.parametrize("selector", [SaysPoisson(0.4), EveryOtherUser()], ids=lambda each: type(each).__name__)
def test_foreign_code_that_draws_or_schedules_is_an_assumption_of_the_statement(
    selector: ClientSelector, tmp_path: Path, store: TokenStore
) -> None:
    run_small(small_run(tmp_path, store, selector=selector))
    assert len(believed(tmp_path)) == 1
    assert type(selector).__name__ in believed(tmp_path)[0]


def test_that_cohorts_of_ones_own_are_secret_is_assumed(tmp_path: Path, store: TokenStore) -> None:
    statements = {}
    for name, selector in {"own": PoissonSelector(0.4), "sampled": SaysPoisson(0.4), "cycle": EveryOtherUser()}.items():
        run = small_run(tmp_path / name, store, selector=selector)
        statements[name] = run_small(os_noise(run)).statement
    assert "no file that is to be published tells either" in statements["own"].noise
    assert "the cohorts are kept secret" in statements["own"].assumptions
    assert "secret as well is assumed: tests." in statements["sampled"].noise
    assert any(one.startswith("the cohorts are kept secret, and tests.") for one in statements["sampled"].assumptions)
    assert "cohorts" not in statements["cycle"].noise


def test_cohorts_that_are_the_same_under_any_key_are_refused() -> None:
    class Ignoring(SaysPoisson):
        def select(self, num_users: int, round: int, generator: np.random.Generator) -> np.ndarray:
            return super().select(num_users, round, np.random.default_rng(round))

    population = Population.numbered(30)
    declared = acc.PoissonUsers(1.0, 0.4, 10)
    with pytest.raises(ConfigError, match="same users under two unrelated keys in rounds 1 to 2: whoever"):
        check_follows_key([Ignoring(0.4), Ignoring(0.4)], population, declared)
    check_follows_key([SaysPoisson(0.4), SaysPoisson(0.4)], population, declared)
    check_follows_key([Ignoring(0.4), Ignoring(0.4)], population, acc.NoAmplification(1.0, 10))


def test_this_packages_own_sampling_needs_no_such_assumption(tmp_path: Path, store: TokenStore) -> None:
    run_small(small_run(tmp_path, store))
    assert assumptions(tmp_path)
    assert believed(tmp_path) == []
