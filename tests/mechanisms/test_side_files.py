"""Files that a selector reads: what they hold is part of what a run is."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim_userdp import UserWise, acc, run
from fedsim_userdp.errors import CheckpointError
from fedsim_userdp.mechanisms.identity import origin_of
from fedsim_userdp.mechanisms.settings_tree import tree_of
from fedsim_userdp.population import Past, Population
from fedsim_userdp.selectors import FixedStrataSelector
from fedsim_userdp.strategies.user_level_dp import UserLevelDP
from tests.mechanisms.test_stated_selection import study_of
from tests.simulations.small_runs import Killed


@dataclass(frozen=True)
class FromFile:
    """Chooses the users that a file lists for each round."""

    schedule: Any

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


@pytest.mark.parametrize("kind", ["text", "path", "list", "mapping", "list in a list", "folder"])
def test_files_are_found_however_a_setting_names_them(kind: str, tmp_path: Path) -> None:
    """Two runs that differ in such a file alone would else share their seeded noise."""
    file = tmp_path / "facts" / "schedule.json"
    file.parent.mkdir()
    ways = {
        "text": str(file), "path": file, "list": [str(file)], "mapping": {"a": str(file)}, "list in a list": [[file]],
        "folder": file.parent,
    }  # fmt: skip
    found = []
    for content in ("[[0]]", "[[1]]"):
        file.write_text(content)
        found.append(origin_of(resolved(FromFile(ways[kind]))))
    assert (
        [key for key in found[0] if found[0][key] != found[1][key]]
        == [key for key in found[0] if key.startswith("file selection.schedule")]
        != []
    )


@pytest.mark.parametrize("text", ["", "north", "a\0b", "n" * 5000])
def test_texts_that_name_no_file_are_none(text: str) -> None:
    assert not [key for key in origin_of(resolved(FromFile(text))) if key.startswith("file")]


def test_a_folder_is_no_setting_of_this_packages_selectors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    found = origin_of(resolved(FixedStrataSelector(str(tmp_path), 3)))
    assert not [key for key in found if key.startswith("file")]


def resolved(selector: Any) -> dict[str, Any]:
    """As much of a study's settings as a checkpoint's origin follows from."""
    return {"selection": tree_of("selection", selector)} | {g: {} for g in ("mechanism", "model", "local", "privacy")}
