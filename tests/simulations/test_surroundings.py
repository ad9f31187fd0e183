"""What the environment and the working folder hold keeps no command from its work, or is said in one sentence."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedsim_userdp.cache import default_cache_dir, path_of
from fedsim_userdp.errors import ModelError
from fedsim_userdp.models.loading import ModelSource
from fedsim_userdp.simulations import cli, own_files
from tests.simulations.corpora import small_settings, write_jsonl

# A user id that no machine gives to anybody.
NOBODY = 54321
SHADOWS = ("bitsandbytes", "hqq", "torch", "yaml", "accelerate", "numpy")


def fedsim(*arguments: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs the installed command, the working folder not on the path as `python -m` would have it."""
    code = "import sys; from fedsim_userdp.simulations.cli import main; sys.argv[0] = 'fedsim'; main()"
    program = [sys.executable, "-P", "-c", code, *arguments]
    return subprocess.run(program, cwd=cwd, env=os.environ | environment, text=True, capture_output=True, timeout=300)


def test_a_notebooks_backend_for_plots_is_not_asked_for(tmp_path: Path) -> None:
    notebook = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "FEDSIM_CACHE_DIR": str(tmp_path / "cache")}
    done = fedsim("budget", "budget.rounds=2", "output_dir=plan", cwd=tmp_path, **notebook)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "plan" / "budget.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    """A working folder with folders named as libraries are, and a module of the user's own."""
    for name in SHADOWS:
        (tmp_path / name).mkdir()
    (tmp_path / "yaml.py").write_text("raise SystemExit('taken for the package')\n")
    (tmp_path / "beside_it.py").write_text("PROBABILITY = 0.3\n")
    (tmp_path / "chooser.py").write_text(
        "from beside_it import PROBABILITY\nfrom fedsim_userdp.selection import PoissonSelector\n\n\n"
        "class Chooser(PoissonSelector):\n    pass\n"
    )
    return tmp_path


@pytest.mark.slow
def test_folders_named_as_libraries_are_not_taken_for_them_beside_a_class_of_ones_own(crowded: Path) -> None:
    settings = small_settings(write_jsonl(crowded / "corpus.jsonl"), crowded / "cache", rounds=1)
    done = fedsim("run", *settings, "selection._target_=chooser.Chooser", "output_dir=run", cwd=crowded)
    assert done.returncode == 0, done.stderr
    assert (crowded / "run" / "results.json").is_file()


def test_the_working_folder_is_on_the_path_only_for_classes_that_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    monkeypatch.setattr(sys, "path", list(before))
    own_files.find_named_classes(["privacy.epsilon=2", "data=jsonl"])
    assert str(tmp_path) not in sys.path
    own_files.find_named_classes(["selection._target_=chooser.Chooser"])
    assert sys.path == [*before, str(tmp_path)]


def test_a_working_folder_that_is_gone_is_said_in_one_sentence(tmp_path: Path) -> None:
    (gone := tmp_path / "gone").mkdir()
    code = (
        "import os, sys; from fedsim_userdp.simulations.cli import main; os.rmdir(os.getcwd());"
        "sys.argv[:] = ['fedsim', 'budget', 'output_dir=x']; main()"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=gone, text=True, capture_output=True)
    assert done.returncode == 2
    assert done.stderr.startswith("fedsim: the working folder cannot be used (No such file or directory)")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs another user id")
def test_a_user_without_an_entry_or_a_home_is_told_what_to_set() -> None:
    code = "import sys; from fedsim_userdp.cache import default_cache_dir as d; print(d())"
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME")}
    environment.pop("FEDSIM_CACHE_DIR", None)
    command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, text=True, capture_output=True)
    assert "ValueError: this user has no home folder: set the environment variable FEDSIM_CACHE_DIR" in done.stderr


def test_a_home_that_is_not_known_is_refused_by_the_name_of_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="cache_dir=~nobody-of-that-name/x: it is not known which folder ~ stands for"):
        path_of("~nobody-of-that-name/x", "cache_dir")
    with pytest.raises((ValueError, ModelError), match=r"model\.path=~nobody-of-that-name/x: it is not known"):
        ModelSource(path="~nobody-of-that-name/x").location  # noqa: B018
    monkeypatch.setenv("FEDSIM_CACHE_DIR", "~nobody-of-that-name")
    with pytest.raises(ValueError, match="FEDSIM_CACHE_DIR=~nobody-of-that-name"):
        default_cache_dir()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("it\nbroke"), "stopped by RuntimeError: it broke (with FEDSIM_TRACEBACK=1 it says where)"),
        (KeyError("getpwuid(): uid not found"), "stopped by KeyError: 'getpwuid(): uid not found' (with"),
        (MemoryError(), "there was not enough memory"),
        (ImportError("no such symbol"), "stopped by ImportError: no such symbol"),
        (RecursionError(), "stopped by RecursionError (with"),
    ],
)
def test_whatever_a_library_raises_is_one_sentence(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare_process() -> None:
        raise error

    monkeypatch.setattr(cli, "prepare_process", prepare_process)
    monkeypatch.delenv("FEDSIM_TRACEBACK", raising=False)
    assert cli.run_command("budget", []) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"fedsim: {said}")
    assert told.count("\n") == 1
    monkeypatch.setenv("FEDSIM_TRACEBACK", "1")
    with pytest.raises(type(error)):
        cli.run_command("budget", [])
