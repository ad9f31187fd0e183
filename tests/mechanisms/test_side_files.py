"""Files that a selector reads: what they hold is part of what a run is."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim_userdp import UserWise, acc, run
from fedsim_userdp.errors import CheckpointError
from fedsim_userdp.population import Past, Population
from fedsim_userdp.strategies.user_level_dp import UserLevelDP
from tests.mechanisms.test_stated_selection import study_of
from tests.simulations.small_runs import Killed


@dataclass(frozen=True)
class FromFile:
    """Chooses the users that a file lists for each round."""

    schedule: str

    def cohort(
        self,
        round: int,
        population: Population,
        past: Past,
        rng_round: np.random.Generator,
        rng_run: np.random.Generator,
    ) -> np.ndarray:
        return np.array(json.loads(Path(self.schedule).read_text())[round - 1])

    def expected_cohort_size(self, population: Population) -> float:
        return 2.0

    def release(self, noise_multiplier: float, population: Population, rounds: int) -> acc.Description:
        return acc.Unamplified(noise_multiplier, 2)


def killed_in_round_three(study: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = UserLevelDP.aggregate_train

    def dies(self: UserLevelDP, server_round: int, replies: Any) -> Any:
        if server_round == 3:
            raise Killed
        return inner(self, server_round, replies)

    with monkeypatch.context() as patch:
        patch.setattr(UserLevelDP, "aggregate_train", dies)
        with pytest.raises(Killed):
            run(study, UserWise(rounds=4), folder)


@pytest.mark.parametrize(
    ("allowed", "said"),
    [(False, r"file selection\.schedule"), (True, r"the selection \(FromFile\) draws other users for rounds 1 to 2")],
)
def test_a_schedule_whose_file_has_changed_does_not_go_on(
    allowed: bool, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users of the first rounds would take part in twice as many as they are accounted for."""
    file = tmp_path / "schedule.json"
    file.write_text(json.dumps([[0, 1], [0, 1], [2, 3], [2, 3]]))
    given = {"checkpoint": {"every": 1, "allow_changes": allowed}}
    killed_in_round_three(study_of(FromFile(str(file)), **given), tmp_path / "run", monkeypatch)
    file.write_text(json.dumps([[2, 3], [2, 3], [0, 1], [0, 1]]))
    with pytest.raises(CheckpointError, match=said):
        run(study_of(FromFile(str(file)), **given), UserWise(rounds=4), tmp_path / "run", resume=True)
    file.write_text(json.dumps([[0, 1], [0, 1], [2, 3], [2, 3]]))
    assert run(study_of(FromFile(str(file)), **given), UserWise(rounds=4), tmp_path / "run", resume=True).rows


def test_seeded_noise_is_another_with_another_file(tmp_path: Path) -> None:
    """Of rounds to come: the one that was done has the same users."""
    file, released = tmp_path / "schedule.json", []
    for name, later in (("one", [0, 1]), ("other", [2, 3])):
        file.write_text(json.dumps([[0, 1], [0, 1], later]))
        run(study_of(FromFile(str(file))), UserWise(rounds=1), tmp_path / name / "run")
        released.append((tmp_path / name / "run" / "adapters" / "user_wise" / "adapter_model.safetensors").read_bytes())
    assert released[0] != released[1]
