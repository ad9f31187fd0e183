"""Caches hold users' text: they lie outside of a run's folder, in a folder that is named."""

import os
from pathlib import Path

import pytest

from fedsim_userdp import Study, UserWise, run
from fedsim_userdp.errors import ConfigError
from tests.hostile.test_code import fedsim_run
from tests.simulations.corpora import small_settings, write_jsonl
from tests.simulations.test_folders import content

IN_A_RUN = ["{run}", "{run}/adapters", "run/cache", "./x/../run", "link", "link/cache", "~/run/cache"]
NONE = {"": "cache_dir= names no folder", "file": "cache_dir=file is a file: name a folder"}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link").symlink_to("run")
    (tmp_path / "file").touch()
    return small_settings(write_jsonl(tmp_path / "c.jsonl"), tmp_path / "cache", rounds=1)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    before = content(Path())
    code, said = fedsim_run(capsys, *arguments)
    assert (code, said.count("\n")) == (2, 1), said
    assert content(Path()) == before
    return said


@pytest.mark.parametrize("place", IN_A_RUN)
@pytest.mark.parametrize("key", ["cache_dir", "model.cache_dir"])
def test_caches_do_not_lie_in_the_folder_of_a_run(
    key: str, place: str, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cache = place.format(run=Path("run").absolute())
    said = refused(capsys, *settings, "output_dir=run", f"{key}={cache}")
    folder = Path("run").absolute()
    assert f"fedsim: {key}={cache} lies in {folder}, the folder of the run: name one elsewhere" in said
    assert not os.path.lexists("run")


def test_a_run_that_goes_on_does_not_put_caches_into_its_folder(
    settings: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fedsim_run(capsys, *settings, "output_dir=run")[0] == 0
    assert "cache_dir=run lies in " in refused(capsys, "resume=run", "cache_dir=run")
    monkeypatch.setenv("FEDSIM_CACHE_DIR", "run/x")
    assert "FEDSIM_CACHE_DIR=run/x lies in " in refused(capsys, "resume=run", "cache_dir=null")


@pytest.mark.parametrize("cache", NONE)
def test_what_is_no_folder_for_caches_is_refused_by_its_setting(
    cache: str, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert NONE[cache] in refused(capsys, *settings, "output_dir=run", f"cache_dir='{cache}'")
    assert not os.path.lexists("run")


@pytest.mark.parametrize("cache", NONE)
def test_what_is_no_folder_for_caches_is_refused_in_python(cache: str, settings: list[str]) -> None:
    with pytest.raises(ValueError, match=NONE[cache]):
        Study.of("c.jsonl", cache_dir=cache, heldout_users=2, min_words=0, window=16)


def test_caches_do_not_lie_in_the_folder_of_a_run_that_is_made_in_python(settings: list[str], tmp_path: Path) -> None:
    study = Study.of("c.jsonl", cache_dir="run/cache", heldout_users=2, min_words=0, window=16)
    before = content(tmp_path)
    with pytest.raises(ConfigError, match=r"cache_dir=run/cache lies in .*run, the folder of the run"):
        run(study, UserWise(rounds=1), "run")
    assert content(tmp_path) == before
