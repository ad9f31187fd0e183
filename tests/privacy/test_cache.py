import json
import math
import time
from pathlib import Path

import pytest

from fedsim_userdp import cache
from fedsim_userdp.privacy import accounting as acc

RUN = acc.RecordLevel(1.0, 0.05, 200, 10)


def entries(folder: Path) -> list[Path]:
    return sorted((folder / "accounting").glob("*"))


def test_repeated_calibration_comes_from_the_disk_in_under_50_ms(cache_folder: Path) -> None:
    first = acc.calibrate(RUN, epsilon=3.0, delta=1e-5, method="tight")
    assert len(entries(cache_folder)) == 1
    start = time.perf_counter()
    again = acc.calibrate(acc.RecordLevel(7.0, 0.05, 200, 10), epsilon=3.0, delta=1e-5, method="tight")
    assert time.perf_counter() - start < 0.05
    assert again == first


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[" * 1_000_000, b"7", b"\xff\xfe", b"[]", b'{"answer": 1.0}', b'{"question": "x", "answer": 2.0}'],
)
def test_damaged_entry_is_ignored_and_replaced(cache_folder: Path, damage: bytes) -> None:
    right = acc.epsilon(RUN, 1e-5, "tight")
    (entry,) = entries(cache_folder)
    entry.write_bytes(damage)
    assert acc.epsilon(RUN, 1e-5, "tight") == right
    assert json.loads(entry.read_text(encoding="utf-8"))["answer"] == right


@pytest.mark.parametrize("answer", [True, "1", None, math.inf, math.nan, [1.0], 0.0, 1.0, -1.0])
def test_entry_whose_answer_is_not_what_was_written_is_ignored(cache_folder: Path, answer: object) -> None:
    right = acc.epsilon(RUN, 1e-5, "tight")
    (entry,) = entries(cache_folder)
    entry.write_text(json.dumps({**json.loads(entry.read_text(encoding="utf-8")), "answer": answer}), encoding="utf-8")
    assert acc.epsilon(RUN, 1e-5, "tight") == right


def test_question_names_method_description_and_versions(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acc.epsilon(RUN, 1e-5, "tight")
    acc.epsilon(RUN, 1e-5, "group")
    acc.epsilon(RUN, 2e-5, "tight")
    acc.epsilon(acc.RecordLevel(1.0, 0.05, 200, 11), 1e-5, "tight")
    monkeypatch.setattr(cache, "ALGORITHM_VERSION", -1)
    acc.epsilon(RUN, 1e-5, "tight")
    assert len(entries(cache_folder)) == 5
    assert all("RecordLevel" in entry.read_text(encoding="utf-8") for entry in entries(cache_folder))


def test_folder_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder", encoding="utf-8")
    monkeypatch.setenv("FEDSIM_CACHE_DIR", str(blocked))
    assert acc.epsilon(RUN, 1e-5, "tight") > 0.0


def test_no_unfinished_file_is_left_behind(cache_folder: Path) -> None:
    acc.epsilon(RUN, 1e-5, "tight")
    assert [entry.suffix for entry in entries(cache_folder)] == [".json"]


def test_refused_question_leaves_no_answer(cache_folder: Path) -> None:
    with pytest.raises(acc.AccountingError):
        acc.epsilon(RUN, 1e-5, "pld")
    assert entries(cache_folder) == []


def test_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FEDSIM_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default_cache_dir() == tmp_path / "fedsim_userdp"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.default_cache_dir() == Path.home() / ".cache" / "fedsim_userdp"
