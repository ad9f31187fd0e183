"""The guard sees what it is there for."""

import pickle
import subprocess
import time
from pathlib import Path

import pytest

from fedsim_userdp.errors import DataError
from tests.hostile import guard


def test_files_changed_elsewhere_are_seen_and_those_within_are_not(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    with guard.watched(inside) as wrong:
        (inside / "a").write_text("x")
        (inside / "a").rename(inside / "b")
        (inside / "b").read_text()
        assert wrong == []
        (outside / "a").write_text("x")
        (inside / "b").rename(outside / "b")
        (inside / ".." / "outside" / "a").unlink()
    assert [line.partition(" ")[0] for line in wrong] == ["open", "os.rename", "os.remove"]


def test_programs_and_pickles_are_seen(tmp_path: Path) -> None:
    with guard.watched(tmp_path) as wrong:
        subprocess.run(["true"], check=True)
        pickle.loads(pickle.dumps(Path("x")))  # noqa: S301 - what the guard is there to see
    kinds = {line.partition(" ")[0] for line in wrong}
    assert {"subprocess.Popen", "pickle.find_class"} <= kinds


def spin() -> None:
    while True:
        pass


def test_refusals_pass_and_everything_else_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with guard.refusing() as said:
        raise DataError("no\nway")
    assert said == ["no way"]
    with pytest.raises(KeyError), guard.refusing():
        raise KeyError("x")
    monkeypatch.setattr(guard, "SECONDS", 0.05)
    with pytest.raises(guard.Hung), guard.refusing():
        time.sleep(5)
    with pytest.raises(guard.Hung), guard.refusing():
        spin()
