"""A full disk ends a run with one sentence, and the run goes on once there is room; with a small model."""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.simulations.cli import run_command
from fedsim_userdp.simulations.sentences import MENDABLE, sentence
from tests.simulations.small_runs import (
    dying_at_write,
    resumed,
    run_small,
    small_run,
    what_a_run_left,
)

ROUNDS = 2
pytestmark = pytest.mark.usefixtures("quick_accounting")


def full() -> OSError:
    """What the system says of a full disk."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_gives_one_sentence_and_the_run_goes_on_once_there_is_room(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_small(small_run(tmp_path / "whole", store), "user_wise", ROUNDS)
    expected = what_a_run_left(tmp_path / "whole")
    number, said = 0, set[str]()
    while True:
        number += 4
        run = small_run(tmp_path / str(number), store)
        with dying_at_write(number, torn=True, monkeypatch=monkeypatch, error_fn=full) as writes:
            try:
                run_small(run, "user_wise", ROUNDS)
            except MENDABLE as error:
                said.add(sentence(error))
        if len(writes) < number:
            break
        run_small(resumed(run), "user_wise", ROUNDS)
        assert what_a_run_left(run.place.folder) == expected
    assert said
    assert all("No space left on device; make room and start again" in one for one in said)


@pytest.mark.skipif(os.geteuid() != 0, reason="making a small disk needs root")
def test_a_really_full_disk_gives_one_sentence_and_the_run_goes_on_once_there_is_room(
    tmp_path: Path, store: TokenStore
) -> None:
    run_small(small_run(tmp_path / "whole", store), "user_wise", ROUNDS)
    expected = what_a_run_left(tmp_path / "whole")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        failed_at = set[str]()
        for free in range(0, 120, 8):
            run = small_run(disk / "run", store)
            filler = disk / "filler"
            filler.write_bytes(bytes((1024 - 4 * 4 - free) * 1024))
            try:
                run_small(run, "user_wise", ROUNDS)
            except MENDABLE as error:
                said = sentence(error)
                failed_at.add(Path(said.split(":")[0]).name if "No space left on device" in said else said)
            filler.unlink()
            run_small(resumed(run), "user_wise", ROUNDS)
            assert what_a_run_left(run.place.folder) == expected
            shutil.rmtree(run.place.folder)
        assert len(failed_at) > 3, "the disk should have been full at several places"
        assert all(" " not in place for place in failed_at), "something else was said than which file found no room"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(("command", "swept"), [("run", "seed=1,2"), ("budget", "privacy.epsilon=1,2")])
def test_a_full_disk_is_named_by_the_folder_where_a_library_names_no_file(
    command: str, swept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def save(config: object, path: Path) -> None:
        raise full()

    monkeypatch.setattr(OmegaConf, "save", save)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit):
        run_command(command, ["--multirun", swept, f"output_dir={tmp_path / 'sweep'}"])
    assert capsys.readouterr().err.startswith(f"fedsim: {tmp_path / 'sweep'}: No space left on device; make room")
