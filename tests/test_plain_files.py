"""What is swapped into a run folder under way is not followed out of it, waited for or read for ever."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from fedsim_userdp import plain_files
from fedsim_userdp.mechanisms.keys import mark_of_draw
from fedsim_userdp.mechanisms.run_files import WEIGHTS
from fedsim_userdp.plain_files import kept_inside
from fedsim_userdp.privacy import ledger
from fedsim_userdp.privacy.ledger import Ledger
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.report.files import NOT_PRIVATE, replacing, write_figure, write_text
from fedsim_userdp.report.privacy_files import read_privacy
from fedsim_userdp.simulations.adapter_checks import weights_problem
from fedsim_userdp.simulations.result_checks import result_rows
from fedsim_userdp.training.checkpoints import Checkpoint, CheckpointFolder
from fedsim_userdp.training.journal import Journal
from tests.hostile.guard import in_time

CONTENT = b"somebody else's"


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder that nothing may touch, with a file in it."""
    (folder := tmp_path / "outside").mkdir()
    (folder / "file").write_bytes(CONTENT)
    with in_time():
        yield folder
    assert [path.name for path in folder.iterdir()] == ["file"]
    assert (folder / "file").read_bytes() == CONTENT


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A run folder that is kept, with folders in it."""
    (tmp_path / "run" / NOT_PRIVATE / "checkpoints" / "one").mkdir(parents=True)
    (tmp_path / "run" / "ledger").mkdir()
    with kept_inside(tmp_path / "run"):
        yield tmp_path / "run"


def swap_in(kind: str, path: Path, outside: Path) -> None:
    """Puts something else where a file is to be."""
    path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to(outside / "file")
    elif kind == "dangling link":
        path.symlink_to(outside / "new")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")


def append_to_journal(run: Path) -> None:
    Journal(run / NOT_PRIVATE / "rounds.jsonl").append([{"round": 1}])


def open_ledger(run: Path) -> None:
    Ledger.open(run / "ledger" / "one.jsonl", delta=1e-5, run="the run").close()


def seal_ledger(run: Path) -> None:
    ledger.seal(run / "ledger" / "one.jsonl", "")


def read_statement(run: Path) -> None:
    read_privacy(run)


def write_a_figure(run: Path) -> None:
    write_figure(run / NOT_PRIVATE / "data.png", Figure())


def mark_a_draw(run: Path) -> None:
    mark_of_draw(run, RunKey.seeded(1))


def read_results(run: Path) -> None:
    result_rows(run)


def weigh_an_adapter(run: Path) -> None:
    weights_problem(run / "ledger", "0" * 64)


WORK: dict[str, tuple[str, Callable[[Path], None]]] = {
    "journal": (f"{NOT_PRIVATE}/rounds.jsonl", append_to_journal),
    "ledger": ("ledger/one.jsonl", open_ledger),
    "seal": ("ledger/one.jsonl", seal_ledger),
    "statement": ("privacy.json", read_statement),
    "results": ("results.json", read_results),
    "weights": (f"ledger/{WEIGHTS}", weigh_an_adapter),
}


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "device"])
@pytest.mark.parametrize("work", WORK)
def test_what_is_no_file_is_neither_read_nor_written(work: str, kind: str, run: Path, outside: Path) -> None:
    name, do = WORK[work]
    swap_in(kind, run / name, outside)
    with pytest.raises(OSError, match="is no file or folder of its own") as refused:
        do(run)
    assert refused.value.filename == str(run / name)


@pytest.mark.parametrize("kind", ["link", "pipe", "device"])
def test_a_file_that_is_replaced_takes_the_place_of_whatever_stands_there(kind: str, run: Path, outside: Path) -> None:
    swap_in(kind, run / "results.json", outside)
    swap_in(kind, run / ".new.results.json", outside)
    write_text(run / "results.json", "whole")
    assert (run / "results.json").read_text() == "whole"
    assert not (run / "results.json").is_symlink()


def checkpoint(run: Path) -> None:
    folder = CheckpointFolder(run / NOT_PRIVATE / "checkpoints" / "one", {}, keep=1)
    for round in (1, 2):
        folder.write(Checkpoint(round, {"a": torch.ones(2)}, {}, {}))


def replace_adapter(run: Path) -> None:
    with replacing(run / NOT_PRIVATE / "checkpoints" / "adapter") as folder:
        plain_files.make_folder(folder)


@pytest.mark.parametrize("work", [append_to_journal, checkpoint, replace_adapter, write_a_figure, mark_a_draw])
@pytest.mark.parametrize("part", [NOT_PRIVATE, f"{NOT_PRIVATE}/checkpoints", f"{NOT_PRIVATE}/checkpoints/one"])
def test_a_link_in_place_of_a_folder_is_not_followed(
    work: Callable[[Path], None], part: str, run: Path, outside: Path
) -> None:
    (run / part).rename(run / "aside")
    (run / part).symlink_to(outside)
    if work is checkpoint or part == NOT_PRIVATE:
        with pytest.raises(OSError, match="lies behind one"):
            work(run)


def test_what_is_removed_is_the_link_and_not_what_it_leads_to(run: Path, outside: Path) -> None:
    (run / "adapters").symlink_to(outside)
    (run / "folder" / "deep").mkdir(parents=True)
    (run / "folder" / "deep" / "link").symlink_to(outside)
    plain_files.remove(run / "adapters")
    plain_files.remove(run / "folder")
    plain_files.remove(run / "nothing")
    assert not os.path.lexists(run / "adapters")
    assert not (run / "folder").exists()


def test_a_run_folder_that_is_swapped_for_a_link_keeps_what_is_written(run: Path, outside: Path) -> None:
    run.rename(moved := run.with_name("moved"))
    run.symlink_to(outside)
    write_text(run / "results.json", "whole")
    assert (moved / "results.json").read_text() == "whole"


def test_a_folder_that_the_user_named_by_a_link_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link" / "privacy.json", "whole")
    Journal(tmp_path / "link" / "rounds.jsonl").append([{"round": 1}])
    with kept_inside(tmp_path / "link"):
        write_text(tmp_path / "link" / "results.json", "whole")
    assert sorted(os.listdir(tmp_path / "real")) == ["privacy.json", "results.json", "rounds.jsonl"]
