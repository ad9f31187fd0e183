"""A selector that looks for the users' records while it is asked who takes part does not find them."""

import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fedsim_userdp import UserWise, run
from fedsim_userdp.errors import ConfigError
from fedsim_userdp.population import Past, Population
from tests.mechanisms.test_stated_selection import PAIRS, study_of

LOOK: list[Callable[[], object]] = []


@dataclass(frozen=True)
class Looks:
    """Takes half of the users, after it has looked around."""

    def probabilities(self, round: int, population: Population, past: Past) -> float:
        LOOK[-1]()
        return 0.5


def linked(store: Path) -> Path:
    """A link to the store in another folder."""
    link = Path(tempfile.mkdtemp()) / "link"
    link.symlink_to(store)
    return link


def looked(look: Callable[[Path], object], tmp_path: Path) -> None:
    """Runs with a selector that looks so; it is given the folder of the token store."""
    study = study_of(Looks(), PAIRS)
    LOOK.append(lambda: look(study.store.path))
    run(study, UserWise(rounds=1), tmp_path / "run")


@pytest.mark.parametrize(
    "look",
    [
        lambda store: next(iter(store.iterdir())).open("rb").read(),
        lambda store: (
            [np.load(file, mmap_mode="r") for file in store.glob("*.npy")] or next(store.iterdir()).read_bytes()
        ),
        lambda store: os.open(str(next(iter(store.iterdir()))), os.O_RDONLY),
        lambda store: next(iter(linked(store).iterdir())).read_bytes(),
    ],
    ids=["open", "numpy", "os", "link"],
)
def test_the_token_store_is_not_to_be_opened(look: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Looks opens the users' records while it is asked who takes part"):
        looked(look, tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "look",
    [
        lambda store: subprocess.run([sys.executable, "-c", "pass"], check=False),
        lambda store: os.system("true"),
        lambda store: gc.get_objects(),
    ],
    ids=["subprocess", "system", "objects"],
)
def test_programs_and_lists_of_all_objects_are_refused_too(look: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Looks calls .* while it is asked who takes part"):
        looked(look, tmp_path)


def test_a_text_file_of_the_corpus_is_not_to_be_opened(tmp_path: Path) -> None:
    text = tmp_path / "texts.csv"
    text.write_text("user_id,text\n" + "".join(f"{user},{said}\n" for user, said in PAIRS))
    study = study_of(Looks(), text)
    LOOK.append(text.read_text)
    with pytest.raises(ConfigError, match="opens the users' records"):
        run(study, UserWise(rounds=1), tmp_path / "run")


def test_a_file_of_its_own_may_be_read(tmp_path: Path) -> None:
    (tmp_path / "schedule.txt").write_text("0.5")
    looked(lambda store: (tmp_path / "schedule.txt").read_text(), tmp_path)
    assert (tmp_path / "run" / "PRIVACY.md").is_file()
